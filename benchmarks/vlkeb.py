"""Portability on VLKEB's one-hop rows, end to end, on a small backbone with stand-in pictures.

    python -m benchmarks.vlkeb --folder VLKEB          # the folder of eval_edit_onehop.json

VLKEB's 18,434 photos are not here: each name gets a rendered scene instead, drawn from the name.
The embedded model knows none of the entities either. So the numbers say that the chain works, from
the published rows to portability in three protocols, and **nothing about any model's knowledge**.
Edits are FT-L's (tuned for small models): the picture's fact alone, and with the fact behind the
one-hop question, as VLKEB edits both. Writes `benchmarks/results/vlkeb.json`.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrib
from attrib.data import EditRequest, EditSample
from attrib.data.scenes import make_scene, render
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS, save
from editors import FTL
from editors.base import Edit, edit_all
from editors.evaluation import evaluate
from editors.evaluation.reference_model import ReferenceModel
from editors.evaluation.tables import summary

SPLIT = "vlkeb-onehop"
PROTOCOLS = ("paper", "exact", "generate")
SCENES = 2**31  # seeds


@dataclass
class WithLinked:
    """Edits the fact behind a sample's one-hop question as well, after the request's own.

    Attributes:
        editor: The editor.
        samples: By the request's prompt and target.
    """

    editor: Any
    samples: dict[tuple[str, str], EditSample]
    name: str = "ft-l, with the linked fact"

    def edit(self, vlm: VLM, request: EditRequest) -> Edit:
        """Both edits, one made on the model as edited by the other."""
        linked = self.samples[request.prompt, request.target].linked
        return edit_all(vlm, self.editor, [EditSample("", one) for one in (request, *linked)])


def draw_pictures(folder: Path, root: Path, limit: int) -> None:
    """A rendered scene for every picture that the first rows name."""
    for sample in attrib.data.load(folder, SPLIT, need=(), limit=limit):
        for names in _names(folder)[sample.meta["row"]]:
            place = root / names
            if not place.exists():
                seed = int(hashlib.sha256(names.encode()).hexdigest(), 16) % SCENES
                place.parent.mkdir(parents=True, exist_ok=True)
                render(make_scene(seed), seed)[0].save(place, "PNG")


def _names(folder: Path) -> list[list[str]]:
    """The names of pictures, row by row."""
    from attrib.data.benchmarks import SPLITS
    from attrib.data.easyedit import IMAGES, read_rows

    rows: Sequence[Any] = read_rows(folder / SPLITS[SPLIT])[0]
    return [[row[field] for field in IMAGES] for row in rows]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Counts of rows, and means of the metrics by editor and protocol, in per cent."""
    every = attrib.data.load(options.folder, SPLIT, need=())
    without = attrib.data.load(options.folder, SPLIT, image_root=options.folder)
    vlm = attrib.load(options.model)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "pictures"
        root.mkdir()
        draw_pictures(options.folder, root, options.limit)
        samples = attrib.data.load(options.folder, SPLIT, image_root=root, limit=options.limit)
        editor = FTL.train(vlm, out=Path(place) / "ft-l", preset="tuned-small")
        both = WithLinked(editor, {(s.request.prompt, s.request.target): s for s in samples})
        reference = ReferenceModel(vlm, PROTOCOLS)
        pair = (editor, both)
        results = [evaluate(vlm, e, samples, PROTOCOLS, reference=reference) for e in pair]
    table = summary(results)
    columns = ["editor", "protocol", "metric", "mean", "low", "high", "n"]
    return {
        "rows": len(every) + len(every.quarantined),
        "rows that load": len(every),
        "rows set aside for a missing picture": len(without.quarantined),
        "first set aside": str(without.quarantined[0]).replace(str(options.folder), "VLKEB"),
        "edits scored": len(samples),
        "scores": table[columns].round(1).to_dict("records"),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vlkeb", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "vlkeb.json")
    options = parser.parse_args(arguments)
    found = measure(options)
    head = {"what": "stand-in pictures: the chain works; nothing about knowledge", "seed": 0}
    scores = found.pop("scores")
    save(options.out, {**head, "model": options.model, **found}, {"scores": scores})
    for row in scores:
        sys.stdout.write(f"{row['editor']}, {row['protocol']}, {row['metric']}: {row['mean']}\n")


if __name__ == "__main__":
    main()
