"""Open rates of cosine gates on held-out edits: as a user asks, and teacher-forced.

    python -m benchmarks.gates                      # writes figures/tables/gates/open.csv

The published gate (`sequence_last`) compares the last token of the teacher-forced sequence with
that of the edit. A user gives no answer: then the last token is that of the prompt. Each gate is
scored both ways, with its threshold calibrated on training edits and with the papers' fixed ones.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

import attrib
from attrib.files import write_text
from editors.gating.threshold import gate_table
from editors.gating.training import fit_cosine_gate

FIXED = (0.6, 0.8)  # DualEdit: LLaVA-1.5, BLIP-2


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Columns of `gate_table`, with `answer` (in the input or not) and `n_train`."""
    vlm = attrib.load(options.model, dtype=options.dtype)
    train = attrib.data.load(options.data, split="train", limit=options.train)
    test = attrib.data.load(options.data, split="test", limit=options.limit)
    gates = {
        f"{token}, {'calibrated' if threshold is None else threshold}": fit_cosine_gate(
            vlm, train, options.layer, token, threshold=threshold
        )
        for token, thresholds in {"prompt_last": (None,), "sequence_last": (None, *FIXED)}.items()
        for threshold in thresholds
    }
    parts = [
        gate_table(vlm, test, gates, forced=forced).assign(answer=forced)
        for forced in (False, True)
    ]
    return pd.concat(parts, ignore_index=True).assign(layer=options.layer, n_train=len(train))


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gates", description=__doc__)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", default="scenes-vqa")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--train", type=int, default=500)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("figures/tables/gates/open.csv"))
    options = parser.parse_args(arguments)
    table = measure(options)
    write_text(options.out, table.to_csv(index=False, float_format="%.6g"))
    shown = table[["gate", "answer", "relation", "open", "open_low", "open_high", "auc"]]
    sys.stdout.write(shown.round(3).to_string(index=False) + "\n")


if __name__ == "__main__":
    main()
