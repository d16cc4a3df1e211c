"""DualEdit: adapters for text and for visual states, each at its own layer, behind one gate."""

from dataclasses import dataclass
from typing import ClassVar

from editors.methods.adapter_editor import AdapterEditor


@dataclass(frozen=True, eq=False, repr=False)
class DualEdit(AdapterEditor):
    """Text and visual adapters (DualEdit, section 4); one modality alone is an ablation (Table 1).

    Trained without the gate, as published. Text-only locality is part of the loss, as in the
    paper; the published code leaves it out, and without a gate T-Loc then falls.
    """

    name: ClassVar[str] = "dualedit"
    modalities: ClassVar[tuple[str, ...]] = ("text", "visual")
    default_gate: ClassVar[str] = "prompt_last"
