"""Edits of vision-language models at the layers that `attrib` picked."""

from editors.dualedit import DualEdit
from editors.edit import Edit, Editor, HiddenEdit, WeightEdit
from editors.evaluation import evaluate
from editors.finetune import FTL, FTV
from editors.ike import Ike
from editors.ke import KE
from editors.lte import Lte
from editors.mend import Mend
from editors.patcher import Patcher
from editors.scores_table import summary
from editors.serac import Serac
from editors.unedited import Unedited
from editors.visedit import VisEdit

EDITORS: dict[str, type[Editor]] = {
    "visedit": VisEdit,
    "dualedit": DualEdit,
    "ft-v": FTV,
    "ft-l": FTL,
    "ke": KE,
    "ike": Ike,
    "serac": Serac,
    "mend": Mend,
    "tp": Patcher,
    "lte": Lte,
}

__all__ = [
    "EDITORS",
    "FTL",
    "FTV",
    "KE",
    "DualEdit",
    "Edit",
    "Editor",
    "HiddenEdit",
    "Ike",
    "Lte",
    "Mend",
    "Patcher",
    "Serac",
    "Unedited",
    "VisEdit",
    "WeightEdit",
    "evaluate",
    "summary",
]
