"""Evaluation protocols and probes: what one edit is evaluated on, and when an answer is right.

Numbers of two protocols do not compare.

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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.metrics import exact_match, normalise
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from editors.base import encode_requests, require_encodable

PROTOCOLS = ("paper", "exact", "generate", "easyedit")
GOLD = ("rel", "t_gen", "v_gen")  # compared with the target; all others with the unedited model
RANKS = 10  # of EasyEdit's locality
SPARE = 4  # tokens generated beyond the target's own: they show whether its last word continues
LONGEST_LOCALITY = 32  # tokens of a locality answer; NQ has answers of 200 words
HARD = "hard_locality"  # metric where a dataset does not name the types of hard locality inputs
METRIC_OF = {
    "request": "rel",
    "text_generality": "t_gen",
    "visual_generality": "v_gen",
    "visual_locality": "m_loc",
    "text_locality": "t_loc",
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


@dataclass(frozen=True, eq=False)
class Probe:
    """One input and the metric that it tests: "rel", "t_gen", ..., or a type of hard locality."""

    metric: str
    request: EditRequest


def probes_of(sample: EditSample) -> list[Probe]:
    """Return everything that a sample's edit is evaluated on, inputs with an image first."""
    found = [Probe("rel", sample.request)]
    for field, metric in list(METRIC_OF.items())[1:]:
        found += [Probe(metric, request) for request in getattr(sample, field)]
    types = sample.meta.get("hard_types") or [HARD] * len(sample.hard_locality)
    found += [Probe(*pair) for pair in zip(types, sample.hard_locality, strict=True)]
    return sorted(found, key=lambda probe: probe.request.source is None)


@dataclass(frozen=True, eq=False)
class EncodedProbes:
    """The encoded probes of a sample.

    Attributes:
        probes: The probes.
        batches: Batches of them in order, with targets.
        protocols: Protocols by which the answers will be scored.
    """

    probes: list[Probe]
    batches: list[Batch]
    protocols: tuple[str, ...]

    @classmethod
    def of(
        cls, vlm: VLM, sample: EditSample, protocols: Sequence[str], batch_size: int
    ) -> "EncodedProbes":
        """Encode a sample's probes.

        Raises:
            RowError: An image cannot be used.
            AttribError: A prompt or target cannot be encoded.
        """
        probes = probes_of(sample)
        requests = [probe.request for probe in probes]
        starts = range(0, len(requests), batch_size)
        try:
            batches = [encode_requests(vlm, requests[i : i + batch_size]) for i in starts]
        except AttribError:
            require_encodable(vlm, sample, {})  # names the one at fault
            raise
        return cls(probes, batches, tuple(protocols))

    def answers(self, vlm: VLM) -> list[Answer]:
        """Return the answers of the model in its current state."""
        answers: list[Answer] = []
        for batch in self.batches:
            answers += self._forced(vlm, batch, self.probes[len(answers) :])
        if "generate" not in self.protocols:
            return answers
        # All batches generate as many tokens as the longest needs, whatever is in which batch.
        longest = max(
            len(answer.gold) + SPARE
            if probe.metric in GOLD
            else min(len(answer.gold) + SPARE, LONGEST_LOCALITY)
            for probe, answer in zip(self.probes, answers, strict=True)
        )
        prompts = [without_target(vlm, batch) for batch in self.batches]
        texts = [text for batch in prompts for text in vlm.generate(batch, longest)]
        return [replace(one, text=text) for one, text in zip(answers, texts, strict=True)]

    def _forced(self, vlm: VLM, batch: Batch, probes: Sequence[Probe]) -> list[Answer]:
        assert batch.labels is not None
        logits, real = vlm.logits(batch), batch.inputs["attention_mask"].bool()
        answers = []
        for row, labels in enumerate(batch.labels):
            where, best = labels != IGNORE_INDEX, None
            if "easyedit" in self.protocols:
                best = best_tokens(logits[row, real[row]], RANKS)
            forced = best_tokens(logits[row, where], 1)[:, 0]
            target = probes[row].request.target
            answers.append(Answer(target, labels[where].cpu().int(), forced, best))
        return answers


def best_tokens(logits: Float[Tensor, "pos d_vocab"], ranks: int) -> Int[Tensor, "pos ranks"]:
    """Return the best tokens at each position, best first, on the CPU; -1 for NaN."""
    best = logits.argmax(-1, keepdim=True) if ranks == 1 else logits.topk(ranks).indices
    return best.masked_fill(logits.isnan().any(-1, keepdim=True), -1).int().cpu()


def without_target(vlm: VLM, batch: Batch) -> Batch:
    """Remove the targets from a left-padded batch; equals the prompts encoded by themselves.

    This reuses the processed images.
    """
    real, target = batch.inputs["attention_mask"].bool(), batch.spans["target"]
    width, removed = real.shape[1], target.sum(1, keepdim=True)
    lengths = real.sum(1, keepdim=True) - removed
    columns = torch.arange(width - int(lengths.max()), width, device=real.device)
    kept = columns >= width - lengths
    index = (columns - removed).clamp(min=0)

    def shift(name: str, value: Any) -> Any:
        if name not in ("input_ids", "attention_mask") and not name.endswith("token_type_ids"):
            return value
        fill = vlm.tokenizer.pad_token_id if name == "input_ids" else 0
        return torch.where(kept, value.gather(1, index), fill)

    shifted = {name: shift(name, value) for name, value in batch.inputs.items()}
    return vlm.batch(shifted, batch.alone)
