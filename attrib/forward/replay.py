"""Replay the later layers of a captured forward pass on other hidden states.

The arguments of a decoder layer besides hidden states (masks, rotary tables) are the same for every
modified copy of a batch, so those of one pass serve any number of replays.
"""

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from attrib.errors import AttribError
from attrib.forward.hooks import first_tensor, on_input, on_output
from attrib.model.vlm import VLM
from attrib.model.wrapped import eager

Call = tuple[tuple[Any, ...], dict[str, Any]]  # other positional arguments, keyword arguments

# Arguments of one pass only: a replayed layer must not append to the cache.
UNREPEATED = ("past_key_values", "use_cache")


def without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a layer without its cache, and with mappings as they are now.

    Layers write to some of these (Gemma 4 shares keys and values in one).
    """
    return {
        name: copy(value) if isinstance(value, MutableMapping) else value
        for name, value in kwargs.items()
        if name not in UNREPEATED
    }


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `fn` of every tensor in it, also in mappings that torch does not look into."""

    def leaf(one: Any) -> Any:
        if isinstance(one, MutableMapping):
            mapping: Any = type(one)
            return mapping({key: map_tensors(fn, inner) for key, inner in one.items()})
        return fn(one) if isinstance(one, Tensor) else one

    return tree_map(leaf, value)


@dataclass(frozen=True, eq=False)
class Captured:
    """Inputs of the decoder layers in one forward pass.

    Attributes:
        inputs: Per layer the output of the layer before, and the input itself. They differ where
            something is written between layers (Qwen3-VL); kept for those layers and for layer 0.
        calls: Per layer its other arguments.
        handed: Per layer the names of arguments that the layer before returned besides its states
            (the keys that Mistral Large 4 selects), and their places in what it returned.
    """

    inputs: dict[int, tuple[Tensor, Tensor]]
    calls: dict[int, Call]
    handed: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def carries(self) -> bool:
        """Whether layers hand each other more than the stream."""
        kwargs = (value for _, call in self.calls.values() for value in call.values())
        return bool(self.handed) or any(isinstance(value, MutableMapping) for value in kwargs)

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
    returned: dict[int, Any] = {}

    def recorder(layer: int) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]:
        def record(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # `h` is the previous layer's output, unless something was added (Qwen3-VL).
            before = last.pop(layer - 1, h)
            if layer == 0:
                captured.inputs.clear()
            if layer == 0 or before is not h:
                captured.inputs[layer] = (before, h)
            captured.calls[layer] = (args, without_cache(kwargs))
            captured.handed.pop(layer, None)
            if found := _places(kwargs, returned.pop(layer - 1, None)):
                captured.handed[layer] = found

        return record

    def keeper(layer: int) -> Callable[[Any], None]:
        def keep(output: Any) -> None:
            last[layer], returned[layer] = first_tensor(output), output

        return keep

    with ExitStack() as stack:
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(on_input(layer, recorder(i)))
            stack.enter_context(on_output(layer, keeper(i), whole=True))
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
    return run_layers(
        vlm,
        captured,
        layer,
        hidden,
        lambda h, i: captured.entering(i, h),
        lambda call: _repeat(call, batch, len(hidden)),
    )


def run_layers(
    vlm: VLM,
    captured: Captured,
    layer: int,
    hidden: Float[Tensor, "copies pos d_model"],
    entering: Callable[[Tensor, int], Tensor],
    select: Callable[[Call], Call],
) -> Float[Tensor, "copies pos d_model"]:
    """Run the layers after `layer` one after the other, with all that they hand each other.

    Args:
        vlm: The model.
        captured: From `capture`.
        layer: The layer that returned `hidden`.
        hidden: Its output for the copies.
        entering: Maps the output of the layer before and the index of a layer to its input.
        select: Maps a call of the captured pass to that for the copies.
    """
    written: dict[str, dict[Any, Any]] = {}  # by this run, into mappings that layers share
    output: Any = None
    for i in range(layer + 1, vlm.num_layers):
        args, kwargs = select(captured.calls[i])
        shared = {n: value for n, value in kwargs.items() if isinstance(value, MutableMapping)}
        for name, mapping in shared.items():
            mapping.update(written.setdefault(name, {}))
        before = {name: dict(mapping) for name, mapping in shared.items()}
        if output is not None:
            kwargs |= {name: output[place] for name, place in captured.handed.get(i, {}).items()}
        output = vlm.layers[i](entering(hidden, i), *args, **kwargs)
        hidden = first_tensor(output)
        for name, mapping in shared.items():
            new = {k: v for k, v in mapping.items() if before[name].get(k) is not v}
            written[name].update(new)
    return hidden


def _places(kwargs: dict[str, Any], returned: Any) -> dict[str, int]:
    """The arguments of a layer that the layer before returned, and where."""
    if not isinstance(returned, tuple):
        return {}
    places = {id(value): i for i, value in enumerate(returned) if i and isinstance(value, Tensor)}
    return {name: places[id(value)] for name, value in kwargs.items() if id(value) in places}


def _repeat(value: Any, batch: int, num: int) -> Any:
    """Repeat the tensors in `value` that have `batch` rows, up to `num` rows."""

    def repeat(tensor: Tensor) -> Tensor:
        if num == batch or not tensor.ndim or len(tensor) != batch:
            return tensor
        return tensor.repeat(num // batch, *[1] * (tensor.ndim - 1))

    return map_tensors(repeat, value)


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
