"""Settings of editors, chosen and changed by name; what an editor has no use for is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.gating.gates import NO_GATE
from editors.training.config import SMALL
from editors.training.setting_values import check_value

# Of `Weights`, but about adapters alone.
NOT_OURS = ("influence", "mapper_terms")


def settings_of(
    vlm: VLM,
    presets: Mapping[str, Sequence[Any]],
    preset: str,
    changes: Mapping[str, Any],
) -> list[Any]:
    """The parts (frozen dataclasses) of a preset, with changes; each goes to the first that has it.

    Args:
        vlm: The model; "auto" is "embedded" for small ones.
        presets: By name.
        preset: Which.
        changes: Settings by name.

    Raises:
        AttribError: There is no such preset or setting, or a setting has no such value.
    """
    if preset == "auto":
        preset = "embedded" if vlm.d_model < SMALL else "published"
    if preset not in presets:
        raise AttribError(f"no preset {preset!r}; there are auto, {', '.join(presets)}")
    parts = list(presets[preset])
    known = {name: at for at in reversed(range(len(parts))) for name in _names(parts[at])}
    for name, value in changes.items():
        if name not in known:
            raise AttribError(f"no setting {name!r}; there are {', '.join(sorted(known))}")
        at = known[name]
        check_value(type(parts[at]), name, value)
        parts[at] = replace(parts[at], **{name: value})
    return parts


def refuse_gate(name: str, gate: str | None) -> None:
    """Refuse a gate for an editor whose edits hold for every input."""
    if gate not in (None, NO_GATE):
        raise AttribError(
            f"{name} changes the model for every input and takes no gate; leave gate={gate!r} out"
        )


def refuse_layers(name: str, layers: Any, instead: str) -> None:
    """Refuse layers for an editor that writes none, saying what it does `instead`.

    Raises:
        AttribError: Layers are given.
    """
    if layers:
        raise AttribError(f"{name} writes no layer, {instead}; leave layers out")


def _names(part: Any) -> list[str]:
    return [f.name for f in fields(part) if f.name not in NOT_OURS]
