"""Towers of transformers in the place of those that need timm, a package of its own."""

from typing import Any
from unittest import mock

import transformers as tr

from tests.architectures.small import model_of


def resnet() -> Any:
    """A ResNet: from 16 pixels to "batch 32 2 2"."""
    config = tr.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
    )
    return tr.ResNetModel(config)


def with_tower(config: Any, tower_config: type, tower: Any) -> Any:
    """The model of a config, in which `tower` is the part of the class `tower_config`."""
    usual = tr.AutoModel.from_config

    def from_config(part: Any, **settings: Any) -> Any:
        return tower if isinstance(part, tower_config) else usual(part, **settings)

    with mock.patch.object(tr.AutoModel, "from_config", from_config):
        return model_of(config)
