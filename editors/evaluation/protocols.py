"""Protocols: what makes an answer right. Numbers of one are not comparable with those of another.

paper: teacher-forced token accuracy; for locality, agreement with the unedited model's argmax on
    the answer's tokens (VisEdit's and DualEdit's program).
exact: all of these tokens at once, the equality of the papers (DualEdit, Eqs. 1-3).
generate: greedy decoding from the prompt alone. Right is an answer that is the target, or goes on
    after it with a new word: the benchmarks' targets carry no end, so no editor was taught one. A
    word that goes on is another one: "20" is not "2", "reddish" not "red". For locality, the same
    text as the unedited model's, for at most `SPARE` tokens more than the longest target.
easyedit: EasyEdit's definitions (MultimodalTrainer). Every token of the target at once; for
    T-Loc the argmax at every position, for all other locality the ten best tokens in their order
    at every position, visual ones included.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from attrib.metrics import exact_match, normalise

PROTOCOLS = ("paper", "exact", "generate", "easyedit")
GOLD = ("rel", "t_gen", "v_gen")  # judged by the target; all else by the unedited model
RANKS = 10  # of EasyEdit's locality


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says to one input.

    Attributes:
        target: The answer that was forced.
        gold: Its tokens.
        forced: The argmax in the place of each of them, teacher-forced; -1 for no number.
        best: The best tokens at every position of prompt and target, where they were asked for.
        text: What the model generates, where that was asked for.
    """

    target: str
    gold: Int[Tensor, " asked"]
    forced: Int[Tensor, " asked"]
    best: Int[Tensor, "pos ranks"] | None = None
    text: str | None = None


def judge(protocol: str, metric: str, before: Answer, after: Answer) -> float:
    """How right an answer is, from 0 to 1.

    Args:
        protocol: The definition, one of `PROTOCOLS`.
        metric: What the input tests; one of `GOLD`, or some locality.
        before: The unedited model's answer.
        after: The answer to judge.
    """
    return float(_JUDGES[protocol](metric, before, after))


def says(answer: str, target: str) -> bool:
    """Whether an answer is the target once both are normalised, or goes on with a new word."""
    said, wanted = normalise(answer), normalise(target)
    if not wanted or said == wanted:
        return said == wanted
    # A mark with a letter or digit behind it goes on as well: "2.5", "top-left".
    return re.match(re.escape(wanted) + r"(?!\w|[^\w\s]\w)", said) is not None


def _paper(metric: str, before: Answer, after: Answer) -> Tensor:
    return _right(metric, before, after).float().mean()


def _exact(metric: str, before: Answer, after: Answer) -> Tensor:
    return _right(metric, before, after).all()


def _generate(metric: str, before: Answer, after: Answer) -> bool:
    assert before.text is not None and after.text is not None, "nothing was generated"
    if metric in GOLD:
        return says(after.text, after.target)
    return bool(exact_match([after.text], [before.text]).all())


def _easyedit(metric: str, before: Answer, after: Answer) -> Tensor:
    if metric in GOLD:
        return _exact(metric, before, after)
    assert before.best is not None and after.best is not None, "the best tokens were not kept"
    ranks = 1 if metric == "t_loc" else RANKS
    return (before.best[:, :ranks] == after.best[:, :ranks]).float().mean()


def _right(metric: str, before: Answer, after: Answer) -> Tensor:
    return after.forced == (after.gold if metric in GOLD else before.forced)


_JUDGES: dict[str, Callable[[str, Answer, Answer], Tensor | bool]] = {
    "paper": _paper,
    "exact": _exact,
    "generate": _generate,
    "easyedit": _easyedit,
}
