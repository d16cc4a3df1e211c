"""Evaluation protocols: when an answer counts as right. Numbers of two protocols do not compare.

paper: teacher-forced token accuracy; for locality, agreement with the unedited model's argmax on
    the answer's tokens (VisEdit's and DualEdit's program).
exact: all of these tokens at once, the equality in the papers' equations (DualEdit Eqs. 1-3).
generate: greedy decoding from the prompt alone. An answer is right if it is the target, or
    continues after it with a new word: the benchmarks' targets have no end token, so that no editor
    was trained to stop. A longer word is another word: "20" is not "2", "reddish" not "red". For
    locality, the same text as the unedited model's, for at most `SPARE` tokens more than the
    longest target.
easyedit: EasyEdit's definitions (MultimodalTrainer). Every token of the target at once; for T-Loc
    the argmax at every position, for the other localities the ten best tokens in their order at
    every position, visual ones included.
"""

import re
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from attrib.metrics import exact_match, normalise

PROTOCOLS = ("paper", "exact", "generate", "easyedit")
GOLD = ("rel", "t_gen", "v_gen")  # compared with the target; all others with the unedited model
RANKS = 10  # of EasyEdit's locality


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's answer to one input.

    Attributes:
        target: The target text.
        gold: Its tokens.
        forced: The argmax at the position of each, teacher-forced; -1 for NaN.
        best: The best tokens at every position of prompt and target, if requested.
        text: The generated text, if requested.
    """

    target: str
    gold: Int[Tensor, " asked"]
    forced: Int[Tensor, " asked"]
    best: Int[Tensor, "pos ranks"] | None = None
    text: str | None = None


def judge(protocol: str, metric: str, before: Answer, after: Answer) -> float:
    """Score an answer from 0 to 1.

    Args:
        protocol: One of `PROTOCOLS`.
        metric: What the input tests: one of `GOLD`, or a locality.
        before: The unedited model's answer.
        after: The answer to score.
    """
    gold = metric in GOLD
    if protocol == "generate":
        assert before.text is not None and after.text is not None, "nothing was generated"
        if gold:
            return float(matches_target(after.text, after.target))
        return float(exact_match([after.text], [before.text]).all())
    if protocol == "easyedit" and not gold:
        assert before.best is not None and after.best is not None, "no best tokens were stored"
        ranks = 1 if metric == "t_loc" else RANKS
        return float((before.best[:, :ranks] == after.best[:, :ranks]).float().mean())
    right = after.forced == (after.gold if gold else before.forced)
    return float(right.float().mean() if protocol == "paper" else right.all())


def matches_target(answer: str, target: str) -> bool:
    """Whether a normalised answer is the target, or continues after it with a new word."""
    said, wanted = normalise(answer), normalise(target)
    if not wanted or said == wanted:
        return said == wanted
    # Punctuation followed by a letter or digit continues the word: "2.5", "top-left".
    return re.match(re.escape(wanted) + r"(?!\w|[^\w\s]\w)", said) is not None
