"""Edits of vision-language models at the layers that `attrib` picked."""

from editors.adapters.router import HiddenEdit
from editors.base import Edit, Editor, WeightEdit
from editors.evaluation import evaluate
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.tables import summary
from editors.methods.adapter_editor import DualEdit
from editors.methods.finetune import FTL, FTV
from editors.methods.ike import IKE
from editors.methods.ke import KE
from editors.methods.lte import LTE
from editors.methods.mend import MEND
from editors.methods.serac import SERAC
from editors.methods.transformer_patcher import TransformerPatcher
from editors.methods.visedit import VisEdit
from editors.registry import EDITORS, load_editor

__all__ = [
    "EDITORS",
    "FTL",
    "FTV",
    "IKE",
    "KE",
    "LTE",
    "MEND",
    "SERAC",
    "DualEdit",
    "Edit",
    "Editor",
    "HiddenEdit",
    "ReferenceModel",
    "TransformerPatcher",
    "VisEdit",
    "WeightEdit",
    "evaluate",
    "load_editor",
    "summary",
]
