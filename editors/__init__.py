"""Edits of vision-language models at the layers that `attrib` picked."""

from editors.base import Edit, Editor, HiddenEdit, WeightEdit
from editors.evaluation.evaluate import evaluate
from editors.evaluation.reference_model import Unedited
from editors.evaluation.tables import summary
from editors.methods.dualedit import DualEdit
from editors.methods.finetune import FTL, FTV
from editors.methods.ike import Ike
from editors.methods.ke import KE
from editors.methods.lte import Lte
from editors.methods.mend import Mend
from editors.methods.serac import Serac
from editors.methods.transformer_patcher import Patcher
from editors.methods.visedit import VisEdit

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
