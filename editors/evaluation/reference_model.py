"""The unedited model as reference: its answers, computed once for all editors."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.evaluation.probes import EncodedProbes
from editors.evaluation.protocols import PROTOCOLS, Answer
from editors.evaluation.restore_check import Checksum

DEFAULT_PROTOCOLS = ("paper", "exact", "generate")


@dataclass(eq=False)
class ReferenceModel:
    """A model before any edit, and its answers to the probes of samples.

        reference = ReferenceModel(vlm)
        for editor in editors:
            evaluate(vlm, editor, samples, reference=reference)  # answers are computed once

    Attributes:
        vlm: The model.
        protocols: Protocols by which answers will be scored.
        batch_size: Inputs per pass. It is fixed here, because the last bits of logits depend on
            what else is in a batch, and unedited and edited answers are compared.
        checksum: The model's checksum at the start.
    """

    vlm: VLM
    protocols: Sequence[str] = DEFAULT_PROTOCOLS
    batch_size: int = 16
    checksum: Checksum = field(init=False)
    _answers: dict[tuple[str, ...], list[Answer]] = field(default_factory=dict, init=False)

    def __post_init__(self):
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols:
            named = f"no protocol {unknown[0]!r}" if unknown else "no protocol at all"
            raise AttribError(f"{named}; protocols are {', '.join(PROTOCOLS)}")
        if self.batch_size < 1:
            raise AttribError(f"batch size: expected 1 or more, got {self.batch_size}")
        self.checksum = Checksum.of(self.vlm.model)

    def encode(self, sample: EditSample) -> EncodedProbes:
        """Encode the probes of a sample for this model."""
        return EncodedProbes.of(self.vlm, sample, self.protocols, self.batch_size)

    def answers(self, sample: EditSample, probes: EncodedProbes) -> list[Answer]:
        """Return the unedited model's answers to the probes of a sample.

        Raises:
            AttribError: The model's logits are NaN.
        """
        requests = [probe.request for probe in probes.probes]
        key = (sample.id, *(text for r in requests for text in (r.prompt, r.target)))
        if key not in self._answers:
            answers = probes.answers(self.vlm)
            if any(bool((answer.forced < 0).any()) for answer in answers):
                raise AttribError("the unedited model's logits are no numbers (NaN)")
            self._answers[key] = answers
        return self._answers[key]

    def require_restored(self, editor: str, sample: str) -> None:
        """Raise NotRestored, naming the editor and what changed, unless every bit is as before."""
        self.checksum.require(Checksum.of(self.vlm.model), editor, sample)
