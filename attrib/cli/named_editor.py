"""The editor that `--editor` names: the folder of one, or fine-tuning, which needs none."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from attrib.errors import AttribError

if TYPE_CHECKING:
    from attrib.model.vlm import VLM


def named_editor(given: Path, vlm: "VLM") -> Any:
    """Load the editor in a folder, or make fine-tuning by its name.

    Raises:
        AttribError: The name is that of an editor that has to be trained, or needs examples.
        SetupError: There is no editor in the folder, or it is of another model.
    """
    from editors import EDITORS, load_editor

    name = str(given)
    if given.exists() or name not in EDITORS:
        return load_editor(given, vlm)
    hint = f"attrib train --editor {name} --out FOLDER, then --editor FOLDER; ft-l needs neither"
    if EDITORS[name].is_trained:
        raise AttribError(f"--editor {name}: it has to be trained first: {hint}")
    try:
        with TemporaryDirectory() as out:
            return EDITORS[name].train(vlm, [], out=out)
    except AttribError as error:
        raise AttribError(f"--editor {name}: it is made of edits as examples: {hint}") from error
