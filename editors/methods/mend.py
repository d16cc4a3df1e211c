"""MEND: a small network turns the gradient of a request into a change of the last layers.

Mitchell et al., "Fast model editing at scale" (ICLR 2022), with the losses of its use on
vision-language models (Cheng et al. 2023): the rephrased prompt and the other picture give the new
answer, unrelated inputs with and without an image the old one; the request itself is an option.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from attrib.model.vlm import VLM
from editors.methods.hypernetwork import HypernetworkEditor
from editors.methods.mend_net import MENDNet, Pooling
from editors.training.losses import Weights
from editors.training.trainer import Training
from editors.weights.mlp import Which


@dataclass(frozen=True)
class MENDSettings:
    """What MEND's networks are.

    Attributes:
        matrices: Which maps of the feed-forward networks are changed: "up_down" (as published),
            "down", or "all" (LiveEdit's LLaVA: the gate's too).
        rank: Of the networks' layers; at most as wide as what they see.
        num_hidden: Layers before the last.
        normalise: Whether inputs are normalised by their running mean and standard deviation.
        pooling: Over tokens: the "sum" of their changes (as published), or the "mean" (LiveEdit).
        rate: What changes are multiplied with and then added, before training. It is positive as
            published, that is up the gradient: its sign is learned.
        rate_lr_multiplier: Learning rate of the rates over that of all else (published: 1e-4
            against 1e-6).
    """

    matrices: Which = "up_down"
    rank: int = 1920
    num_hidden: int = 1
    normalise: bool = True
    pooling: Pooling = "sum"
    rate: float = 1e-4
    rate_lr_multiplier: float = 100.0


@dataclass(frozen=True, eq=False)
class MEND(HypernetworkEditor):
    """Gradients of the request, edited token by token, change the last three layers."""

    name: ClassVar[str] = "mend"
    settings_kind: ClassVar[type[Any]] = MENDSettings
    presets: ClassVar[Mapping[str, Sequence[Any]]] = {
        "published": [
            Training(
                steps=30_000,
                batch_size=2,  # batches of one, whose gradients are accumulated by two
                learning_rate=1e-6,
                clip=100.0,
                validate_every=1000,
                save_every=1000,
            ),
            Weights(reliability=0.0, generality=0.1),
            MENDSettings(),
        ],
        "embedded": [
            Training(
                steps=1600,
                batch_size=8,
                learning_rate=5e-4,  # 1e-3 for as long loses unrelated inputs: see LOG.md
                warmup=30,
                decay="cosine",
                clip=5.0,
                validate_every=100,
                save_every=100,
                best_by="right",
            ),
            Weights(),
            MENDSettings(rank=64, rate=-1e-3, rate_lr_multiplier=1.0),
        ],
    }

    @classmethod
    def _network(
        cls, vlm: VLM, shapes: Mapping[str, tuple[int, int]], settings: MENDSettings
    ) -> nn.Module:
        del vlm
        s = settings
        return MENDNet(
            shapes, s.rank, s.num_hidden, s.normalise, s.pooling, s.rate, s.rate_lr_multiplier
        )
