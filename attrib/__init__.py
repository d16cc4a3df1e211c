"""Where in a vision-language model an answer comes from, and which layers to edit.

    import attrib
    vlm = attrib.load("tiny-llava")
    samples = attrib.data.load("scenes-vqa", split="test", limit=64)
    attrib.run("contributions", vlm, samples).plot()

Names are imported when they are first used, so that `import attrib` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attrib import data, plots, stats
    from attrib.analyses.attention import attention, profile
    from attrib.analyses.contributions import contribution_parts, contributions
    from attrib.analyses.direct_logits import direct_logits
    from attrib.analyses.gating import gate_similarity
    from attrib.analyses.heatmaps import PUBLISHED_CODE, heatmaps
    from attrib.analyses.logit_lens import Lens, logit_lens
    from attrib.analyses.patching import patching, patching_difference, patching_parts
    from attrib.analyses.qformer import qformer_picture, queries_to_patches
    from attrib.analyses.reliance import Reliance, reliance
    from attrib.analyses.sensitivity import sensitivity
    from attrib.checks import check
    from attrib.errors import AttribError, RowError, SetupError
    from attrib.explorer.explore import explore
    from attrib.explorer.page import Explorer
    from attrib.forward.hooks import read, write
    from attrib.loading import load
    from attrib.model.answering import answer
    from attrib.model.batch import Batch, Grid
    from attrib.model.vlm import VLM
    from attrib.pipeline.run import run
    from attrib.pipeline.select import select
    from attrib.report.comparison import Comparison, compare
    from attrib.results import Result
    from attrib.selection import LayerReport, select_layers

# Module -> the names that it provides; imported when they are first used.
_NAMES = {
    "attrib.analyses.attention": ("attention", "profile"),
    "attrib.analyses.contributions": ("contribution_parts", "contributions"),
    "attrib.analyses.direct_logits": ("direct_logits",),
    "attrib.analyses.gating": ("gate_similarity",),
    "attrib.analyses.heatmaps": ("PUBLISHED_CODE", "heatmaps"),
    "attrib.analyses.logit_lens": ("Lens", "logit_lens"),
    "attrib.analyses.patching": ("patching", "patching_difference", "patching_parts"),
    "attrib.analyses.qformer": ("qformer_picture", "queries_to_patches"),
    "attrib.analyses.reliance": ("Reliance", "reliance"),
    "attrib.analyses.sensitivity": ("sensitivity",),
    "attrib.checks": ("check",),
    "attrib.errors": ("AttribError", "RowError", "SetupError"),
    "attrib.explorer.explore": ("explore",),
    "attrib.explorer.page": ("Explorer",),
    "attrib.forward.hooks": ("read", "write"),
    "attrib.loading": ("load",),
    "attrib.model.answering": ("answer",),
    "attrib.model.batch": ("Batch", "Grid"),
    "attrib.model.vlm": ("VLM",),
    "attrib.pipeline.run": ("run",),
    "attrib.pipeline.select": ("select",),
    "attrib.report.comparison": ("Comparison", "compare"),
    "attrib.results": ("Result",),
    "attrib.selection": ("LayerReport", "select_layers"),
}
_MODULES = ("data", "plots", "stats")
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [*sorted(_HOME), *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"attrib.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'attrib' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
