"""Open rates of learned gates, by the layer that they read and the number of training edits.

    python -m benchmarks.learned_gates --dtype bfloat16 --gates 160:0,160:8,160:16,2000:8:600,2000:8

A gate is named EDITS:LAYER or EDITS:LAYER:STEPS; one takes 2 to 15 minutes on one core. Scored as a
user asks, without the answer, on edits of the validation split, each gate with its own calibrated
threshold. Gates are kept in a folder and not trained again; those of another model, dtype, seed or
data there are refused: give another --runs. Writes `open.csv` into
`figures/tables/gates-smol-llava/`.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

import attrib
from attrib.files import write_text
from editors.gating.fitted import fit_once
from editors.gating.gates import load_gate
from editors.gating.threshold import gate_table
from editors.gating.training import GateTraining


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Columns of `gate_table`, with the number of training edits and the layer."""
    vlm = attrib.load(options.model, dtype=options.dtype)
    samples = list(attrib.data.load(options.data, split="validation", limit=options.limit))
    parts = []
    for pair in options.gates.split(","):
        edits, layer, *steps = (int(number) for number in pair.split(":"))
        folder = options.runs / pair.replace(":", "-")
        data = attrib.data.load(options.data, split="train", limit=edits)
        settings = GateTraining(steps=steps[0] if steps else None, seed=options.seed)
        fit_once(folder, "learned", vlm, data, layer, options.seed, settings=settings)
        gate = load_gate(folder)
        table = gate_table(vlm, samples, {"learned": gate}, seed=options.seed)
        taken = gate.record["settings"]["steps"]
        row = {"training_edits": edits, "layer": layer, "steps": taken, "seed": options.seed}
        parts.append(table.assign(**row))
        sys.stderr.write(f"{pair}\n{parts[-1].round(3).to_string(index=False)}\n")
    return pd.concat(parts, ignore_index=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learned_gates")
    parser.add_argument("--model", default="smol-llava")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", default="scenes-vqa")
    parser.add_argument("--gates", default="160:0,160:8,160:16,2000:8:600,2000:8")
    parser.add_argument("--limit", type=int, default=100, help="validation edits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/learned-gates"))
    parser.add_argument("--out", type=Path, default=Path("figures/tables/gates-smol-llava"))
    options = parser.parse_args(arguments)
    write_text(options.out / "open.csv", measure(options).to_csv(index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()
