"""The record of a saved editor: its name, its model and its settings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrib.errors import SetupError
from attrib.files import sha256, versions, write_text
from attrib.model.vlm import VLM
from attrib.runs.provenance import fingerprint

SETTINGS = "editor.json"


def write_record(path: Path, name: str, vlm: VLM, about: Mapping[str, Any]) -> None:
    """Write the editor's name, its model and `about` (JSON) into the folder `path`."""
    model = {"name": vlm.name, "fingerprint": fingerprint(vlm)}
    record = {"editor": name, "model": model, **about, "versions": versions()}
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / SETTINGS, json.dumps(record, indent=1))


def read_record(path: Path, name: str, vlm: VLM) -> dict[str, Any]:
    """Return the record that `write_record` wrote for the editor `name` and `vlm`.

    Raises:
        SetupError: There is no record, or it is of another editor or model.
    """
    if not (path / SETTINGS).exists():
        raise SetupError(f"{path} holds no editor: there is no {SETTINGS} in it")
    record = json.loads((path / SETTINGS).read_text())
    if record["editor"] != name:
        raise SetupError(f"{path} holds the editor {record['editor']!r}, not {name!r}")
    if record["model"]["fingerprint"] != fingerprint(vlm):
        raise SetupError(
            f"{path} was trained for {record['model']['name']}, whose weights are not those of "
            f"{vlm.name}; load that model, or train the editor for this one"
        )
    return record


def files_digest(folders: Sequence[Path]) -> str:
    """Return the SHA-256 of the settings and tensors in the folders of an editor and its gate."""
    files = [
        file
        for folder in folders
        for file in (folder / SETTINGS, folder / "gate.json", *sorted(folder.glob("*.safetensors")))
        if file.exists()
    ]
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
