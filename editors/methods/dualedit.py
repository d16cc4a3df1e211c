"""DualEdit: adapters for text and for visual states, each at its own layer, behind one gate."""

from dataclasses import dataclass
from typing import ClassVar

from editors.methods.adapter_editor import AdapterEditor


@dataclass(frozen=True, eq=False)
class DualEdit(AdapterEditor):
    """Text and visual adapters (DualEdit, section 4); one modality alone is its Table 1.

    Trained without the gate, as published. Unlike published, text-only locality is part of the
    loss, as the paper says (its code leaves it out, and without a gate T-Loc falls).
    """

    name: ClassVar[str] = "dualedit"
    modalities: ClassVar[tuple[str, ...]] = ("text", "visual")
    own_gate: ClassVar[str] = "prompt_last"
