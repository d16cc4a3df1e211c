"""The modules before the decoder, found by structure: vision tower, Q-Former, projector."""

from collections.abc import Iterator
from typing import Literal

from torch import nn

from attrib.errors import SetupError
from attrib.model.vlm import VLM

Part = Literal["connector", "projection", "vision_tower"]
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
DESCRIPTIONS = {
    "connector": "projector or Q-Former",
    "projection": "projector",
    "vision_tower": "vision tower",
}


def visual_parameters(vlm: VLM, part: Part) -> dict[str, nn.Parameter]:
    """The parameters of a module before the decoder, by name.

    Args:
        vlm: The model.
        part: "connector" is the Q-Former if there is one, else the projector; "projection" the
            projector in any case; "vision_tower" the module that both read.

    Raises:
        SetupError: The model has no such part.
    """
    towers, between = [], []
    for name, module in _in_front(vlm, vlm.model, ""):
        (towers if _has(module, CONVOLUTIONS) else between).append((name, module))
    stacks = [pair for pair in between if _has(pair[1], (nn.ModuleList,))]
    plain = [pair for pair in between if not _has(pair[1], (nn.ModuleList,))]
    mergers = [pair for tower in towers for pair in _mergers(vlm, *tower)]
    found = {
        "connector": stacks or plain or mergers,
        "projection": plain or mergers,
        "vision_tower": towers,
    }
    named = {
        f"{name}.{key}": value
        for name, module in found[part]
        for key, value in module.named_parameters()
    }
    if not named:
        raise SetupError(
            f"{vlm.name} has no {DESCRIPTIONS[part]} to train; ft-l trains the last layer's MLP "
            "instead, and works with any model"
        )
    return named


def _in_front(vlm: VLM, module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules beside the language model, however deep both are nested."""
    for name, child in module.named_children():
        here = f"{path}{name}"
        holds_decoder = any(part is vlm.components.decoder for part in child.modules())
        if holds_decoder and _has(child, CONVOLUTIONS):
            yield from _in_front(vlm, child, f"{here}.")
        elif not holds_decoder and child is not vlm.components.head and _any_parameter(child):
            yield here, child


def _mergers(vlm: VLM, path: str, tower: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Projectors inside the vision tower (the Qwen family)."""
    for name, child in tower.named_children():
        plain = not _has(child, (*CONVOLUTIONS, nn.ModuleList))
        if plain and any(
            isinstance(m, nn.Linear) and m.out_features == vlm.d_model for m in child.modules()
        ):
            yield f"{path}.{name}", child


def _has(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(part, kinds) for part in module.modules())


def _any_parameter(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
