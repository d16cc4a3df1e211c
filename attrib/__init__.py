"""Where in a vision-language model an answer comes from, and which layers to edit.

    import attrib
    vlm = attrib.load("tiny-llava")
    batch = vlm.encode([image], ["What color is the star? The answer is:"])
    attrib.contributions(vlm, batch)  # Float "batch layer module"

Names are imported when they are first used, so that `import attrib` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attrib import data
    from attrib.analyses.attention import attention, profile
    from attrib.analyses.contributions import (
        contribution_parts,
        contributions,
        direct_logits,
    )
    from attrib.analyses.gating import gate_similarity
    from attrib.analyses.heatmaps import PUBLISHED_CODE, heatmaps
    from attrib.analyses.patching import patching, patching_difference, patching_parts
    from attrib.analyses.qformer import qformer_picture
    from attrib.analyses.sensitivity import sensitivity
    from attrib.checks import check
    from attrib.errors import AttribError, RowError, SetupError
    from attrib.forward.hooks import read, write
    from attrib.loading import load
    from attrib.model.batch import Batch, Grid
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.selection import LayerReport, select_layers

__all__ = [
    "PUBLISHED_CODE",
    "VLM",
    "AttribError",
    "Batch",
    "Grid",
    "LayerReport",
    "Result",
    "RowError",
    "SetupError",
    "attention",
    "check",
    "contribution_parts",
    "contributions",
    "data",
    "direct_logits",
    "gate_similarity",
    "heatmaps",
    "load",
    "patching",
    "patching_difference",
    "patching_parts",
    "profile",
    "qformer_picture",
    "read",
    "select_layers",
    "sensitivity",
    "write",
]

_HOME = {
    "check": "attrib.checks",
    "VLM": "attrib.model.vlm",
    "load": "attrib.loading",
    "Batch": "attrib.model.batch",
    "Grid": "attrib.model.batch",
    "read": "attrib.forward.hooks",
    "write": "attrib.forward.hooks",
    "AttribError": "attrib.errors",
    "RowError": "attrib.errors",
    "SetupError": "attrib.errors",
    "Result": "attrib.results",
    "LayerReport": "attrib.selection",
    "select_layers": "attrib.selection",
    "attention": "attrib.analyses.attention",
    "profile": "attrib.analyses.attention",
    "contributions": "attrib.analyses.contributions",
    "contribution_parts": "attrib.analyses.contributions",
    "direct_logits": "attrib.analyses.contributions",
    "gate_similarity": "attrib.analyses.gating",
    "heatmaps": "attrib.analyses.heatmaps",
    "PUBLISHED_CODE": "attrib.analyses.heatmaps",
    "qformer_picture": "attrib.analyses.qformer",
    "patching": "attrib.analyses.patching",
    "patching_difference": "attrib.analyses.patching",
    "patching_parts": "attrib.analyses.patching",
    "sensitivity": "attrib.analyses.sensitivity",
}


def __getattr__(name: str) -> Any:
    if name == "data":
        return import_module("attrib.data")
    if name not in _HOME:
        raise AttributeError(f"module 'attrib' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
