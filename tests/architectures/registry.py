"""Every image-text-to-text type of the installed transformers, and how to build a small one."""

from typing import Any

import torch

from tests.architectures import (
    experts,
    gemma,
    glm,
    llava,
    ocr,
    other,
    own_towers,
    qwen,
    tiles,
)
from tests.architectures.small import TYPES, jitter

FAMILIES = (llava, qwen, glm, tiles, ocr, gemma, experts, own_towers, other)
BUILDERS = {name: build for family in FAMILIES for name, build in family.BUILDERS.items()}
REMARKS = {name: text for family in FAMILIES for name, text in family.REMARKS.items()}
OUT_OF_SCOPE = other.OUT_OF_SCOPE

# Types, and variants of a type: "gemma4: experts".
NAMES = (*TYPES, *(name for name in BUILDERS if name not in TYPES))

__all__ = ["BUILDERS", "NAMES", "OUT_OF_SCOPE", "REMARKS", "TYPES", "build", "type_of"]


def type_of(name: str) -> str:
    """The type of a variant, or the type itself."""
    return name.partition(":")[0]


def build(name: str) -> tuple[Any, Any]:
    """A small model of a type with lively weights, and its processor or None."""
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    return jitter(model), processor
