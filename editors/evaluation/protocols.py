"""Evaluation protocols: when an answer is right.

Numbers of two protocols do not compare.

paper: teacher-forced token accuracy; for locality, agreement with the unedited model's argmax on
    the answer's tokens (VisEdit's and DualEdit's program).
exact: all of these tokens at once, the equality in the papers' equations (DualEdit Eqs. 1-3).
generate: greedy decoding from the prompt alone, until the model ends. The whole answer is the
    target, after normalisation. For locality, the same text as the unedited model's. At most
    `SPARE` tokens more than the longest target are generated: an answer that has not ended by then
    is longer than the target, and wrong.
generate-prefix: the same texts, but a right answer may go on after the target with a new word. The
    benchmarks' targets have no end token, so that no editor was trained to stop. A longer word is
    another word: "20" is not "2", "reddish" not "red". Locality as in "generate".
easyedit: EasyEdit's definitions (MultimodalTrainer). Every token of the target at once; for T-Loc
    the argmax at every position, for the other localities the ten best tokens in their order at
    every position, visual ones included.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from attrib.metrics import exact_match, normalise

PROTOCOLS = ("paper", "exact", "generate", "generate-prefix", "easyedit")
GENERATED = ("generate", "generate-prefix")  # what they score is generated
# Compared with the target, as is portability; all others with the unedited model.
GOLD = ("rel", "t_gen", "v_gen", "text_rel", "picture_rel")
RANKS = 10  # of EasyEdit's locality
SPARE = 4  # tokens generated beyond the target's own: they show whether its last word continues
LONGEST_LOCALITY = 32  # tokens of a locality answer; NQ has answers of 200 words
PORT = "port_"  # begins the metrics of portability, by type
METRIC_OF = {
    "request": "rel",
    "text_generality": "t_gen",
    "visual_generality": "v_gen",
    "visual_locality": "m_loc",
    "text_locality": "t_loc",
    "text_reliability": "text_rel",
    "picture_reliability": "picture_rel",
}


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

    def record(self) -> dict[str, Any]:
        """The answer as JSON."""
        return {n: v.tolist() if isinstance(v, Tensor) else v for n, v in vars(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Answer":
        """The answer of a record."""
        ids = {n: torch.tensor(v).int() for n, v in record.items() if isinstance(v, list)}
        return cls(**{**record, **ids})


def judge(protocol: str, metric: str, before: Answer, after: Answer) -> float:
    """Score an answer from 0 to 1.

    Args:
        protocol: One of `PROTOCOLS`.
        metric: What the input tests: one of `GOLD`, or a locality.
        before: The unedited model's answer.
        after: The answer to score.
    """
    gold = is_gold(metric)
    if protocol in GENERATED:
        assert before.text is not None and after.text is not None, "nothing was generated"
        if gold and protocol == "generate-prefix":
            return float(begins_with_target(after.text, after.target))
        wanted = after.target if gold else before.text
        return float(exact_match([after.text], [wanted]).all())
    if protocol == "easyedit" and not gold:
        assert before.best is not None and after.best is not None, "no best tokens were stored"
        ranks = 1 if metric == "t_loc" else RANKS
        return float((before.best[:, :ranks] == after.best[:, :ranks]).float().mean())
    right = after.forced == (after.gold if gold else before.forced)
    return float(right.float().mean() if protocol == "paper" else right.all())


def is_gold(metric: str) -> bool:
    """Whether a metric compares with the target, and not with the unedited model."""
    return metric in GOLD or metric.startswith(PORT)


def begins_with_target(answer: str, target: str) -> bool:
    """Whether a normalised answer is the target, or continues after it with a new word."""
    said, wanted = normalise(answer), normalise(target)
    if not wanted or said == wanted:
        return said == wanted
    # Punctuation followed by a letter or digit continues the word: "2.5", "top-left".
    return re.match(re.escape(wanted) + r"(?!\w|[^\w\s]\w)", said) is not None
