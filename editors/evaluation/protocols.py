"""Evaluation protocols and probes: what one edit is evaluated on, and when an answer is right.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.metrics import exact_match, normalise
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.forced_pass import ForcedPass, answer_logits, is_supported, without_target
from attrib.model.vlm import VLM
from editors.base import encode_requests, require_encodable

PROTOCOLS = ("paper", "exact", "generate", "generate-prefix", "easyedit")
GENERATED = ("generate", "generate-prefix")  # what they score is generated
# Compared with the target, as is portability; all others with the unedited model.
GOLD = ("rel", "t_gen", "v_gen", "text_rel", "picture_rel")
RANKS = 10  # of EasyEdit's locality
SPARE = 4  # tokens generated beyond the target's own: they show whether its last word continues
LONGEST_LOCALITY = 32  # tokens of a locality answer; NQ has answers of 200 words
HARD = "hard_locality"  # metric where a dataset does not name the types of hard locality inputs
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
    kinds = sample.meta.get("portability_types") or ["any"] * len(sample.portability)
    ports = zip(kinds, sample.portability, strict=True)
    found += [Probe(PORT + kind.replace("-", "_"), request) for kind, request in ports]
    return sorted(found, key=lambda probe: probe.request.source is None)


@dataclass(frozen=True, eq=False)
class EncodedProbes:
    """The encoded probes of a sample.

    Attributes:
        probes: The probes.
        batches: Batches of them in order, with targets.
        protocols: Protocols by which the answers will be scored.
        longest: Tokens that are generated after each prompt, whatever is in which batch: as many as
            the longest answer of the sample needs.
    """

    probes: list[Probe]
    batches: list[Batch]
    protocols: tuple[str, ...]
    longest: int

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
        try:
            batches = _encoded(vlm, probes, batch_size)
        except AttribError:
            require_encodable(vlm, sample, {})  # names the one at fault
            raise
        lengths = [n for batch in batches for n in batch["target"].sum(1).tolist()]
        longest = max(
            num + SPARE if is_gold(probe.metric) else min(num + SPARE, LONGEST_LOCALITY)
            for probe, num in zip(probes, lengths, strict=True)
        )
        return cls(probes, batches, tuple(protocols), longest)

    def only(self, vlm: VLM, rows: Sequence[int]) -> "EncodedProbes":
        """Some of the probes, with as many generated tokens as all; their order is kept."""
        probes, size = [self.probes[row] for row in rows], self.batches[0].size
        batch = self.batches[0].only(rows) if len(self.batches) == 1 else None
        batches = _encoded(vlm, probes, size) if batch is None else [batch]
        return replace(self, probes=probes, batches=batches)

    def answers(self, vlm: VLM, *, causal: bool = False) -> list[Answer]:
        """Return the answers of the model in its current state.

        Args:
            vlm: The model.
            causal: Whether the model, as it is edited, reads a prompt in the same way whatever
                follows it: generation then goes on from the teacher-forced pass.
        """
        answers: list[Answer] = []
        for batch in self.batches:
            answers += self._answers(vlm, batch, self.probes[len(answers) :], causal)
        return answers

    def _answers(
        self, vlm: VLM, batch: Batch, probes: Sequence[Probe], causal: bool
    ) -> list[Answer]:
        if not set(GENERATED) & set(self.protocols):
            return self._forced(self._logits(vlm, batch), batch, probes)
        if causal and is_supported(vlm, batch):
            run = ForcedPass.run(vlm, batch, whole=self._reads_prompts)
            forced, texts = self._forced(run.logits, batch, probes), run.texts(self.longest)
        else:
            forced = self._forced(self._logits(vlm, batch), batch, probes)
            texts = vlm.generate(without_target(vlm, batch), self.longest)
        return [replace(one, text=text) for one, text in zip(forced, texts, strict=True)]

    @property
    def _reads_prompts(self) -> bool:
        """Whether a protocol compares answers at the positions of prompts, too."""
        return "easyedit" in self.protocols

    def _logits(self, vlm: VLM, batch: Batch) -> Float[Tensor, "batch kept d_vocab"]:
        return vlm.logits(batch) if self._reads_prompts else answer_logits(vlm, batch)

    def _forced(self, logits: Tensor, batch: Batch, probes: Sequence[Probe]) -> list[Answer]:
        assert batch.labels is not None
        real, answers = batch.inputs["attention_mask"].bool(), []
        for row, labels in enumerate(batch.labels[:, -logits.shape[1] :]):
            where, best = labels != IGNORE_INDEX, None
            if self._reads_prompts:
                best = best_tokens(logits[row, real[row]], RANKS)
            forced = best_tokens(logits[row, where], 1)[:, 0]
            target = probes[row].request.target
            answers.append(Answer(target, labels[where].cpu().int(), forced, best))
        return answers


def _encoded(vlm: VLM, probes: Sequence[Probe], batch_size: int) -> list[Batch]:
    requests = [probe.request for probe in probes]
    starts = range(0, len(requests), batch_size)
    return [encode_requests(vlm, requests[i : i + batch_size]) for i in starts]


def best_tokens(logits: Float[Tensor, "pos d_vocab"], ranks: int) -> Int[Tensor, "pos ranks"]:
    """Return the best tokens at each position, best first, on the CPU; -1 for NaN."""
    best = logits.argmax(-1, keepdim=True) if ranks == 1 else logits.topk(ranks).indices
    return best.masked_fill(logits.isnan().any(-1, keepdim=True), -1).int().cpu()
