"""What attribution costs, as ratios measured in one run.

    python -m benchmarks.attribution                  # two CPU cores: some minutes
    python -m benchmarks.attribution --device cuda --dtype bfloat16 --shape llava-7b

Prints the table and writes it, with all rounds, to `benchmarks/results/`.
"""

import argparse
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attrib.analyses.contributions import contributions_of
from attrib.analyses.direct_logits import key_tokens
from attrib.analyses.heatmaps import Perturbation, heatmap_pass, heatmaps, stack_maps
from attrib.analyses.sensitivity import sensitivity
from attrib.forward.attention import attention_rows
from attrib.forward.residual import residual_writes
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from benchmarks import baselines
from benchmarks.harness import RESULTS, compare, device_name, is_gpu, ratio, save
from benchmarks.shapes import LLAVA_7B, Shape, random_batch, random_vlm

SIGMAS = (0.1, 0.3, 1.0, 3.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A model, a batch and the number of rounds."""

    vlm: VLM
    batch: Batch
    shape: Shape
    rounds: int
    device: str

    def versus(
        self, what: str, naive: Callable[[], object], ours: Callable[[], object], scale: float = 1.0
    ) -> Row:
        """How many times longer `naive` takes than `ours`; `scale` extrapolates a partial run."""
        timed = compare({"naive": naive, "ours": ours}, self.rounds, self.device)
        times = {k: v * scale for k, v in ratio(timed["naive"], timed["ours"]).items()}
        weights = sum(p.numel() * p.element_size() for p in self.vlm.model.parameters())
        peaks = {name: (weights + t.peak_bytes) / 2**20 for name, t in timed.items()}
        memory = {f"{name} peak MiB, weights included": peak for name, peak in peaks.items()}
        memory["memory ratio"] = peaks["naive"] / peaks["ours"]
        seconds = {f"{name} s": t.median for name, t in timed.items()}
        seconds["naive s"] *= scale
        return {"what": what, **times, **seconds, **memory}


def one_pass(vlm: VLM, batch: Batch) -> object:
    """Heatmaps, contributions and attention rows of all layers, in one pass."""
    last, layers = batch["last"], range(vlm.num_layers)
    with (
        residual_writes(vlm, last) as writes,
        attention_rows(vlm, last) as rows,
        heatmap_pass(vlm, batch, layers, Perturbation()) as maps,
    ):
        vlm.logits(batch)
    key = key_tokens(vlm, batch, writes, "argmax")
    return contributions_of(vlm, writes, key, "none"), rows, stack_maps(maps, layers, batch)


def capture(vlm: VLM, batch: Batch) -> object:
    """The residual writes and attention rows that contributions and attention profiles need."""
    with residual_writes(vlm, batch["last"]) as writes, attention_rows(vlm, batch["last"]) as rows:
        vlm.logits(batch)
    return writes, rows


@torch.no_grad()
def measure(bench: Bench) -> list[Row]:
    """All comparisons on one shape."""
    vlm, batch, shape = bench.vlm, bench.batch, bench.shape
    single = baselines.single_tokens(shape.visual)
    near = baselines.neighbourhoods(shape.side, radius=3)
    some = [0, vlm.num_layers // 2]  # the naive ways are slow: two layers represent all
    share = vlm.num_layers / len(some)
    brute = partial(baselines.brute_heatmaps, vlm, batch, some, 3.0)
    ours = partial(heatmaps, vlm, batch)
    rows = [
        bench.versus("heatmaps, token by token, all layers", partial(brute, single), ours, share),
        bench.versus(
            "heatmaps, neighbourhoods of radius 3, all layers",
            partial(brute, near),
            partial(ours, radius=3),
            share,
        ),
        *over_a_plain_pass(bench),
    ]
    for modality in ("text", "visual", "both"):
        rows.append(
            bench.versus(
                f"sweep, {modality}, over all layers",
                partial(baselines.naive_sweep, vlm, batch, modality, SIGMAS, some),
                partial(sensitivity, vlm, batch, modality, SIGMAS),
                scale=share,
            )
        )
    return rows + against_peers(bench)


def over_a_plain_pass(bench: Bench) -> list[Row]:
    """All analyses of one pass, and the capture that they need."""
    plain = partial(bench.vlm.logits, bench.batch)
    ours = {"all analyses of one pass": one_pass, "capture for them": capture}
    return [
        bench.versus(f"{what}, over a plain one", partial(run, bench.vlm, bench.batch), plain)
        for what, run in ours.items()
    ]


def against_peers(bench: Bench) -> list[Row]:
    """Comparisons with other libraries."""
    vlm, batch = bench.vlm, bench.batch
    some = [0, vlm.num_layers // 2]  # naive sweeps are slow: two layers represent all
    ours = partial(capture, vlm, batch)
    cached, swept = baselines.bridge_calls(vlm, batch)
    rows = [
        bench.versus(
            "output_attentions=True, output_hidden_states=True, over our capture",
            partial(baselines.hugging_face_outputs, vlm, batch),
            ours,
        ),
        bench.versus("TransformerLens run_with_cache, over our capture", cached, ours),
        bench.versus(
            "sweep, text, by TransformerLens run_with_hooks",
            partial(swept, "text", SIGMAS, some),
            partial(sensitivity, vlm, batch, "text", SIGMAS),
            scale=vlm.num_layers / len(some),
        ),
    ]
    traced = baselines.nnsight_outputs(vlm, batch)
    if traced is not None:
        what = "nnsight trace of module outputs, without attention rows, over our capture"
        rows.append(bench.versus(what, traced, ours))
    return rows


@torch.no_grad()
def scaling(dtype: torch.dtype, device: str, rounds: int) -> list[Row]:
    """All analyses of one pass over a plain one, as visual tokens and layers grow."""
    shapes = [Shape(side=side, layers=4) for side in (8, 16, 24, 32, 48)]
    shapes += [Shape(side=16, layers=layers) for layers in (2, 8, 16)]
    rows = []
    for shape in shapes:
        vlm = random_vlm(shape, dtype, device)
        bench = Bench(vlm, random_batch(vlm, shape), shape, rounds, device)
        what = f"{shape.visual} visual tokens, {shape.layers} layers"
        all_of_it = partial(one_pass, vlm, bench.batch)
        rows.append(bench.versus(what, all_of_it, partial(vlm.logits, bench.batch)))
    return rows


def show(rows: list[Row]) -> str:
    """The rows as an aligned text table."""
    lines = [f"{'':66} {'ratio':>8} {'from':>8} {'to':>8} {'s':>8} {'over s':>8} {'memory':>8}"]
    for row in rows:
        times = [row["median"], row["low"], row["high"]]
        cells = [*(f"{t:8.2f}" for t in times), f"{row['naive s']:8.3f}", f"{row['ours s']:8.3f}"]
        cells.append(f"{row['memory ratio']:8.2f}")
        lines.append(f"{row['what']:66} " + " ".join(cells))
    return "\n".join(lines)


PARTS = {"passes": over_a_plain_pass, "peers": against_peers}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attribution", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--shape", default="small", choices=("small", "llava-7b"))
    parser.add_argument("--part", default="all", choices=("all", *PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    shape = LLAVA_7B if options.shape == "llava-7b" else Shape()
    dtype = getattr(torch, options.dtype)
    vlm = random_vlm(shape, dtype, options.device)
    bench = Bench(vlm, random_batch(vlm, shape), shape, options.rounds, options.device)
    with torch.no_grad():
        tables = {"ratios": PARTS.get(options.part, measure)(bench)}
    if options.shape == "small" and options.part == "all":
        tables["growth"] = scaling(dtype, options.device, options.rounds)
    for rows in tables.values():
        sys.stdout.write(show(rows) + "\n\n")
    _save(options, shape, tables)


def _save(options: argparse.Namespace, shape: Shape, tables: dict[str, list[Row]]) -> None:
    gpu = is_gpu(options.device)
    head = {
        "machine": device_name(options.device) if gpu else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "shape": asdict(shape),
        "rounds": options.rounds,
    }
    name = "attribution" if options.part == "all" else options.part
    file = options.out / f"{name}-{options.shape}-{options.device.partition(':')[0]}.json"
    save(file, head, tables)
    sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
