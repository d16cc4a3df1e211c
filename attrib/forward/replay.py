"""Replay the later layers of a captured forward pass on other hidden states.

The arguments of a decoder layer besides hidden states (masks, rotary tables) are the same for every
modified copy of a batch, so those of one pass serve any number of replays.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only

from attrib.errors import AttribError
from attrib.forward.hooks import first_tensor, on_input, on_output, store
from attrib.model.vlm import VLM
from attrib.model.wrapped import eager

Call = tuple[tuple[Any, ...], dict[str, Any]]  # other positional arguments, keyword arguments

# Arguments of one pass only: a replayed layer must not append to the cache.
UNREPEATED = ("past_key_values", "use_cache")


def without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a layer without its cache."""
    return {name: value for name, value in kwargs.items() if name not in UNREPEATED}


@dataclass(frozen=True, eq=False)
class Captured:
    """Inputs of the decoder layers in one forward pass.

    Attributes:
        inputs: Per layer the output of the layer before, and the input itself. They differ where
            something is written between layers (Qwen3-VL); kept for those layers and for layer 0.
        calls: Per layer its other arguments.
    """

    inputs: dict[int, tuple[Tensor, Tensor]]
    calls: dict[int, Call]

    @property
    def embed(self) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream entering layer 0."""
        if not self.calls:
            raise AttribError("nothing is captured: run one forward pass inside capture(vlm)")
        return self.inputs[0][1]

    def entering(
        self, layer: int, h: Float[Tensor, "copies pos d_model"]
    ) -> Float[Tensor, "copies pos d_model"]:
        """The input of `layer` if the layer before returned `h`."""
        if layer == 0 or layer not in self.inputs:
            return h
        return between_layers(h, *_repeat(self.inputs[layer], len(self.embed), len(h)))


def between_layers(h: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Add to `h` the change from `before` to `after`; bit-identical to `after` where unchanged."""
    return torch.where(h == before, after, h + (after - before))


@contextmanager
def capture(vlm: VLM) -> Iterator[Captured]:
    """Record the arguments of each layer call of the forward pass inside the context."""
    captured = Captured({}, {})
    last: dict[int, Tensor] = {}

    def recorder(layer: int) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]:
        def record(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # `h` is the previous layer's output, unless something was added (Qwen3-VL).
            before = last.pop(layer - 1, h)
            if layer == 0:
                captured.inputs.clear()
            if layer == 0 or before is not h:
                captured.inputs[layer] = (before, h)
            captured.calls[layer] = (args, without_cache(kwargs))

        return record

    with ExitStack() as stack:
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(on_input(layer, recorder(i)))
            stack.enter_context(on_output(layer, store(last, i)))
        yield captured


def logits_from(
    vlm: VLM, captured: Captured, layer: int, hidden: Float[Tensor, "copies pos d_model"]
) -> Float[Tensor, "copies pos d_vocab"]:
    """Logits after replaying the layers after `layer` on `hidden`.

    On the hidden states of the captured pass the result is bit-equal to its logits.

    Args:
        vlm: The model.
        captured: From `capture`, over a forward pass of the batch.
        layer: Layer whose output is replaced by `hidden`; -1 for the input of layer 0.
        hidden: States of the captured batch, or of several copies of it one after the other.

    Raises:
        AttribError: `hidden` is not a multiple of the captured batch.
    """
    return vlm.unembed(forward_from(vlm, captured, layer, hidden))


@eager()
def forward_from(
    vlm: VLM, captured: Captured, layer: int, hidden: Float[Tensor, "copies pos d_model"]
) -> Float[Tensor, "copies pos d_model"]:
    """The last layer's output after replaying the layers after `layer`; see `logits_from`."""
    batch = len(captured.embed)
    if hidden.shape[1:] != captured.embed.shape[1:] or len(hidden) % batch:
        raise AttribError(
            f"forward_from: hidden is {tuple(hidden.shape)}, the captured pass "
            f"{tuple(captured.embed.shape)}; expected the same shape, or a multiple of its batch"
        )
    for i in range(layer + 1, vlm.num_layers):
        hidden = captured.entering(i, hidden)
        args, kwargs = _repeat(captured.calls[i], batch, len(hidden))
        hidden = first_tensor(vlm.layers[i](hidden, *args, **kwargs))
    return hidden


def _repeat(value: Any, batch: int, num: int) -> Any:
    """Repeat the tensors in `value` that have `batch` rows, up to `num` rows."""

    def repeat(tensor: Tensor) -> Tensor:
        if num == batch or not tensor.ndim or len(tensor) != batch:
            return tensor
        return tensor.repeat(num // batch, *[1] * (tensor.ndim - 1))

    return tree_map_only(Tensor, repeat, value)


@dataclass(frozen=True, eq=False)
class CleanPass:
    """An unperturbed forward pass over a batch.

    Attributes:
        vlm: The model.
        captured: Arguments of its layer calls.
        hidden: Every layer's output, "batch pos d_model".
        logits: Logits of the next token at the last prompt token.
        last: Index of the last prompt token in each example.
        real: Which positions are not padding.
    """

    vlm: VLM
    captured: Captured
    hidden: dict[int, Tensor]
    logits: Float[Tensor, "batch d_vocab"]
    last: Int[Tensor, " batch"]
    real: Bool[Tensor, "batch pos"]


resume = logits_from  # former name
