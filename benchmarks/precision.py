"""How far results in half precision are from those in float32, analysis by analysis.

    python -m benchmarks.precision

Runs the analyses on the same samples in float32, float16 and bfloat16 on each embedded model, and
bfloat16 once more with other batch sizes. One row per model, dtype and analysis goes to
`benchmarks/results/precision.csv` as soon as it is known; rows that exist are not computed again.

Columns: the median and mean over samples of Spearman's correlation over layers; the share of
samples with the same top layer; the share whose margin in float32 (top layer over the second,
relative) exceeds twice the deviation, so that the top layer cannot change; the largest regret (how
far the float32 value of the chosen layer lies below the largest, relative); and the median relative
deviation (largest difference over layers, over the largest value).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

import attrib
from attrib.analyses.direct_logits import direct_logits
from attrib.analyses.patching import patching_difference
from attrib.analyses.prompts import partner_image
from attrib.analyses.visual_tokens import gradient_times_input
from attrib.data import EditSample
from attrib.files import write_text
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS

MODELS = ("tiny-llava", "tiny-blip2", "tiny-minigpt4")
OUT = RESULTS / "precision.csv"
BATCH = 8
Curves = Float[np.ndarray, "sample layer"]
Analysis = Callable[[VLM, Batch, list[EditSample]], object]
SIGMA = {"sigmas": (1.0,)}


def _patching(vlm: VLM, batch: Batch, samples: list[EditSample]) -> object:
    images = [partner_image(sample, None, False)[0] for sample in samples]
    other = vlm.encode(images, [sample.request.prompt for sample in samples])
    return patching_difference(vlm, batch, other)


ANALYSES: dict[str, Analysis] = {
    "contributions, attention": lambda v, b, _: attrib.contributions(v, b)[..., 0],
    "contributions, MLP": lambda v, b, _: attrib.contributions(v, b)[..., 1],
    "direct logits": lambda v, b, _: direct_logits(v, b).modules.sum(-1),
    "attention, visual": lambda v, b, _: (attrib.attention(v, b) * b["visual"][:, None]).sum(-1),
    "heatmaps, 0.1 std": lambda v, b, _: attrib.heatmaps(v, b, noise=0.1).nanmean(-1),
    "heatmaps, 3 std": lambda v, b, _: attrib.heatmaps(v, b).nanmean(-1),
    "gradient times input": lambda v, b, _: gradient_times_input(v, b).abs().nanmean(-1),
    "sensitivity, text": lambda v, b, _: attrib.sensitivity(v, b, "text", **SIGMA)[..., 0],
    "sensitivity, visual": lambda v, b, _: attrib.sensitivity(v, b, "visual", **SIGMA)[..., 0],
    "sensitivity, both": lambda v, b, _: attrib.sensitivity(v, b, "both", **SIGMA)[..., 0],
    "patching": _patching,
}


def curves(vlm: VLM, samples: list[EditSample], analysis: Analysis, size: int = BATCH) -> Curves:
    """The analysis as one curve over layers per sample."""
    parts = []
    for start in range(0, len(samples), size):
        some = samples[start : start + size]
        requests = [sample.request for sample in some]
        batch = vlm.encode([one.image for one in requests], [one.prompt for one in requests])
        values = analysis(vlm, batch.named([sample.id for sample in some]), some)
        parts.append(np.asarray(values.detach().double().cpu()))  # type: ignore[attr-defined]
    return np.concatenate(parts)


def deviation(exact: Curves, other: Curves) -> dict[str, float]:
    """How far curves are from the exact ones; see the module's docstring."""
    usable = np.isfinite(exact).all(1) & np.isfinite(other).all(1)
    exact, other = exact[usable], other[usable]
    ranked = (pd.DataFrame(values).rank(axis=1).to_numpy() for values in (exact, other))
    ranks = [np.corrcoef(a, b)[0, 1] for a, b in zip(*ranked, strict=True)]  # Spearman's
    largest = np.abs(exact).max(1)
    relative = np.abs(exact - other).max(1) / largest
    order = np.sort(exact, axis=1)
    margin = (order[:, -1] - order[:, -2]) / largest
    chosen = other.argmax(1)
    same, clear = exact.argmax(1) == chosen, margin > 2 * relative
    regret = (order[:, -1] - exact[np.arange(len(exact)), chosen]) / largest
    return {
        "samples": len(exact),
        "rank_correlation_median": float(np.median(ranks)),
        "rank_correlation_mean": float(np.mean(ranks)),
        "same_top_layer": float(same.mean()),
        "clear_margin": float(clear.mean()),
        "regret_max": float(regret.max()),
        "relative_deviation_median": float(np.median(relative)),
    }


def measure(models: tuple[str, ...], limit: int, out: Path) -> pd.DataFrame:
    """Measure what `out` lacks, and return all rows."""
    rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    done = {(row["model"], row["analysis"]) for row in rows if row["dtype"] == "bfloat16 alone"}
    samples = list(attrib.data.load("scenes-vqa", split="test", limit=limit))
    for name in models:
        missing = [one for one in ANALYSES if (name, one) not in done]
        if not missing:
            continue
        vlms = {d: attrib.load(name, dtype=d) for d in ("float32", "float16", "bfloat16")}
        for analysis in missing:
            run = ANALYSES[analysis]
            found = {d: curves(vlm, samples, run) for d, vlm in vlms.items()}
            alone = curves(vlms["bfloat16"], samples, run, 1)
            pairs = {
                "float16": (found["float32"], found["float16"]),
                "bfloat16": (found["float32"], found["bfloat16"]),
                "bfloat16 alone": (found["bfloat16"], alone),  # against its batches of 8
            }
            rows = [row for row in rows if (row["model"], row["analysis"]) != (name, analysis)]
            head = {"model": name, "analysis": analysis}
            rows += [head | {"dtype": d} | deviation(*pair) for d, pair in pairs.items()]
            write_text(out, pd.DataFrame(rows).to_csv(index=False, float_format="%.5f"))
            print(pd.DataFrame(rows[-3:]).to_string(index=False, header=False), flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="half precision against float32")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    measure(tuple(given.models), given.limit, given.out)
