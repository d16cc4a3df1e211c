"""A pass that ends after the last layer that is needed."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from attrib.forward.hooks import StopForward, on_output, read
from attrib.forward.replay import Captured, capture
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.model.wrapped import in_place_of


def states_up_to(
    vlm: VLM, batch: Batch, layers: Sequence[int], known: Mapping[int, Tensor] | None = None
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The output of some layers, as `read` has it; the layers after them do not run.

    Where layers are offloaded, the whole model runs: what moves weights acts after each layer.

    Args:
        vlm: The model.
        batch: The inputs.
        layers: The layers, counted from 0.
        known: The outputs of the layers for these inputs, where they are known: nothing runs.
    """
    if known is not None:
        return {layer: known[layer] for layer in layers}

    def stop(h: Tensor) -> None:
        raise StopForward(h)

    with read(vlm, layers) as hidden:
        if not layers or getattr(vlm.model, "hf_device_map", None):
            vlm.logits(batch)
            return dict(hidden)
        with on_output(vlm.layers[max(layers)], stop):
            try:
                vlm.logits(batch)
            except StopForward:
                return dict(hidden)
    raise AssertionError("a pass ran past its last layer")


def states_and_calls(
    vlm: VLM, batch: Batch, layers: Sequence[int]
) -> tuple[dict[int, Float[Tensor, "batch pos d_model"]], Captured]:
    """The output of some layers, and the arguments of all; the layers after them compute nothing.

    They return zeros, so that what a model adds between them (Qwen3-VL) is recorded as it is. Where
    layers are offloaded, the whole model runs.

    Args:
        vlm: The model.
        batch: The inputs.
        layers: The layers, counted from 0.
    """
    end = max(layers, default=0)
    with capture(vlm) as captured:
        if end == vlm.num_layers - 1 or getattr(vlm.model, "hf_device_map", None):
            return states_up_to(vlm, batch, sorted({*layers, vlm.num_layers - 1})), captured
        with read(vlm, layers) as hidden:
            _run_up_to(vlm, batch, end)
    return dict(hidden), captured


def _run_up_to(vlm: VLM, batch: Batch, end: int) -> None:
    """Run the layers up to `end`, call those after it, and stop at the last."""
    returned: list[Any] = []

    def zeros(h: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        nothing = h.new_zeros(h.shape)
        whole = returned[0]
        return (nothing, *whole[1:]) if isinstance(whole, tuple) else nothing

    def stop(*_args: Any, **_kwargs: Any) -> None:
        raise StopForward(None)

    *between, last = vlm.layers[end + 1 :]
    with (
        on_output(vlm.layers[end], returned.append, whole=True),
        in_place_of(between, zeros),
        in_place_of([last], stop),
    ):
        try:
            vlm.logits(batch)
        except StopForward:
            return
    raise AssertionError("a pass ran past its last layer")
