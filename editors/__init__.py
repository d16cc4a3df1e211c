"""Edits of vision-language models at the layers that `attrib` picked."""

import json
from pathlib import Path

from attrib.errors import SetupError
from attrib.model.vlm import VLM
from editors.adapters.router import HiddenEdit
from editors.base import Edit, Editor, WeightEdit
from editors.evaluation import evaluate
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.tables import summary
from editors.io import SETTINGS
from editors.methods.adapter_editor import DualEdit
from editors.methods.finetune import FTL, FTV
from editors.methods.ike import IKE
from editors.methods.ke import KE
from editors.methods.lte import LTE
from editors.methods.mend import MEND
from editors.methods.serac import SERAC
from editors.methods.transformer_patcher import TransformerPatcher
from editors.methods.visedit import VisEdit

EDITORS: dict[str, type[Editor]] = {
    "visedit": VisEdit,
    "dualedit": DualEdit,
    "ft-v": FTV,
    "ft-l": FTL,
    "ke": KE,
    "ike": IKE,
    "serac": SERAC,
    "mend": MEND,
    "tp": TransformerPatcher,
    "lte": LTE,
}


def load_editor(path: str | Path, vlm: VLM) -> Editor:
    """Load the editor in a folder, whatever its kind.

    Raises:
        SetupError: The folder holds no editor, one of unknown kind, or one of another model.
    """
    path = Path(path)
    try:
        name = json.loads((path / SETTINGS).read_text(encoding="utf-8"))["editor"]
    except OSError as error:
        raise SetupError(
            f"{path}: no trained editor (no {SETTINGS}); train one with `attrib train`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{path / SETTINGS}: not the record of an editor: {error}") from error
    if name not in EDITORS:
        known = ", ".join(sorted(EDITORS))
        raise SetupError(f"{path / SETTINGS}: no editor is called {name!r}; known are {known}")
    return EDITORS[name].load(path, vlm)


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
