"""Small folders in the E-VQA / E-IC layout with images, and the published files if present."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FILES = {
    "vqa-train": "vqa/vqa_train.json",
    "vqa-eval": "vqa/vqa_eval.json",
    "caption-train": "caption/caption_train_edit.json",
    "caption-eval": "caption/caption_eval_edit.json",
}


def row(i: int = 0, **changes: Any) -> dict[str, Any]:
    """Row `i` of a sound file, with the given fields changed."""
    return {
        "src": f"What is number {i}?",
        "pred": "a dog",
        "rephrase": f"Which thing has number {i}?",
        "alt": f"cat {i}",
        "image": f"val/{i}.png",
        "image_rephrase": f"rephrase/{i}.png",
        "loc": f"nq question: who was king number {i}",
        "loc_ans": f"Louis {i}",
        "m_loc": f"val/{i + 100}.png",
        "m_loc_q": f"What sport is number {i}?",
        "m_loc_a": f"tennis {i}",
    } | changes


def without(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != field}


def write_folder(path: Path, **splits: Sequence[Any]) -> Path:
    """A folder under `path` with rows as the files of `split=rows`, and their pictures."""
    root = path / "data"
    for split, rows in splits.items():
        file = root / FILES[split.replace("_", "-")]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows))
        for i in range(len(rows)):
            for name in (f"val/{i}.png", f"rephrase/{i}.png", f"val/{i + 100}.png"):
                picture = root / "images" / name
                picture.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 3), (i, 2, 3)).save(picture)
    return root


def few_scenes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Leave a handful of edits in every split of the embedded scenes; how many, per split."""
    few = {"train": 4, "validation": 3, "test": 3}
    monkeypatch.setattr("attrib.data.scenes.edits.NUM_EDITS", few)
    return few


def real_files() -> Path:
    """The folder of the published training files; the test is skipped where there is none."""
    beside = Path(__file__).parents[4] / "shared" / "data" / "easy-edit-mm"
    path = Path(os.environ.get("ATTRIB_EASYEDIT", beside))
    if not (path / FILES["vqa-train"]).is_file():
        pytest.skip("no real E-VQA files: un-skip by setting ATTRIB_EASYEDIT to their folder")
    return path


def outside(script: str, *args: object) -> Any:
    """What a script prints as JSON; run without the run-time checks of types.

    Those make a test of 9,000 rows take a minute instead of a second.
    """
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
