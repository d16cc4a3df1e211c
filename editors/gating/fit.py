"""A gate by its name, fitted to training edits."""

from collections.abc import Sequence
from typing import Any, cast

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.gating.gates import CosineGate, LearnedGate, Token
from editors.gating.training import fit_cosine_gate, train_gate

NO_GATE = "none"
COSINES = ("prompt_last", "sequence_last")
GATES = (NO_GATE, *COSINES, "learned")


def check_gate(name: str) -> None:
    """Refuse a gate that there is not.

    Raises:
        AttribError: There is no gate of this name.
    """
    if name not in GATES:
        raise AttribError(f"no gate {name!r}; there are {', '.join(GATES)}")


def fit_gate(
    name: str, vlm: VLM, samples: Sequence[EditSample], layer: int, **settings: Any
) -> CosineGate | LearnedGate | None:
    """The gate of a name, which reads `layer`, with a threshold from `samples`; None for "none".

    Args:
        name: One of `GATES`: "prompt_last" compares the last prompt token, "sequence_last" the last
            target token, which reads the gold answer (DualEdit's program), "learned" is a small
            network on prompts alone.
        vlm: The model.
        samples: Training edits.
        layer: Whose output is read; the first layer that is written.
        settings: Of `cosine_gate` or `train_gate`.
    """
    check_gate(name)
    if name == NO_GATE:
        return None
    if name in COSINES:
        return fit_cosine_gate(vlm, samples, layer, cast("Token", name), **settings)
    return train_gate(vlm, samples, [layer], **settings)
