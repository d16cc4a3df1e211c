"""A pass that ends after the last layer that is needed."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from attrib.forward.hooks import StopForward, on_output, read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


def states_up_to(
    vlm: VLM, batch: Batch, layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch pos d_model"]]:
    """The output of some layers, as `read` has it; the layers after them do not run.

    Where layers are offloaded, the whole model runs: what moves weights acts after each layer.

    Args:
        vlm: The model.
        batch: The inputs.
        layers: The layers, counted from 0.
    """

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
