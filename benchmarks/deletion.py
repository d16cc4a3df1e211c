"""Insertion and deletion areas of heatmaps, raw attention and gradients on three backbones.

    python -m benchmarks.deletion --limit 200            # 15 minutes on one CPU core

Each backbone's run is kept in a folder and resumed (`--runs`). Prints, and writes to `--out`, mean
areas with 95 % bootstrap intervals over the questions, and paired differences of insertion minus
deletion from a random order and from raw attention.
"""

import argparse
from pathlib import Path
from typing import Any

import attrib
from attrib.report.intervention_summaries import deletion_gaps
from attrib.results import Result
from attrib.stats import bootstrap_means, interval
from benchmarks.harness import RESULTS, save

MODELS = ("tiny-llava", "tiny-blip2", "tiny-minigpt4")
AGAINST = ("random", "attention")


def rows_of(model: str, result: Result) -> list[dict[str, Any]]:
    """A row per method: both areas and its paired differences, each with low and high."""
    table = result.mean(["method", "statistic"]).set_index(["method", "statistic"])
    rows = []
    for method in dict.fromkeys(map(str, result.frame["method"])):
        row: dict[str, Any] = {"model": model, "method": method}
        for statistic in ("insertion", "deletion"):
            row[statistic] = [round(float(table.loc[(method, statistic), k]), 4)  # pyright: ignore[reportArgumentType]
                              for k in ("mean", "low", "high")]  # fmt: skip
        for other in AGAINST:
            paired = deletion_gaps(result, method) - deletion_gaps(result, other)
            low, high = interval(bootstrap_means(paired[:, None], seed=0)[:, 0])
            row[f"gap over {other}"] = [round(float(v), 4) for v in (paired.mean(), low, high)]
        rows.append({**row, "n": result.examples})
    return rows


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--baseline", choices=("mean", "blur"), default="mean")
    parser.add_argument("--runs", type=Path, default=Path("runs/deletion"))
    parser.add_argument("--out", type=Path, default=RESULTS / "deletion.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in options.models:
        data = attrib.data.load("scenes-vqa", split="test", limit=options.limit)
        out = options.runs / f"{model}-{options.baseline}-{options.limit}"
        how: dict[str, Any] = {"baseline": options.baseline, "batch_size": 8}
        vlm = attrib.load(model, dtype=options.dtype)
        result = attrib.run("deletion", vlm, data, out=out, **how)
        rows += rows_of(model, result)
        print(result.summary(), flush=True)
    head = {k: v for k, v in vars(options).items() if k not in ("runs", "out")}
    save(options.out, head | {"split": "test", "seed": 0}, {"rows": rows})


if __name__ == "__main__":
    main()
