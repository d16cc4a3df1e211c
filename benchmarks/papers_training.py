"""What training DualEdit as published costs on a model of the exact shape of LLaVA-1.5-7B.

    python -m benchmarks.papers_training                        # one GPU
    python -m benchmarks.papers_training --shape small --device cpu --dtype float32 --steps 3

Weights are random (costs do not depend on them), the model is in bfloat16 and the adapters, text at
layer 16 and visual at layer 19, in float32; batches of 4 edits as published. Measures steps from
cached prefixes and steps that run the whole model, in one run, and projects both to the papers'
50,000 steps. Writes `benchmarks/results/papers-training-DEVICE.json`.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from benchmarks.harness import RESULTS, clock, device_name, peak_mib, reset_peak, save
from benchmarks.shapes import DTYPES, SHAPES, random_vlm_with_processor
from editors.adapters.edit_signal import signal_layers
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective, trained_roles
from editors.training.dataset import cached_or_streamed
from editors.training.trainer import Trainer

WARMUP, PAPERS_STEPS = 3, 50_000


@dataclass(frozen=True, eq=False)
class Bench:
    """The papers' configuration on one model."""

    vlm: VLM
    samples: list[EditSample]
    text: int
    visual: int
    steps: int

    def measure(self, cached: bool) -> dict[str, Any]:
        """Seconds per step, peak memory and the projection, with cached prefixes or without."""
        few: dict[str, Any] = {"steps": WARMUP, "validate_every": 10**9, "save_every": 10**9}
        config = AdapterConfig.from_preset(self.vlm, "default", **few)
        sites = config.build(self.vlm, {"text": [self.text], "visual": [self.visual]}, seed=0)
        needed = signal_layers(config.signal, [self.text, self.visual])
        reset_peak(self.vlm.device)
        began = time.perf_counter()
        data, held = cached_or_streamed(
            self.vlm, self.samples, self.samples[:1], first=[min(self.text, self.visual)],
            signals=needed, roles=trained_roles(config, sites), keep=cached,
        )  # fmt: skip
        prepared = clock(self.vlm.device) - began
        objective = AdapterObjective(self.vlm, data, held, config, sites)
        seconds = _seconds_per_step(self.vlm, objective, config, self.steps)
        stored: Any = data
        return {
            "cached": cached,
            "seconds per step": seconds,
            "steps per second": 1 / seconds,
            "seconds to cache an edit": prepared / len(self.samples) if cached else 0.0,
            "MiB cached per edit": stored.num_bytes / len(self.samples) / 2**20 if cached else 0.0,
            "peak MiB": peak_mib(self.vlm.device),
            "hours for 50,000 steps": PAPERS_STEPS * seconds / 3600,
        }


def _seconds_per_step(vlm: VLM, objective: AdapterObjective, training: Any, steps: int) -> float:
    """Seconds of the training loop per step, without validation, after a warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(objective, training, Path(folder), {}, lambda _line: None)
        for _ in range(WARMUP):
            run.step()
        began = clock(vlm.device)
        for _ in range(steps):
            run.step()
        return (clock(vlm.device) - began) / steps


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers_training")
    parser.add_argument("--shape", choices=SHAPES, default="llava-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--edits", type=int, default=64, help="edits that the steps draw from")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    shape = SHAPES[options.shape]
    dtype = getattr(torch, options.dtype)
    vlm = random_vlm_with_processor(shape, dtype, options.device)
    samples = list(attrib.data.load("scenes-vqa", split="train", limit=options.edits))
    text, visual = shape.layers * 16 // 32, shape.layers * 19 // 32
    bench = Bench(vlm, samples, text, visual, options.steps)
    rows = [bench.measure(cached) for cached in (True, False)]
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    head = {
        "shape": asdict(shape), "dtype": options.dtype, "device": device_name(options.device),
        "layers": {"text": text, "visual": visual}, "steps": options.steps, "edits": options.edits,
    }  # fmt: skip
    save(options.out or RESULTS / f"papers-training-{options.device}.json", head, {"rows": rows})


if __name__ == "__main__":
    main()
