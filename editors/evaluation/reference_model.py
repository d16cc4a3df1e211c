"""What the unedited model says: the same for every editor, so it is asked once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.evaluation.probes import Inputs
from editors.evaluation.protocols import PROTOCOLS, Answer
from editors.evaluation.restore_check import Checksum

DEFAULT_PROTOCOLS = ("paper", "exact", "generate")


@dataclass(eq=False)
class ReferenceModel:
    """A model before any edit, and its answers to what samples are judged by.

        unedited = Unedited(vlm)
        for editor in editors:
            evaluate(vlm, editor, samples, unedited=unedited)  # the model itself is asked once

    Attributes:
        vlm: The model.
        protocols: What answers will be judged by.
        batch_size: Inputs in a pass. It is fixed here, because the last bits of logits depend on
            what else is in a batch, and unedited and edited answers are compared.
        checksum: The model's, taken when this is made.
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

    def inputs(self, sample: EditSample) -> Inputs:
        """Everything a sample is judged by, encoded for this model."""
        return Inputs.of(self.vlm, sample, self.protocols, self.batch_size)

    def answers(self, sample: EditSample, inputs: Inputs) -> list[Answer]:
        """What the unedited model says to the inputs of a sample.

        Raises:
            AttribError: The model's logits are no numbers.
        """
        requests = [question.request for question in inputs.questions]
        key = (sample.id, *(text for r in requests for text in (r.prompt, r.target)))
        if key not in self._answers:
            answers = inputs.ask(self.vlm)
            if any(bool((answer.forced < 0).any()) for answer in answers):
                raise AttribError("the unedited model's logits are no numbers (NaN)")
            self._answers[key] = answers
        return self._answers[key]

    def require_restored(self, editor: str, sample: str) -> None:
        """Nothing, if the model is what it was, bit for bit.

        Raises:
            NotRestored: naming the editor and what changed.
        """
        self.checksum.require(Checksum.of(self.vlm.model), editor, sample)
