"""What a stored edit of each editor takes: bytes in memory while it is held, and in its file.

    python -m benchmarks.edit_memory

Editors are trained for a few steps: the size of an edit depends on the model, the request and the
editor's settings, not on how well it was trained. Medians over held-out edits of scenes-vqa.
"dense" is what the edited weights themselves would take. Adds the table "memory" to
`benchmarks/results/many-edits.json` and leaves the others as they are.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import attrib
from attrib.data import EditSample
from attrib.files import read_json, write_text
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS
from editors import EDITORS
from editors.io import save_edit
from editors.weights.low_rank import LowRankEdit

FEW = {"steps": 3, "validate_every": 3, "save_every": 3}
LAYERS = {"dualedit": {"text": [1], "visual": [1]}, "visedit": {"visual": [1]}}
UNTRAINED = ("ft-l", "ft-v", "tp", "ike")


def memory(name: str, vlm: VLM, train: Sequence[EditSample], test: Sequence[EditSample]) -> Any:
    """Median bytes of an edit of one editor."""
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {} if name in UNTRAINED else dict(FEW)
        given |= {"layers": LAYERS[name], "gate": "learned"} if name in LAYERS else {}
        editor = EDITORS[name].train(vlm, train, out=Path(folder) / name, **given)
        edits = [editor.edit(vlm, sample.request) for sample in test]
        files = [
            save_edit(edit, Path(folder) / f"{i}.safetensors", vlm, editor)
            for i, edit in enumerate(edits)
        ]
        on_disk = [file.stat().st_size for file in files]
    return {
        "editor": name,
        "kept": type(edits[0]).__name__,
        "bytes held": median(edit.num_bytes for edit in edits),
        "bytes on disk": median(on_disk),
        "dense bytes": dense_bytes(vlm, edits[0]),
    }


def dense_bytes(vlm: VLM, edit: Any) -> int | None:
    """Bytes of the weights that a low-rank edit changes; None for other edits."""
    if not isinstance(edit, LowRankEdit):
        return None
    return sum(vlm.model.get_parameter(name).nbytes for name in edit.updates)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| editor | bytes held | bytes on disk |", "|---|---|---|"]
    for row in rows:
        lines.append(
            f"| `{row['editor']}` | {row['bytes held']:,.0f} | {row['bytes on disk']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edit_memory")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "many-edits.json")
    options = parser.parse_args(arguments)
    vlm = attrib.load(options.model)
    train = attrib.data.load("scenes-vqa", split="train", limit=60)
    test = attrib.data.load("scenes-vqa", split="test", limit=options.edits)
    rows = [memory(name, vlm, train, test) for name in EDITORS]
    sys.stdout.write(table(rows))
    document = read_json(options.out) if options.out.exists() else {}
    about = {"model": options.model, "edits": options.edits, "training": FEW}
    write_text(
        options.out, json.dumps({**document, "memory": {**about, "rows": rows}}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
