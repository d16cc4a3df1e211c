"""The trained editors that figures are made with."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.errors import SetupError
from figures.figure import Setting

if TYPE_CHECKING:
    from attrib.model.vlm import VLM

CLASSES = {"visedit": "VisEdit", "dualedit": "DualEdit"}


def editor_folder(setting: Setting, name: str) -> Path:
    """Where the trained editor of a name is, or would be."""
    return found_above(setting.editors) / f"{name}-seed-0"


def found_above(path: Path) -> Path:
    """A relative path from the working folder or the nearest folder above it that has it.

    So notebooks, which run in a folder of their own, find what stands in the repository. Where
    nothing is found, the path as it is.
    """
    above = (Path.cwd(), *Path.cwd().parents)
    return next((up / path for up in above if (up / path).exists()), path)


def has_editor(setting: Setting, name: str) -> bool:
    """Whether it is there, trained to the end."""
    return (editor_folder(setting, name) / "editor.json").is_file()


def load_editor(setting: Setting, name: str, vlm: "VLM") -> Any:
    """The trained editor of a name, for `vlm`.

    Raises:
        SetupError: There is none; the message says how to train it.
    """
    folder = editor_folder(setting, name)
    if not has_editor(setting, name):
        raise SetupError(f"{folder}: no trained editor there. {how_to_train(setting, name)}")
    return getattr(importlib.import_module("editors"), CLASSES[name]).load(folder, vlm)


def how_to_train(setting: Setting, name: str) -> str:
    """What to type for an editor that is not there."""
    return (
        f"Train it with `attrib train --editor {name} --gate learned --model {setting.model} "
        f"--data {setting.data} --layers LAYERS --out {editor_folder(setting, name)}`, where "
        "LAYERS is the layers.json of `attrib select`, or such as 'text:1 visual:1'; for the "
        "embedded models that takes some minutes"
    )
