"""Many edits: 1 to 1,000 held at once, and 100 made in sequence; scores, memory, look-up.

    python -m benchmarks.many_edits                          # all parts; each is kept when done
    python -m benchmarks.many_edits --only dualedit,serac    # some editors
    python -m benchmarks.many_edits --part sequential        # ft-l, mend, ke

**Held at once**: each edit is made on the original model. **In sequence**: each is made on the
model as edited so far. Edits are consecutive held-out edits of scenes-vqa, in blocks of 1, 10, 100
and 1,000; a fixed sample of them is scored while their block is held, so that all columns are about
the same edits. An edit's age is the number of newer edits in its block. Editors are trained shortly
on few edits (`STEPS`), for some minutes on one core: **scores are of these editors, and lower than
those of full trainings**; how they change with the number of edits is what this shows.
Times are medians of rounds in which the numbers of edits take turns; ratios are to one edit.
Writes `benchmarks/results/many-edits.json`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.data import EditSample
from attrib.files import read_json, write_text
from attrib.model.vlm import VLM
from benchmarks.edit_blocks import Blocks, by_age, costs, summaries
from benchmarks.harness import RESULTS, save
from editors import EDITORS, load_editor
from editors.base import encode_requests
from editors.evaluation.reference_model import Checksum
from editors.gating.fitted import fit_once
from editors.gating.gated_editor import behind
from editors.gating.gates import load_gate

STEPS = {"dualedit": 100, "visedit": 100, "mend": 250, "serac": 200, "ke": 250, "lte": 60}
LAYERS = {"dualedit": {"text": [1], "visual": [1]}, "visedit": {"visual": [1]}}
GATED = ("dualedit", "visedit", "lte-gated", "ike-gated")  # behind the learned gate
HELD = ("dualedit", "visedit", "serac", "lte", "ike", "mend", "lte-gated", "ike-gated")
SEQUENTIAL = ("ft-l", "mend", "ke")
PARTS: dict[str, tuple[Sequence[str], Sequence[int], int]] = {
    "held": (HELD, (1, 10, 100, 1000), 40),
    "sequential": (SEQUENTIAL, (1, 10, 100), 20),
}
TRAINING_EDITS = 600


def edits_to_hold(data: str, num: int) -> list[EditSample]:
    """Held-out edits: the test part, and that of other scenes where it is too small."""
    found: list[EditSample] = []
    for seed in range(10):
        found += attrib.data.load(data, split="test", seed=seed, limit=num - len(found))
        if len(found) >= num:
            break
    return found


def editor_of(name: str, vlm: VLM, options: argparse.Namespace) -> Any:
    """The editor of a name, trained once, behind the gate that it is measured with."""
    kind = name.removesuffix("-gated")
    folder = options.runs / kind
    if (folder / "editor.json").exists():
        editor = load_editor(folder, vlm)
    else:
        given: dict[str, Any] = {"steps": STEPS[kind]} if kind in STEPS else {}
        given |= {"layers": LAYERS[kind], "gate": "none"} if kind in LAYERS else {}
        data = attrib.data.load(options.data, split="train", limit=TRAINING_EDITS)
        editor = EDITORS[kind].train(vlm, data, out=folder, **given)
    return behind(editor, _gate(vlm, options)) if name in GATED else editor


def _gate(vlm: VLM, options: argparse.Namespace) -> Any:
    if options.gate is not None:
        return load_gate(options.gate)
    data = attrib.data.load(options.data, split="train", limit=TRAINING_EDITS)
    fit_once(folder := options.runs / "gate", "learned", vlm, data, layer=1)
    return load_gate(folder)


def measure(part: str, name: str, vlm: VLM, options: argparse.Namespace) -> dict[str, Any]:
    """One editor's scores and costs at every number of edits."""
    _, numbers, num_scored = PARTS[part]
    numbers = [n for n in numbers if n <= options.most]
    samples = edits_to_hold(options.data, max(numbers))
    scored = range(0, max(numbers), max(1, max(numbers) // num_scored))
    blocks = Blocks(
        vlm, editor_of(name, vlm, options), samples, scored, sequential=part == "sequential"
    )
    state, rows = Checksum.of(vlm.model), []
    for num in numbers:
        found = blocks.scores(num)
        rows.append({"held": num, "scores": summaries(found), "by age": by_age(found)})
        _say(f"{part} {name}, {num} edits: {_line(rows[-1]['scores'])}")
    asked = (samples[0].text_generality or [samples[0].request])[:1]
    batch = encode_requests(vlm, asked, targets=False)
    timed = costs(vlm, {n: blocks.held(0, n) for n in numbers}, batch, options.rounds)
    state.require(Checksum.of(vlm.model), name, "all edits")
    gate = getattr(blocks.editor, "gate", None)
    return {
        "part": part,
        "editor": name,
        "gate": getattr(gate, "name", None),
        "edits scored": len(scored),
        "rows": [row | cost for row, cost in zip(rows, timed, strict=True)],
    }


def _line(scores: Mapping[str, Mapping[str, float]]) -> str:
    return " ".join(f"{metric} {100 * one['mean']:.1f}" for metric, one in scores.items())


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A row per part, editor and number of edits, as Markdown."""
    head = ["editor", "edits", "Rel", "T-Gen", "V-Gen", "T-Loc", "M-Loc", "bytes an edit",
            "look-up, ms", "over one", "pass over one"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for one in found:
        for row in one["rows"]:
            means = [f"{100 * score['mean']:.1f}" for score in row["scores"].values()]
            each = f"{row['bytes'] / row['held']:,.0f}"
            looked = ["-", "-"]
            if "look-up ms" in row:
                looked = [f"{row['look-up ms']:.2f}", f"{row['look-up ratio']['median']:.2f}"]
            name = f"{one['editor']}, {one['part']}"
            passed = f"{row['pass ratio']['median']:.2f}"
            lines.append([name, str(row["held"]), *means, each, *looked, passed])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, print and save all that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_edits")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--data", default="scenes-vqa")
    parser.add_argument("--part", choices=PARTS, help="default: both")
    parser.add_argument("--only", help="editors, comma-separated")
    parser.add_argument("--most", type=int, default=1000, help="largest number of edits")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--gate", type=Path, help="folder of a learned gate; default: trained here")
    parser.add_argument("--runs", type=Path, default=Path("runs/many-edits"))
    parser.add_argument("--out", type=Path, default=RESULTS / "many-edits.json")
    options = parser.parse_args(arguments)
    vlm, found = attrib.load(options.model), []
    for part in [options.part] if options.part else PARTS:
        for name in options.only.split(",") if options.only else PARTS[part][0]:
            kept = options.runs / f"{part}-{name}-{options.most}.json"
            if not kept.exists():
                write_text(kept, json.dumps(measure(part, name, vlm, options), indent=1))
    for part, (names, _, _) in PARTS.items():
        files = [options.runs / f"{part}-{name}-{options.most}.json" for name in names]
        found += [read_json(file) for file in files if file.exists()]
    sys.stdout.write(table(found))
    head = {
        "threads": torch.get_num_threads(), "model": options.model, "data": options.data,
        "training edits": TRAINING_EDITS, "steps": STEPS, "rounds": options.rounds, "seed": 0,
    }  # fmt: skip
    # That of `benchmarks.edit_memory` is in the same file.
    memory = {"memory": old["memory"]} if "memory" in (old := _read(options.out)) else {}
    save(options.out, head | memory, {"editors": found})


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


if __name__ == "__main__":
    main()
