"""Edits of vision-language models at the layers that `attrib` picked."""

from editors.dualedit import DualEdit
from editors.edit import Edit, Editor, HiddenEdit, WeightEdit
from editors.evaluation import evaluate
from editors.scores_table import summary
from editors.unedited import Unedited
from editors.visedit import VisEdit

EDITORS: dict[str, type[Editor]] = {"visedit": VisEdit, "dualedit": DualEdit}

__all__ = [
    "EDITORS",
    "DualEdit",
    "Edit",
    "Editor",
    "HiddenEdit",
    "Unedited",
    "VisEdit",
    "WeightEdit",
    "evaluate",
    "summary",
]
