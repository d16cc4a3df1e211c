"""Costs of an edit that take an effort to measure: peak memory, and fluency afterwards."""

from collections.abc import Callable
from dataclasses import dataclass, field

from attrib.forward.peak_memory import peak_bytes
from attrib.model.batch import Batch
from attrib.model.forced_pass import without_target
from attrib.model.vlm import VLM
from editors.evaluation.fluency import fluency


@dataclass(frozen=True)
class ExtraCosts:
    """What to measure besides times and bytes.

    Attributes:
        fluency: Tokens generated after a request, before and after its edit; 0 for none.
        peak: Whether to measure the peak memory of making an edit: once, in an edit of its own.
    """

    fluency: int = 0
    peak: bool = False
    _measured: list[str] = field(default_factory=list, compare=False, repr=False)

    def making(self, vlm: VLM, sample: str, edit: Callable[[], object]) -> dict[str, float]:
        """The peak memory of making an edit, of the first sample alone."""
        if not self.peak or self._measured:
            return {}
        self._measured.append(sample)
        return {"peak_bytes": float(peak_bytes(edit, vlm.device))}

    def writing(self, vlm: VLM, batch: Batch, when: str) -> dict[str, float]:
        """Fluency of the model in its current state on a request's prompt."""
        if not self.fluency:
            return {}
        prompt = batch if batch.labels is None else without_target(vlm, batch)
        found = fluency(vlm, prompt, self.fluency)
        return {f"{name}_{when}": value for name, value in found.items()}


NO_EXTRA = ExtraCosts()
