"""Find and load the trained editors that figures are measured with."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.errors import SetupError
from figures.figure import Setting

if TYPE_CHECKING:
    from attrib.model.vlm import VLM

CLASSES = {"visedit": "VisEdit", "dualedit": "DualEdit"}


def editor_folder(setting: Setting, name: str) -> Path:
    """Return the folder of an editor, whether it exists or not."""
    return find_upwards(setting.editors) / f"{name}-seed-0"


def find_upwards(path: Path) -> Path:
    """Return a relative path below the working folder or its nearest parent that has it.

    Notebooks run in a folder of their own and so find files of the repository. The path is
    returned unchanged if no parent has it.
    """
    above = (Path.cwd(), *Path.cwd().parents)
    return next((up / path for up in above if (up / path).exists()), path)


def has_editor(setting: Setting, name: str) -> bool:
    """Return whether the editor is there and its training finished."""
    return (editor_folder(setting, name) / "editor.json").is_file()


def load_editor(setting: Setting, name: str, vlm: "VLM") -> Any:
    """Load a trained editor for `vlm`.

    Raises:
        SetupError: The editor is not there; the message says how to train it.
    """
    folder = editor_folder(setting, name)
    if not has_editor(setting, name):
        raise SetupError(f"{folder}: no trained editor there. {training_hint(setting, name)}")
    return getattr(importlib.import_module("editors"), CLASSES[name]).load(folder, vlm)


def live_editor(setting: Setting, name: str, vlm: "VLM") -> Any | None:
    """Load the trained editor, else the one that the package has for the model; None without."""
    if has_editor(setting, name):
        return load_editor(setting, name, vlm)
    registry = importlib.import_module("editors.registry")
    return registry.load_editor(name, vlm) if registry.editor_folder(name, vlm) else None


def training_hint(setting: Setting, name: str) -> str:
    """Return the command that trains a missing editor, in a sentence."""
    return (
        f"Train it with `attrib train --editor {name} --gate learned --model {setting.model} "
        f"--data {setting.data} --layers LAYERS --out {editor_folder(setting, name)}`, where "
        "LAYERS is the layers.json of `attrib select` or, for example, 'text:1 visual:1'. This "
        "takes some minutes for the embedded models"
    )
