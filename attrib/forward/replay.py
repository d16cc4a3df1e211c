"""Run the later part of a forward pass again, on hidden states of one's own.

What a decoder layer needs besides hidden states (masks, rotary tables) is the same for every
version of a batch, so the arguments that one pass gave its layers serve any number of later ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.errors import AttribError
from attrib.model.vlm import VLM

# Of this pass alone: a layer that is run again must not append to its cache.
NOT_REPEATED = ("past_key_values", "use_cache")


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
        kept = {name: value for name, value in kwargs.items() if name not in NOT_REPEATED}
        self.calls[layer] = (args, kept)


def resume(
    vlm: VLM, captured: Captured, layer: int, hidden: Float[Tensor, "versions pos d_model"]
) -> Float[Tensor, "versions pos d_vocab"]:
    """Logits of re-running the layers after `layer` on `hidden`.

    On the captured pass's own hidden states the result is bit-equal to its logits.

    Args:
        vlm: The model.
        captured: From `capture`, over a forward pass of the batch.
        layer: Whose output `hidden` is; -1 for the stream entering layer 0.
        hidden: The captured batch, or several versions of it one after the other.

    Raises:
        AttribError: `hidden` is not a multiple of the captured batch.
    """
    return vlm.unembed(rerun(vlm, captured, layer, hidden))


def rerun(
    vlm: VLM, captured: Captured, layer: int, hidden: Float[Tensor, "versions pos d_model"]
) -> Float[Tensor, "versions pos d_model"]:
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


def first_tensor(output: Any) -> Tensor:
    """The hidden states a module returns: alone, or (older transformers) first of a tuple."""
    return output[0] if isinstance(output, tuple) else output
