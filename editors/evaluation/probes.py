"""The inputs that one edit is judged by, in as few passes as there is room for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.base import encode_requests
from editors.evaluation.protocols import GOLD, RANKS, Answer

SPARE = 4  # tokens generated beyond a target's own: they show whether its last word goes on
LONGEST_LOCALITY = 32  # tokens of a locality answer; NQ has answers of 200 words
HARD = "hard_locality"  # where a dataset does not say in which way it is hard
_METRICS = {
    "t_gen": "text_generality",
    "v_gen": "visual_generality",
    "m_loc": "visual_locality",
    "t_loc": "text_locality",
}


@dataclass(frozen=True, eq=False)
class Question:
    """One input and what it tests: "rel", "t_gen", ..., or the type of a hard locality input."""

    metric: str
    request: EditRequest


def questions(sample: EditSample) -> list[Question]:
    """Everything a sample is judged by, inputs with an image first."""
    found = [Question("rel", sample.request)]
    for metric, field in _METRICS.items():
        found += [Question(metric, request) for request in getattr(sample, field)]
    types = sample.meta.get("hard_types") or [HARD] * len(sample.hard_locality)
    pairs = zip(types, sample.hard_locality, strict=True)
    found += [Question(kind, request) for kind, request in pairs]
    return sorted(found, key=lambda question: question.request.source is None)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything a sample is judged by, encoded.

    Attributes:
        questions: The inputs.
        passes: Batches of them in order, teacher-forced.
        protocols: What the answers will be judged by.
    """

    questions: list[Question]
    passes: list[Batch]
    protocols: tuple[str, ...]

    @classmethod
    def of(
        cls, vlm: VLM, sample: EditSample, protocols: Sequence[str], batch_size: int
    ) -> "Inputs":
        """A sample's inputs.

        Raises:
            RowError: A picture cannot be used.
            AttribError: A prompt or target cannot be encoded.
        """
        found = questions(sample)
        asked = [question.request for question in found]
        starts = range(0, len(asked), batch_size)
        passes = [encode_requests(vlm, asked[start : start + batch_size]) for start in starts]
        return cls(found, passes, tuple(protocols))

    def ask(self, vlm: VLM) -> list[Answer]:
        """What the model, as it is now, says to each question."""
        answers: list[Answer] = []
        for batch in self.passes:
            answers += self._forced(vlm, batch, self.questions[len(answers) :])
        if "generate" not in self.protocols:
            return answers
        # All passes generate as long as the longest needs, whatever was put into which pass.
        longest = max(map(self._new_tokens, range(len(answers)), answers))
        prompts = [without_target(vlm, batch) for batch in self.passes]
        texts = [text for batch in prompts for text in vlm.generate(batch, longest)]
        return [replace(one, text=text) for one, text in zip(answers, texts, strict=True)]

    def _forced(self, vlm: VLM, batch: Batch, asked: Sequence[Question]) -> list[Answer]:
        assert batch.labels is not None
        logits, real = vlm.logits(batch), batch.inputs["attention_mask"].bool()
        answers = []
        for row, labels in enumerate(batch.labels):
            where, best = labels != -100, None
            if "easyedit" in self.protocols:
                best = best_tokens(logits[row, real[row]], RANKS)
            forced = best_tokens(logits[row, where], 1)[:, 0]
            target = asked[row].request.target
            answers.append(Answer(target, labels[where].cpu().int(), forced, best))
        return answers

    def _new_tokens(self, number: int, answer: Answer) -> int:
        wanted = len(answer.gold) + SPARE
        gold = self.questions[number].metric in GOLD
        return wanted if gold else min(wanted, LONGEST_LOCALITY)


def best_tokens(logits: Float[Tensor, "pos d_vocab"], ranks: int) -> Int[Tensor, "pos ranks"]:
    """The best tokens at each position, best first, on the CPU; -1 where logits are no numbers."""
    best = logits.argmax(-1, keepdim=True) if ranks == 1 else logits.topk(ranks).indices
    return best.masked_fill(logits.isnan().any(-1, keepdim=True), -1).int().cpu()


def without_target(vlm: VLM, batch: Batch) -> Batch:
    """The prompts of a teacher-forced batch that is padded on the left, as encoded by themselves.

    Their images are processed once, not twice.
    """
    real, target = batch.inputs["attention_mask"].bool(), batch.spans["target"]
    width, gone = real.shape[1], target.sum(1, keepdim=True)
    lengths = real.sum(1, keepdim=True) - gone
    columns = torch.arange(width - int(lengths.max()), width, device=real.device)
    there = columns >= width - lengths
    index = (columns - gone).clamp(min=0)

    def moved(name: str, value: Any) -> Any:
        if name not in ("input_ids", "attention_mask") and not name.endswith("token_type_ids"):
            return value
        fill = vlm.pad_id if name == "input_ids" else 0
        return torch.where(there, value.gather(1, index), fill)

    return vlm.batch({name: moved(name, value) for name, value in batch.inputs.items()})
