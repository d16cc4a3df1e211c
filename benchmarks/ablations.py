"""Ablations of the adapters' options: short trainings that differ in one option.

    python -m benchmarks.ablations --editor dualedit
    python -m benchmarks.ablations --editor visedit      # VisEdit's Table 3, and more

All train on the same edits for the same number of steps at the same layers, and are scored without
a gate on held-out edits. Finished trainings are reused. Writes, per editor, the means of all
metrics (teacher-forced token accuracy, in per cent) to `figures/tables/switches/`.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import attrib
from attrib.files import write_text
from editors import EDITORS
from editors.evaluation.layer_grid import Cell, grid
from editors.evaluation.layer_grid_inputs import GridEdits, GridInputs, validated_on_test

MAPPER = ("mapper_up", "mapper_down", "mapper_attribution")
SHARED: dict[str, Mapping[str, Any]] = {
    "as preset": {},
    "signal: states at the site alone": {"signal": "site"},
    "signal: input embeddings alone": {"signal": "embed"},
    "signal: whole edit": {"signal_span": "all"},
    "channels not standardized": {"own_units": False},
    "random output map, as published": {"init": "published"},
    "near neighbours in the loss": {"hard": 1.0},
    "Adam at 0.005 instead of Muon": {"optimizer": "adam", "learning_rate": 0.005},
}
ABLATIONS: dict[str, dict[str, Mapping[str, Any]]] = {
    "dualedit": {**SHARED, "writes the last prompt token": {"write_last": True}},
    "visedit": {
        **SHARED,
        "- IM (no mapper)": {"mapper": False},
        "- CA (no cross-attention)": {"signal": "none"},
        **{f"- {name}": {"mapper_terms": tuple(t for t in MAPPER if t != name)} for name in MAPPER},
        "mapper from answers alone": {"mapper_terms": ()},
        "mapper terms at weight 0.01": {"influence": 0.01},
        "mapper terms at weight 1 (paper)": {"influence": 1.0},
        "target as published": {"mapper_target": "published"},
        "target: a tenth of a std": {"mapper_target": "0.1-sigma"},
    },
}
LAYERS = {"dualedit": (1, 1), "visedit": (None, 1)}


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Columns switch, seed, metric, value (per cent)."""
    vlm = attrib.load(options.model)
    vlm.model.requires_grad_(False)
    samples = attrib.data.load(options.data, split="train", limit=options.limit)
    test = attrib.data.load(options.data, split="validation", limit=options.test_limit)
    text, visual = LAYERS[options.editor]
    cells = [Cell(text, visual, seed) for seed in range(options.seeds)]
    earlier = any(map(validated_on_test, options.runs.glob(f"{options.editor}-*")))
    edits = GridEdits.of(vlm, samples, test, end_token=False, validates_on_test=earlier)
    inputs = GridInputs.of(vlm, edits, cells[0].all_layers)
    parts = []
    editor: Any = EDITORS[options.editor]
    for number, (name, changes) in enumerate(ABLATIONS[options.editor].items()):
        config = editor.config_class.from_preset(vlm, "embedded", steps=options.steps, **changes)
        out = options.runs / f"{options.editor}-{number:02d}"
        frame = grid(editor, vlm, samples, test, cells, out, config, _say, inputs=inputs)
        parts.append(frame.assign(switch=name, value=100 * frame["value"]))
        _say(f"{name}: {100 * frame.loc[frame['metric'] == 'avg', 'value'].mean():.1f}")
    return pd.concat(parts).filter(["switch", "seed", "metric", "value"])


def table(frame: pd.DataFrame) -> str:
    """Means over seeds, a row per ablation, as Markdown."""
    wide = frame.pivot_table("value", "switch", "metric", "mean", sort=False).round(1)
    head = ["switch", *wide.columns]
    lines = [[str(name), *map(str, row)] for name, row in zip(wide.index, wide.values, strict=True)]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__)
    parser.add_argument("--editor", choices=ABLATIONS, default="dualedit")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--data", default="scenes-vqa")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--test-limit", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/switches"))
    parser.add_argument("--out", type=Path, default=Path("figures/tables/switches"))
    options = parser.parse_args(arguments)
    frame = measure(options)
    made = f"{options.model}, {options.data}, {options.limit} edits, {options.steps} steps"
    text = f"{made}, {options.seeds} seeds, {options.test_limit} held-out edits\n\n{table(frame)}"
    write_text(options.out / f"{options.editor}.csv", frame.to_csv(index=False))
    write_text(options.out / f"{options.editor}.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
