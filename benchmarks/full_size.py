"""Models of the exact published sizes on a CPU: time and peak memory against the weights' size.

    python -m benchmarks.full_size --shape blip2-opt-2.7b
    python -m benchmarks.full_size --shape llava-1.5-7b --tiny      # the same code in seconds
    python -m benchmarks.full_size --shape llava-1.5-7b --device cuda

Writes random weights in bfloat16 as shards (needs as much disk), loads them as a download is loaded
and runs every step in a process of its own: all checks of `attrib models check`, the heatmaps of
one photo, a text sweep of four layers, one training step of DualEdit, one edit. Peak memory is the
high-water mark of the process's resident memory from its start, mapped files included; on a GPU it
is also that of the device. A finished step is not run again, nor a check that passed. Writes
`benchmarks/results/full-size-SHAPE.json`, or `full-size-SHAPE-cuda.json`.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.checks import CHECKS, Check
from attrib.checks.inputs import CheckInputs
from attrib.data.samples import EditRequest, EditSample
from attrib.files import write_text
from benchmarks.float32_linear import float32_linear
from benchmarks.harness import RESULTS, device_name, is_gpu, peak_mib, reset_peak
from benchmarks.official import SHAPES, TINY, official
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.steps import Row, Steps, child, machine, peak_bytes

PROMPT = "What shape is this?"
SIGMA = 0.5  # of the sweep
SWEPT = 4  # layers
TEXT, VISUAL, DEPTH = 16, 19, 32  # DualEdit's layers in a model of 32
RUNS = Path("runs/full-size")
PASSED = "checks.json"  # beside the weights: checks that passed


@dataclass(frozen=True)
class FullSize:
    """One shape: its checkpoint and its steps."""

    shape: str
    folder: Path
    tiny: bool = False
    image: Path | None = None
    multiply: str = "native"
    device: str = "cpu"

    def run(self, step: str) -> Row:
        """Run a step; peak memory is put in relation to the weights."""
        reset_peak(self.device)
        with float32_linear() if self.multiply == "float32" else nullcontext():
            row = self.steps[step]()
        return {
            **row,
            **({"device peak MiB": peak_mib(self.device)} if is_gpu(self.device) else {}),
            "weights MiB": self.weight_bytes / 2**20,
            "multiplied in": self.multiply,
            "threads": torch.get_num_threads(),
        }

    @property
    def steps(self) -> dict[str, Callable[[], Row]]:
        """All steps in their order."""
        return {
            "write": self.write, "load": self.load, "heatmap": self.heatmap, "sweep": self.sweep,
            "train": self.train, "edit": self.edit, "check": self.check,
        }  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Bytes of the shards."""
        return sum(file.stat().st_size for file in self.folder.glob("model-*.safetensors"))

    def write(self) -> Row:
        """Write the checkpoint."""
        config, processor = official(self.shape, TINY if self.tiny else None)
        write_checkpoint(config, processor, self.folder)
        return {"shards": len(list(self.folder.glob("model-*.safetensors")))}

    def load(self) -> Row:
        """Load it without verification; the step `check` has all checks."""
        return {"parameters": self._vlm.model.num_parameters()}

    def check(self) -> Row:
        """All checks of `attrib models check`; one that passed is not run again."""
        report = attrib.check(self._vlm, [self._once(one) for one in CHECKS])
        passed = self._passed.values()
        row: Row = {"checks": len(report.results)}
        if not report.passed:
            row["failed"] = "; ".join(f"{one.check}: {one.detail}" for one in report.failed)
        row["seconds of the step"] = round(sum(one["seconds"] for one in passed), 3)
        return row | {"peak MiB": max(one["peak MiB"] for one in passed)} if passed else row

    @property
    def _passed(self) -> dict[str, Row]:
        file = self.folder / PASSED
        return json.loads(file.read_text()) if file.exists() else {}

    def _once(self, check: Check) -> Check:
        name = check.__name__

        @wraps(check)
        def once(inputs: CheckInputs) -> str:
            if name not in self._passed:
                began = time.perf_counter()
                row: Row = {"detail": check(inputs), "seconds": time.perf_counter() - began}
                row["peak MiB"] = peak_bytes() / 2**20
                write_text(self.folder / PASSED, json.dumps({**self._passed, name: row}, indent=1))
            return self._passed[name]["detail"]

        return once

    def heatmap(self) -> Row:
        """Heatmaps of all layers for one photo."""
        return self._timed(lambda vlm: attrib.heatmaps(vlm, self._encoded))

    def sweep(self) -> Row:
        """A text sweep of four layers over the depth."""
        layers = [i * (self._vlm.num_layers - 1) // (SWEPT - 1) for i in range(SWEPT)]
        return self._timed(
            lambda vlm: attrib.sensitivity(vlm, self._encoded, sigmas=(SIGMA,), layers=layers)
        ) | {"layers": layers}

    def train(self) -> Row:
        """One step of DualEdit as published, on one edit with one input of each kind."""
        from editors import DualEdit

        shutil.rmtree(self._editor, ignore_errors=True)
        depth = self._vlm.num_layers / DEPTH
        layers = {"text": [round(TEXT * depth)], "visual": [round(VISUAL * depth)]}
        edit, other = attrib.data.load("scenes-vqa", split="train", limit=2)
        options: dict[str, Any] = {"preset": "default", "gate": "none", "batch_size": 1}
        options |= {"validation": [EditSample(other.id, other.request)], "layers": layers}

        def train(vlm: attrib.VLM) -> None:
            DualEdit.train(vlm, [_brief(edit)], out=self._editor, steps=1, **options)

        return self._timed(train) | {"layers": layers}

    def edit(self) -> Row:
        """One edit by the editor of the step `train`, and a pass under it."""
        from editors import DualEdit

        sample = attrib.data.load("scenes-vqa", split="validation", limit=1)[0]

        def edit_and_ask(vlm: attrib.VLM) -> None:
            edit = DualEdit.load(self._editor, vlm).edit(vlm, sample.request)
            with torch.no_grad(), edit.applied(vlm):
                vlm.logits(vlm.encode([sample.request.image], [sample.request.prompt]))

        return self._timed(edit_and_ask)

    def _timed(self, run: Callable[[attrib.VLM], object]) -> Row:
        vlm, began = self._vlm, time.perf_counter()
        run(vlm)
        return {"seconds of the step": round(time.perf_counter() - began, 3)}

    @cached_property
    def _vlm(self) -> attrib.VLM:
        return attrib.load(str(self.folder), device=self.device, dtype="bfloat16", verify=False)

    @cached_property
    def _encoded(self) -> attrib.Batch:
        from attrib.data.images import open_photo

        if self.image is not None:
            photo = open_photo(self.image)
        else:
            photo = attrib.data.load("scenes-vqa", split="test", limit=1)[0].request.image
        return self._vlm.encode([photo], [PROMPT])

    @property
    def _editor(self) -> Path:
        return self.folder / "dualedit"


def _brief(sample: EditSample) -> EditSample:
    """The sample with one input of each kind at most."""

    def first(requests: list[EditRequest]) -> list[EditRequest]:
        return list(requests)[:1]

    return replace(
        sample,
        text_generality=first(sample.text_generality),
        visual_generality=first(sample.visual_generality),
        text_locality=first(sample.text_locality),
        visual_locality=first(sample.visual_locality),
        hard_locality=[],
    )


def main(arguments: list[str] | None = None) -> None:
    """Run what has not been run, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size")
    parser.add_argument("--shape", choices=SHAPES, default=SHAPES[0])
    parser.add_argument("--tiny", action="store_true", help="small widths, for tests")
    parser.add_argument(
        "--multiply",
        choices=["native", "float32"],
        default="native",
        help="float32: five times as fast on a CPU without bfloat16 instructions",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image", type=Path, help="a photo; by default a rendered scene")
    parser.add_argument("--only", help="steps, separated by commas")
    parser.add_argument("--folder", type=Path, help="of the checkpoint")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the numbers")
    parser.add_argument("--in-process", action="store_true", help="no process per step")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    name = options.shape + ("-tiny" if options.tiny else "")
    folder = options.folder or RUNS / name
    bench = FullSize(
        options.shape, folder, options.tiny, options.image, options.multiply, options.device
    )
    if options.step:
        child(bench.run, options.step, options.row)
        return
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = None if options.in_process else ["benchmarks.full_size", *given]
    head = {"shape": name, "dtype": "bfloat16", "prompt": PROMPT, "machine": machine()}
    if is_gpu(options.device):
        head, name = {**head, "device": device_name(options.device)}, f"{name}-{options.device}"
    steps = Steps(options.out / f"full-size-{name}.json", head, bench.run, command)
    names = options.only.split(",") if options.only else list(bench.steps)
    sys.exit(not steps.all(names))


if __name__ == "__main__":
    main()
