"""How SERAC is set up: the sizes of its networks, and presets of them."""

from dataclasses import dataclass

import torch

from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.methods.serac_networks import Counterfactual, Networks, Scope
from editors.training.losses import Weights
from editors.training.trainer import Training


@dataclass(frozen=True)
class SERACSettings:
    """The sizes of the two networks, and what the classifier reads.

    Attributes:
        width: Of the counterfactual model (published: 768, OPT-125m's).
        num_layers: Its layers (12).
        num_heads: Its attention heads (12), and the classifier's.
        scope_width: Of the classifier (768, BERT's).
        scope_num_layers: Its layers (12).
        scope_layer: Of the model, whose states it reads; None for the middle one.
        scope_weight: Of its part of the loss.
        own_units: Whether both see every channel in units of its standard deviation over the
            training edits, and answers are made in such units (not published): single channels of
            large models hide the others.
    """

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    scope_width: int = 768
    scope_num_layers: int = 12
    scope_layer: int | None = None
    scope_weight: float = 1.0
    own_units: bool = False


SMALL = Training(
    steps=800,
    batch_size=8,
    optimizer="muon",
    learning_rate=5e-3,  # at 2e-2 no phrase is copied after 400 steps: LOG.md
    warmup=30,
    decay="cosine",
    clip=1.0,
    validate_every=50,
    save_every=50,
)
PRESETS = {
    "published": [Training(), Weights(), SERACSettings()],
    "embedded": [
        SMALL,
        # Unrelated inputs are the classifier's business. For the small model they only take
        # learning from the rest: it would have to be a second vision-language model (LOG.md).
        Weights(locality=0.01),
        SERACSettings(
            width=128,
            num_layers=3,
            num_heads=4,
            scope_width=128,
            scope_num_layers=2,
            own_units=True,
        ),
    ],
}


def scope_layer(vlm: VLM, settings: SERACSettings) -> int:
    """Whose states the classifier reads.

    Raises:
        AttribError: The model has no such layer.
    """
    layer = settings.scope_layer
    if layer is not None and not 0 <= layer < vlm.num_layers:
        raise AttribError(f"scope_layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
    return vlm.num_layers // 2 if layer is None else layer


def networks(vlm: VLM, settings: SERACSettings, seed: int) -> Networks:
    """Both, untrained, where the model's last layer is.

    Raises:
        AttribError: The heads do not divide a width.
    """
    heads = settings.num_heads
    for width in (settings.width, settings.scope_width):
        if width % (2 * heads):
            raise AttribError(
                f"a width of {width} for {heads} heads: expected a multiple of {2 * heads}"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answer = Counterfactual(vlm.d_model, settings.width, settings.num_layers, heads)
        scope = Scope(vlm.d_model, settings.scope_width, settings.scope_num_layers, heads)
    device = next(vlm.layers[vlm.num_layers - 1].parameters()).device
    return Networks(answer, scope).to(device)
