"""Editors by name, and editors ready to use: in folders, trained ones of this package, fine-tuning.

editor = load_editor("dualedit", attrib.load("tiny-llava"))
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from attrib.errors import AttribError, SetupError
from attrib.model.fingerprint import fingerprint
from attrib.model.vlm import VLM
from editors.base import Editor
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
PRETRAINED = Path(__file__).parent / "pretrained"  # MODEL/EDITOR: folders of trained editors


def load_editor(given: str | Path, vlm: VLM) -> Editor:
    """Load the editor in a folder, whatever its kind, or make the one of a name.

    Args:
        given: A folder; or the name of an editor that the package has trained for the model, as
            "dualedit" for tiny-llava; or "ft-l" or "ft-v", which learn nothing before an edit.
        vlm: The model.

    Raises:
        SetupError: The folder holds no editor, one of unknown kind, or one of another model.
        AttribError: The editor of this name has to be trained first, or needs examples.
    """
    if folder := editor_folder(given, vlm):
        return EDITORS[_kind(folder)].load(folder, vlm)
    name = str(given)
    hint = f"attrib train --editor {name} --out FOLDER, then --editor FOLDER; ft-l needs neither"
    if EDITORS[name].is_trained:
        raise AttribError(f"--editor {name}: for {vlm.name} it has to be trained first: {hint}")
    try:
        with TemporaryDirectory() as out:
            return EDITORS[name].train(vlm, [], out=out)
    except AttribError as error:
        raise AttribError(f"--editor {name}: it is made of edits as examples: {hint}") from error


def editor_folder(given: str | Path, vlm: VLM) -> Path | None:
    """The folder of an editor: the given one, or the package's; None for a name without one."""
    path, name = Path(given), str(given)
    if name not in EDITORS or (path / SETTINGS).exists():  # results may lie in a folder "ft-l"
        return path
    for record in sorted(PRETRAINED.glob(f"*/{name}/{SETTINGS}")):
        model = json.loads(record.read_text(encoding="utf-8"))["model"]
        same_template = model.get("template", "raw") == vlm.template
        if same_template and model["fingerprint"] == fingerprint(vlm):
            return record.parent
    return None


def pretrained(model: str) -> list[str]:
    """Names of the editors that the package has trained for an embedded model."""
    return sorted(record.parent.name for record in PRETRAINED.glob(f"{model}/*/{SETTINGS}"))


def _kind(folder: Path) -> str:
    """The name in an editor's record."""
    try:
        name = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["editor"]
    except OSError as error:
        raise SetupError(
            f"{folder}: no trained editor (no {SETTINGS}); train one with `attrib train`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{folder / SETTINGS}: not the record of an editor: {error}") from error
    if name not in EDITORS:
        known = ", ".join(sorted(EDITORS))
        raise SetupError(f"{folder / SETTINGS}: no editor is called {name!r}; known are {known}")
    return name
