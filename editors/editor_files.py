"""What the folder of a trained editor says of it: which editor, of which model, how trained."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attrib.environment import versions
from attrib.errors import CannotStart
from attrib.files import write_text
from attrib.provenance import fingerprint
from attrib.vlm import VLM
from editors.losses import Weights
from editors.training import Progress, Training

SETTINGS = "editor.json"


def about_training(
    training: Training, weights: Weights, num: int, num_held_out: int, progress: Progress
) -> dict[str, Any]:
    """How an editor was trained, on how many edits, and what came of it; JSON."""
    return {
        "training": asdict(training),
        "weights": asdict(weights),
        "samples": num,
        "held_out": num_held_out,
        "best_step": progress.best_step,
        "best_loss": progress.best,
        "seconds": progress.seconds,
        "curve": progress.curve,
    }


def write_record(path: Path, name: str, vlm: VLM, about: Mapping[str, Any]) -> None:
    """Write which editor a folder holds, for which model, and `about` (JSON)."""
    model = {"name": vlm.name, "fingerprint": fingerprint(vlm)}
    record = {"editor": name, "model": model, **about, "versions": versions()}
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / SETTINGS, json.dumps(record, indent=1))


def read_record(path: Path, name: str, vlm: VLM) -> dict[str, Any]:
    """What `write_record` wrote of the editor `name` for `vlm`.

    Raises:
        CannotStart: There is none, or it is of another editor or model.
    """
    if not (path / SETTINGS).exists():
        raise CannotStart(f"{path} holds no editor: there is no {SETTINGS} in it")
    record = json.loads((path / SETTINGS).read_text())
    if record["editor"] != name:
        raise CannotStart(f"{path} holds the editor {record['editor']!r}, not {name!r}")
    if record["model"]["fingerprint"] != fingerprint(vlm):
        raise CannotStart(
            f"{path} was trained for {record['model']['name']}, whose weights are not those of "
            f"{vlm.name}; load that model, or train the editor for this one"
        )
    return record
