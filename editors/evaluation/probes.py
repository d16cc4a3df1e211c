"""What one edit is evaluated on, as batches, and the answers of a model to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float, Int
from torch import Tensor

from attrib.data.rows import typed_hard_locality
from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.kept_pass import KeptPass
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.forced_pass import ForcedPass, answer_logits, is_supported, without_target
from attrib.model.vlm import VLM
from editors.base import encode_requests, require_encodable
from editors.evaluation.protocols import (
    GENERATED,
    LONGEST_LOCALITY,
    METRIC_OF,
    PORT,
    RANKS,
    SPARE,
    Answer,
    is_gold,
)


@dataclass(frozen=True, eq=False)
class Probe:
    """One input and the metric that it tests: "rel", "t_gen", ..., or a type of hard locality."""

    metric: str
    request: EditRequest


def probes_of(sample: EditSample) -> list[Probe]:
    """Return everything that a sample's edit is evaluated on, inputs with an image first."""
    found = [Probe("rel", sample.request)]
    for name, metric in list(METRIC_OF.items())[1:]:
        found += [Probe(metric, request) for request in getattr(sample, name)]
    found += [Probe(*pair) for pair in typed_hard_locality(sample)]
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
        kept: What is kept of the unedited model's pass over each batch; none where it did not run.
    """

    probes: list[Probe]
    batches: list[Batch]
    protocols: tuple[str, ...]
    longest: int
    kept: list[KeptPass | None] = field(default_factory=list, init=False, repr=False)

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

    def by_batch(self, rows: Sequence[int]) -> Iterator[tuple[int, list[int], list[Probe]]]:
        """Of each batch with some of the probes: its number, their rows in it, all its probes."""
        start = 0
        for number, batch in enumerate(self.batches):
            stop = start + batch.size
            if at := [row - start for row in rows if start <= row < stop]:
                yield number, at, self.probes[start:stop]
            start = stop

    def whole_batches(self, rows: Sequence[int]) -> "tuple[EncodedProbes, list[int]]":
        """The batches with some of the probes, and where in them these probes are."""
        probes: list[Probe] = []
        batches, places = [], []
        for number, at, some in self.by_batch(rows):
            places += [len(probes) + i for i in at]
            probes += some
            batches.append(self.batches[number])
        return replace(self, probes=probes, batches=batches), places

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

    def unedited_answers(self, vlm: VLM) -> list[Answer]:
        """Return the answers of the unedited model, and keep its passes for the edited one."""
        answers: list[Answer] = []
        for batch in self.batches:
            probes, kept = self.probes[len(answers) :], None
            if self._generates and is_supported(vlm, batch):
                run, kept = KeptPass.run(vlm, batch, whole=self._reads_prompts)
                answers += self.read(run, probes)
            else:
                answers += self._answers(vlm, batch, probes, causal=True)
            self.kept.append(kept)
        return answers

    def read(self, run: ForcedPass, probes: Sequence[Probe]) -> list[Answer]:
        """The answers to probes from a pass over them; usable once."""
        forced, texts = self._forced(run.logits, run.batch, probes), run.texts(self.longest)
        return [replace(one, text=text) for one, text in zip(forced, texts, strict=True)]

    def _answers(
        self, vlm: VLM, batch: Batch, probes: Sequence[Probe], causal: bool
    ) -> list[Answer]:
        if not self._generates:
            return self._forced(self._logits(vlm, batch), batch, probes)
        if causal and is_supported(vlm, batch):
            return self.read(ForcedPass.run(vlm, batch, whole=self._reads_prompts), probes)
        forced = self._forced(self._logits(vlm, batch), batch, probes)
        texts = vlm.generate(without_target(vlm, batch), self.longest)
        return [replace(one, text=text) for one, text in zip(forced, texts, strict=True)]

    @property
    def _generates(self) -> bool:
        return bool(set(GENERATED) & set(self.protocols))

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
