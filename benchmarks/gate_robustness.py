"""Does the learned gate open for the edit's own request when the picture or the words change?

    python -m benchmarks.gate_robustness --train 600          # a few minutes per gate on one core
    python -m benchmarks.gate_robustness --only trained,"without same_question_other_image"

Open rates and AUC on held-out edits of scenes-vqa. The request must open the gate, also cropped to
90 % of each side, as a JPEG of quality 30, mirrored, in a frame, in a new rendering
(`visual_generality`) and in other words (`text_generality`). It must stay closed for the same
picture with another question, for the same question about another picture or about the most similar
picture of another edit, for other pictures with other questions, and for text alone. Besides the
gate as it is trained by default, one is trained without changed pictures, and one without each kind
of near neighbour, which it then meets for the first time. AUC is that of all requests that must
open against one kind. Each gate is kept in a folder and not trained again. Writes
`figures/tables/gate-robustness/`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import attrib
from attrib.data import EditRequest, EditSample
from attrib.files import write_text
from attrib.model.vlm import VLM
from attrib.stats import clustered_interval, roc
from editors.gating.augmentation import CHANGES, nearest_pictures, with_change
from editors.gating.features import RelatedInput, collect_states, related_inputs
from editors.gating.gates import LearnedGate, load_gate, save_gate
from editors.gating.threshold import score_table
from editors.gating.training import GateTraining, train_gate

KINDS = ("same_image_same_kind", "same_image_other_kind", "same_question_other_image")
SAME_IMAGE = "same picture, other question"
OPENS = ("request", *CHANGES, "visual_generality", "text_generality")
NEAREST = "nearest_picture"
SEED_OF_CHANGES = 10**6  # crops that training did not draw


def settings_of(options: argparse.Namespace) -> dict[str, tuple[GateTraining, str | None]]:
    """The gates by name: settings, and the kind of near neighbour that is left out."""
    default = GateTraining(seed=options.seed)
    gates: dict[str, tuple[GateTraining, str | None]] = {
        "trained": (default, None),
        "without changed pictures": (replace(default, changes=0), None),
    }
    return gates | {f"without {kind}": (default, kind) for kind in KINDS}


def gate_in(folder: Path, vlm: VLM, options: argparse.Namespace, name: str) -> LearnedGate:
    """The gate of a name, trained once."""
    settings, left_out = settings_of(options)[name]
    place = folder / f"{name.replace(' ', '-')}-{options.train}-seed-{options.seed}"
    if not (place / "gate.json").exists():
        samples = attrib.data.load(options.data, split="train", limit=options.train)
        some = [_without(sample, left_out) for sample in samples]
        save_gate(place, train_gate(vlm, some, [options.layer], settings))
    gate = load_gate(place)
    assert isinstance(gate, LearnedGate)
    return gate


def _without(sample: EditSample, kind: str | None) -> EditSample:
    """A sample without a kind of near neighbour, nor the questions about changed pictures of it."""
    types = sample.meta.get("hard_types", [])
    keep = [i for i, name in enumerate(types) if name != kind]
    meta = {**sample.meta, "hard_types": [types[i] for i in keep]}
    return replace(sample, hard_locality=[sample.hard_locality[i] for i in keep], meta=meta)


def inputs_of(samples: Sequence[EditSample]) -> list[RelatedInput]:
    """The inputs of test edits: their own, changed pictures, and the nearest picture."""
    changed = [
        RelatedInput(row, name, with_change(sample.request, name, SEED_OF_CHANGES + row))
        for row, sample in enumerate(samples)
        for name in CHANGES
    ]
    near = [
        RelatedInput(
            row,
            NEAREST,
            EditRequest(samples[other].request.source, samples[row].request.prompt, ""),
        )
        for row, other in nearest_pictures(samples, range(len(samples))).items()
    ]
    return [*related_inputs(samples), *changed, *near]


def rates(scores: pd.DataFrame, gate: LearnedGate, seed: int) -> pd.DataFrame:
    """Open rates and AUC by kind of input, with 95 % intervals over edits."""
    scores = scores.assign(open=(scores["value"] >= gate.threshold).astype(float))
    must = scores[scores["relation"].isin(OPENS)]
    same = scores[scores["relation"].isin(KINDS[:2])].assign(relation=SAME_IMAGE)
    rows = []
    for relation, some in pd.concat([scores, same]).groupby("relation", sort=False):
        low, high = _interval(some, seed)
        row = {"input": relation, "must": "open" if relation in OPENS else "stay closed",
               "n": some["example"].nunique(), "open": some["open"].mean(), "low": low,
               "high": high}  # fmt: skip
        if relation not in OPENS:
            both = pd.concat([must, some])
            labels = both["relation"].isin(OPENS).to_numpy()
            row["auc"] = float(roc(both["value"].to_numpy(), labels).auc[0])
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(some: pd.DataFrame, seed: int) -> tuple[float, float]:
    items = pd.factorize(some["example"])[0]
    return clustered_interval(np.asarray(some["open"], float), items, seed=seed)


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """The rates of every gate."""
    vlm = attrib.load(options.model)
    test = list(attrib.data.load(options.data, split="test", limit=options.limit))
    inputs, parts = inputs_of(test), []
    requests: Mapping[str, Any] = {sample.id: sample.request for sample in test}
    for name in options.only.split(",") if options.only else settings_of(options):
        gate = gate_in(options.runs, vlm, options, name)
        reads = (gate.layers, gate.states)
        states = collect_states(vlm, [one.request for one in inputs], *reads)
        edits = collect_states(vlm, list(requests.values()), *reads)
        scores = score_table(list(requests), inputs, states, edits, gate)
        parts.append(rates(scores, gate, options.seed).assign(gate=name, seed=options.seed))
        sys.stderr.write(f"{name}\n{parts[-1].round(3).to_string(index=False)}\n")
    return pd.concat(parts, ignore_index=True)


def table(frame: pd.DataFrame) -> str:
    """Open rates in per cent, a column per gate, as Markdown."""

    def cell(row: Any) -> str:
        return f"{100 * row.open:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"

    names, lines = list(dict.fromkeys(frame["gate"])), []
    for (relation, must), some in frame.groupby(["input", "must"], sort=False):
        by = {row.gate: cell(row) for row in some.itertuples()}
        lines.append([str(relation), str(must), *(by.get(name, "") for name in names)])
    head = ["input", "must", *names]
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_robustness")
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--data", default="scenes-vqa")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of gates, comma-separated")
    parser.add_argument("--runs", type=Path, default=Path("runs/gate-robustness"))
    parser.add_argument("--out", type=Path, default=Path("figures/tables/gate-robustness"))
    options = parser.parse_args(arguments)
    frame = measure(options)
    made = (
        f"{options.model}, {options.data}, learned gate at layer {options.layer}, {options.train} "
        f"training edits, {options.limit} test edits, seed {options.seed}; share that opens, in "
        "per cent, with 95 % intervals over edits"
    )
    write_text(options.out / "open.csv", frame.to_csv(index=False, float_format="%.5g"))
    write_text(options.out / "summary.md", f"{made}\n\n{table(frame)}")
    sys.stdout.write(table(frame))


if __name__ == "__main__":
    main()
