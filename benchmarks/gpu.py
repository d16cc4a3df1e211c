"""Everything that waits for a GPU, most important first, in parts of under nine minutes.

    python -m benchmarks.gpu                     # goes on where the last call stopped
    python -m benchmarks.gpu --dry-run           # every part, at a small size, on a CPU

The model is a random LLaVA-1.5-7B in bfloat16, created on the device; editors have their
presets for large models. Each part is a process of its own and writes its row, with device and
date, to `benchmarks/results/gpu.json` before the next one starts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import attrib
from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from benchmarks import backbone_training, one_edit
from benchmarks.attribution import Bench, against_peers, measure
from benchmarks.harness import RESULTS, device_name, peak_mib, reset_peak
from benchmarks.official import PATCH, SIZES, TINY, official
from benchmarks.random_checkpoint import random_model
from benchmarks.shapes import Shape
from benchmarks.steps import Row, Steps, child, machine
from editors import EDITORS, evaluate
from editors.evaluation.reference_model import Checksum

SHAPE, LIMIT = "llava-1.5-7b", 540.0  # seconds of a part
SWEPT, SWEEP_GOAL = 20, 1_000  # samples that are run, and those that are projected to
EVALUATED, EVALUATION_GOAL = 20, 2_093  # edits; as many as E-VQA's test split has
STEPS, PAPERS_STEPS, EDITS = 200, 50_000, 64
MODALITIES = ("text", "visual", "both")
PEAKS = ("peak MiB", *(f"{who} peak MiB, weights included" for who in ("naive", "ours")))
TRAINED = tuple(name for name, editor in EDITORS.items() if editor.is_trained)


@dataclass(frozen=True)
class GPU:
    """The parts on one device; `dry` runs them at a small size."""

    device: str = "cuda"
    dry: bool = False

    def run(self, part: str) -> Row:
        """Run a part; its peak memory is that of the device, the highest of its measurements."""
        if not self.dry and not torch.cuda.is_available():
            raise RuntimeError("no CUDA device; try --dry-run")
        reset_peak(self.device)
        row = self.parts[part]()
        return {**row, "device peak MiB": self._highest(row)}

    def _highest(self, row: Row) -> float | None:
        """Peak of the device since the part began: measurements inside it reset the count."""
        last = peak_mib(self.device)
        inside = [*row.get("editors", ()), *row.get("ratios", ())]
        found = [one[name] for one in inside for name in PEAKS if one.get(name) is not None]
        return None if last is None else max([last, *found])

    @property
    def parts(self) -> dict[str, Callable[[], Row]]:
        """All parts, most important first."""
        return {
            "tests": self.tests,
            "attribution": self.attribution,
            "peers": self.peers,
            **{f"sweep {m}": lambda m=m: self.sweep(m) for m in MODALITIES},
            "train dualedit": lambda: self.train("dualedit"),
            "train visedit": lambda: self.train("visedit"),
            "edits": self.edits,
            "evaluation": self.evaluation,
            "smol-llava": lambda: backbone_training.measure(self.device, dry=self.dry),
            **{f"train {name}": lambda name=name: self.train(name) for name in TRAINED},
        }

    def tests(self) -> Row:
        """The tests marked `gpu`; a dry run only collects them."""
        line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"]
        done = subprocess.run(
            [*line, *(["--collect-only"] if self.dry else [])], capture_output=True, text=True
        )
        last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
        failed = {"failed": last} if done.returncode else {}
        return {"outcome": last, **failed}

    def attribution(self) -> Row:
        """Our analyses against a plain pass and against brute force."""
        with torch.no_grad():
            return {"ratios": measure(self._bench)}

    def peers(self) -> Row:
        """Our capture against transformers, TransformerLens and nnsight, where installed."""
        with torch.no_grad():
            return {"ratios": against_peers(self._bench)}

    def sweep(self, modality: str) -> Row:
        """A sweep of all layers over some samples, projected to 1,000."""
        samples = self._samples("test", SWEPT)
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            attrib.run("sensitivity", self._vlm, samples, out=out, modality=modality)
            seconds = time.perf_counter() - began
        return _projected(seconds, len(samples), SWEEP_GOAL)

    def train(self, name: str) -> Row:
        """Some steps of a trained editor, and the hours of DualEdit's 50,000."""
        steps = 2 if self.dry else STEPS
        with tempfile.TemporaryDirectory() as out:
            began = time.perf_counter()
            editor: Any = self._trained(name, Path(out), steps)
            total = time.perf_counter() - began
        seconds = editor.trained["seconds"]
        hours = PAPERS_STEPS * seconds / steps / 3600
        row = {"steps": steps, "seconds per step": seconds / steps, "hours for 50,000": hours}
        return {**row, "seconds to prepare": total - seconds}

    def edits(self) -> Row:
        """One edit of each editor, untrained."""
        samples, checksum = self._samples("train", one_edit.SETUP + 1), Checksum.of(self._vlm.model)
        rows = [
            one_edit.measure(name, self._vlm, samples, checksum, self._preset) for name in EDITORS
        ]
        wrong = [f"{row['editor']}: {row['failed']}" for row in rows if "failed" in row]
        return {"editors": rows, **({"failed": "; ".join(wrong)} if wrong else {})}

    def evaluation(self) -> Row:
        """Scoring of some edits of DualEdit by all protocols, projected to E-VQA's test split."""
        samples = self._samples("test", EVALUATED)
        with tempfile.TemporaryDirectory() as out:
            editor = self._trained("dualedit", Path(out), 0)
        began = time.perf_counter()
        evaluate(self._vlm, editor, samples)
        return _projected(time.perf_counter() - began, len(samples), EVALUATION_GOAL)

    def _trained(self, name: str, out: Path, steps: int) -> Any:
        depth = self._vlm.num_layers / 32
        layers = {
            m: [round(i * depth) for i in at] for m, at in one_edit.PAPERS.get(name, {}).items()
        }
        options: dict[str, Any] = {"layers": layers, "gate": "none"} if layers else {}
        edits = self._samples("train", EDITS)
        return EDITORS[name].train(
            self._vlm, edits, out=out, preset=self._preset, steps=steps, **options
        )

    @property
    def _preset(self) -> str:
        return "tuned-small" if self.dry else "auto"

    def _samples(self, split: str, num: int) -> list[EditSample]:
        return list(attrib.data.load("scenes-vqa", split=split, limit=4 if self.dry else num))

    @cached_property
    def _vlm(self) -> VLM:
        config, processor = official(SHAPE, TINY if self.dry else None)
        dtype = torch.float32 if self.dry else torch.bfloat16
        return VLM(random_model(config, dtype, self.device), processor, name=f"random {SHAPE}")

    @cached_property
    def _bench(self) -> Bench:
        side = (TINY if self.dry else SIZES[SHAPE]).image // PATCH
        request = self._samples("test", 1)[0].request
        batch = self._vlm.encode([request.image], [request.prompt])
        rounds = 1 if self.dry else 5
        return Bench(self._vlm, batch, Shape(side=side), rounds, self.device)


def _projected(seconds: float, num: int, goal: int) -> Row:
    return {
        "samples": num,
        "seconds of them": seconds,
        f"minutes for {goal:,}": goal * seconds / num / 60,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the parts that have no row yet, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--dry-run", action="store_true", help="at a small size on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", help="parts, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the numbers")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    gpu = GPU("cpu" if options.dry_run else options.device, options.dry_run)
    if options.step:
        child(gpu.run, options.step, options.row)
        return
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = None if options.dry_run else ["benchmarks.gpu", *given]
    device = "cpu" if options.dry_run or not torch.cuda.is_available() else device_name(gpu.device)
    head = {"shape": SHAPE, "device": device, "machine": machine()}
    file = options.out / ("gpu-dry-run.json" if options.dry_run else "gpu.json")
    names = options.only.split(",") if options.only else list(gpu.parts)
    sys.exit(not Steps(file, head, gpu.run, command, LIMIT).all(names))


if __name__ == "__main__":
    main()
