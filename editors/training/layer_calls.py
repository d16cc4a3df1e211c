"""Decoder layers that run with what is trained applied, again if the backward pass recomputes them.

Activation checkpointing (Chen et al. 2016): of each layer only its input is kept for the backward
pass, which runs the layer once more. By then the context around the forward pass is left. So what
is trained is applied to each layer when it runs, not to the model around the pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from attrib.model.vlm import VLM
from attrib.model.wrapped import eager, in_place_of

# Calls a function, which runs a decoder layer, with what is trained applied to that layer.
LayerCall = Callable[[int, Callable[[], Any]], Any]


@contextmanager
def around_layers(vlm: VLM, call: LayerCall, recompute: bool) -> Iterator[None]:
    """Run every decoder layer inside `call` in the passes inside the context.

    Args:
        vlm: The model; hooks of its layers run outside `call`, once.
        call: Gets the number of the layer, and the function that runs it.
        recompute: Keep only the layers' inputs for the backward pass, which may come after the
            context is left: it runs the layers again, inside `call`.
    """

    def run(layer: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with eager():
            return call(layer, lambda: forward(*args, **kwargs))

    def run_again(*args: Any, **kwargs: Any) -> Any:
        # To their ends, where hooks free weights that they loaded. Nothing is random: a `VLM` has
        # no active dropout.
        with set_checkpoint_early_stop(False):
            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    with ExitStack() as stack:
        for layer, module in enumerate(vlm.layers):
            forward = partial(run_again if recompute else run, layer, module.forward)
            stack.enter_context(in_place_of([module], forward))
        yield
