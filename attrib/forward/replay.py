"""Run the later part of a forward pass again, on hidden states of one's own.

What a decoder layer needs besides hidden states (masks, rotary tables) is the same for every
version of a batch, so the arguments that one pass gave its layers serve any number of later ones.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import first_tensor, keep_in, on_input, on_output
from attrib.model.vlm import VLM

# Of this pass alone: a layer that is run again must not append to its cache.
UNREPEATED = ("past_key_values", "use_cache")


@dataclass(frozen=True, eq=False)
class Captured:
    """How one forward pass called the decoder layers (`attrib.forward.hooks.capture`).

    Attributes:
        inputs: Per layer what entered it: the stream as the layer before left it, and as it came
            in. The two differ where something is written between layers (Qwen3-VL); both are kept
            for such layers and for layer 0 alone.
        calls: Per layer the other arguments.
    """

    inputs: dict[int, tuple[Tensor, Tensor]]
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]]

    @property
    def embed(self) -> Float[Tensor, "batch pos d_model"]:
        """The stream entering layer 0."""
        if not self.calls:
            raise AttribError("nothing is captured: run one forward pass inside capture(vlm)")
        return self.inputs[0][1]

    def note(
        self, layer: int, before: Tensor, h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Keep the call of one layer."""
        if layer == 0:
            self.inputs.clear()
        if layer == 0 or before is not h:
            self.inputs[layer] = (before, h)
        kept = {name: value for name, value in kwargs.items() if name not in UNREPEATED}
        self.calls[layer] = (args, kept)


def logits_from(
    vlm: VLM, captured: Captured, layer: int, hidden: Float[Tensor, "copies pos d_model"]
) -> Float[Tensor, "copies pos d_vocab"]:
    """Logits of re-running the layers after `layer` on `hidden`.

    On the captured pass's own hidden states the result is bit-equal to its logits.

    Args:
        vlm: The model.
        captured: From `capture`, over a forward pass of the batch.
        layer: Whose output `hidden` is; -1 for the stream entering layer 0.
        hidden: The captured batch, or several copies of it one after the other.

    Raises:
        AttribError: `hidden` is not a multiple of the captured batch.
    """
    return vlm.unembed(forward_from(vlm, captured, layer, hidden))


def forward_from(
    vlm: VLM, captured: Captured, layer: int, hidden: Float[Tensor, "copies pos d_model"]
) -> Float[Tensor, "copies pos d_model"]:
    """The last layer's output of re-running the layers after `layer`; see `resume`."""
    batch = len(captured.embed)
    if hidden.shape[1:] != captured.embed.shape[1:] or len(hidden) % batch:
        raise AttribError(
            f"resume: hidden is {tuple(hidden.shape)}, the captured pass "
            f"{tuple(captured.embed.shape)}; expected the same shape, or a multiple of its batch"
        )
    for i in range(layer + 1, vlm.num_layers):
        if i > 0 and i in captured.inputs:
            before, after = (_repeat(h, batch, len(hidden)) for h in captured.inputs[i])
            # Where the stream is as it was, so is what it becomes, to the last bit.
            hidden = torch.where(hidden == before, after, hidden + (after - before))
        args, kwargs = (_repeat(part, batch, len(hidden)) for part in captured.calls[i])
        hidden = first_tensor(vlm.layers[i](hidden, *args, **kwargs))
    return hidden


def _repeat(value: Any, batch: int, num: int) -> Any:
    """`value` for `num` instead of `batch` examples, inside tuples and dicts too."""
    if isinstance(value, tuple):
        return tuple(_repeat(part, batch, num) for part in value)
    if isinstance(value, dict):
        return {name: _repeat(part, batch, num) for name, part in value.items()}
    if isinstance(value, Tensor) and num > batch and value.ndim and len(value) == batch:
        return value.repeat(num // batch, *[1] * (value.ndim - 1))
    return value


@contextmanager
def capture(vlm: VLM) -> Iterator[Captured]:
    """Keep how the forward pass inside the context calls the layers, for `resume`."""
    captured = Captured({}, {})
    last: dict[int, Tensor] = {}

    def enterer(layer: int) -> Callable[[Tensor, tuple[Any, ...], dict[str, Any]], None]:
        def enter(h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # The one layer before wrote `h`, unless something was added in between (Qwen3-VL).
            before = last.pop(layer - 1, h)
            captured.note(layer, before, h, args, kwargs)

        return enter

    with ExitStack() as stack:
        for i, layer in enumerate(vlm.layers):
            stack.enter_context(on_input(layer, enterer(i)))
            stack.enter_context(on_output(layer, keep_in(last, i)))
        yield captured
