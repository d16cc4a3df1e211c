"""What each analysis costs on a model: seconds of a sample and peak memory.

    python -m benchmarks.analysis_costs --model smol-llava --dtype bfloat16
    python -m benchmarks.analysis_costs --model tiny-llava --samples 2     # in seconds

Each analysis runs in a process of its own, after one pass that is not counted. Seconds are those of
the measurement, without loading; peak memory is the high-water mark of the process, mapped weights
included, beside that of a process that only answers. Writes `benchmarks/results/
analysis-costs-MODEL.json`; a finished step is not run again.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch

import attrib
from attrib.data import EditData
from attrib.model.vlm import VLM
from attrib.vocabulary import Dtype
from benchmarks.harness import RESULTS
from benchmarks.steps import Row, Steps, child, machine

DATA = "scenes-vqa"
OPTIONS = {"sweep text": {"modality": "text"}, "sweep visual": {"modality": "visual"}}
ANALYSES = ("contributions", "attention", "heatmap", "sweep text", "sweep visual", "patching")


@dataclass(frozen=True)
class Costs:
    """The steps on one model.

    Attributes:
        model: Its name.
        dtype: Of its weights.
        samples: How many questions each analysis measures.
    """

    model: str
    dtype: str
    samples: int

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        """All steps by name."""
        return {
            "answer": self.answer,
            **{name: lambda name=name: self.analyse(name) for name in ANALYSES},
            "explore": self.explore,
        }

    def run(self, step: str) -> Row:
        """Run a step after a first pass; its seconds are those of a sample."""
        self._vlm.generate(self._encoded(), max_new_tokens=1)
        began = time.perf_counter()
        self.steps[step]()
        spent = time.perf_counter() - began
        return {"seconds a sample": round(spent / self._number(step), 4)}

    def answer(self) -> None:
        """Generate the answers, 8 tokens each, one question at a time."""
        for i in range(self.samples):
            self._vlm.generate(self._encoded(i), max_new_tokens=8)

    def analyse(self, name: str) -> None:
        """Run an analysis over all samples."""
        attrib.run(name.split()[0], self._vlm, self._data, **OPTIONS.get(name, {}))

    def explore(self) -> None:
        """Make the explorer's page of the first sample."""
        request = self._data[0].request
        attrib.explore(self._vlm, request.image, request.prompt)

    def _number(self, step: str) -> int:
        return 1 if step == "explore" else self.samples

    def _encoded(self, i: int = 0) -> attrib.Batch:
        request = self._data[i].request
        return self._vlm.encode([request.image], [request.prompt])

    @cached_property
    def _vlm(self) -> VLM:
        return attrib.load(self.model, dtype=self.dtype)

    @cached_property
    def _data(self) -> EditData:
        return attrib.data.load(DATA, "validation", limit=self.samples)


def main(arguments: list[str] | None = None) -> None:
    """Run what has not been run, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis_costs")
    parser.add_argument("--model", default="smol-llava")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="auto")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the numbers")
    parser.add_argument("--in-process", action="store_true", help="no process per step")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    costs = Costs(options.model, options.dtype, options.samples)
    if options.step:
        child(costs.run, options.step, options.row)
        return
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = None if options.in_process else ["benchmarks.analysis_costs", *given]
    head: Row = {
        "model": options.model, "dtype": options.dtype, "data": f"{DATA} validation",
        "samples": options.samples, "threads": torch.get_num_threads(), "machine": machine(),
    }  # fmt: skip
    steps = Steps(options.out / f"analysis-costs-{options.model}.json", head, costs.run, command)
    sys.exit(not steps.all(list(costs.steps)))


if __name__ == "__main__":
    main()
