"""This tree against an older commit of the repository: training steps and evaluation.

Both run the same work with the same seeds in processes of their own, in turns; the fastest round
of each counts. Scores of evaluations must be equal to the last digit, edit by edit.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import ratio_of
from benchmarks.shapes import SHAPES, random_vlm_with_processor

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("tree_worker.py")
COMMIT = "a420e03"  # the last one before 2026-11-26
WARMUP = 1  # steps that are not counted
STEPS, TRAINING_EDITS = 5, 48  # three steps are an epoch
# Text and visual layer, by model: shallow, the depths of the papers (16 and 19 of 32), deep.
LAYERS = {"tiny-llava": ((1, 1), (5, 6), (8, 8)), "small": ((1, 1), (4, 5), (6, 6))}
EVALUATED = ("dualedit", "ft-l")
MAKE = {"steps": 30, "edits": 120, "gate": "learned", "text": 1, "visual": 1}


@dataclass(eq=False)
class Worker:
    """A process that works with one tree."""

    process: "subprocess.Popen[str]"

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Let it do something, and return what it found."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **told}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"the worker ended; it was to {do} {told}")


@contextmanager
def older_tree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit in a folder."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def worker(tree: Path) -> Iterator[Worker]:
    """A worker with a tree; it ends with the context."""
    settings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", str(WORKER)], cwd=tree, env={**os.environ, **settings}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Worker(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def against_older(commit: str, rounds: int, edits: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of training and of evaluation, this tree against that of a commit."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = stack.enter_context(older_tree(commit, folder / "older"))
        old, new = (stack.enter_context(worker(place)) for place in (tree, ROOT))
        small = folder / "small"
        vlm = random_vlm_with_processor(SHAPES["small"], torch.float32, "cpu")
        vlm.model.save_pretrained(small)
        vlm.processor.save_pretrained(small)
        places = {"tiny-llava": "tiny-llava", "small": str(small)}
        old.ask("make", model="tiny-llava", out=str(folder / "dualedit"), **MAKE)
        found: dict[str, list[dict[str, Any]]] = {"evaluation": [], "training": []}
        for kind in EVALUATED:
            found["evaluation"].append(_evaluation(old, new, kind, rounds, edits, folder))
            log(found["evaluation"][-1])
        for name, some in LAYERS.items():
            for layers in some:
                row = _training(old, new, name, places[name], layers, rounds, folder)
                found["training"].append(row)
                log(row)
    return found


def log(row: Mapping[str, Any]) -> None:
    """Print a row as soon as it is known."""
    shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}
    sys.stderr.write(" ".join(f"{k} {v}" for k, v in shown.items()) + "\n")


def _training(
    old: Worker,
    new: Worker,
    name: str,
    place: str,
    layers: Sequence[int],
    rounds: int,
    folder: Path,
) -> dict[str, Any]:
    """Steps per second where the prefix does not fit into memory, and what the files cost."""
    text, visual = layers
    told = {"model": place, "text": text, "visual": visual, "steps": STEPS, "edits": TRAINING_EDITS}
    found: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
    for number in range(rounds):
        for which, one in (("old", old), ("new", new)):
            out = folder / f"{which}-{name}-{text}-{visual}-{number}"
            found[which].append(one.ask("train", out=str(out), **told))
    each = {
        which: [median(one["seconds"][WARMUP:]) for one in some] for which, some in found.items()
    }
    other = {which: min(one["other seconds"] for one in some) for which, some in found.items()}
    pairs = zip(found["old"][0]["losses"], found["new"][0]["losses"], strict=True)
    per_epoch = TRAINING_EDITS // 16
    return {
        "model": name, "text": text, "visual": visual, **ratio_of(each["old"], each["new"]),
        "old steps/s": 1 / min(each["old"]), "new steps/s": 1 / min(each["new"]),
        "files cost, steps of old": max(0.0, other["new"] - other["old"]) / min(each["old"]),
        "steps of an epoch": per_epoch,
        "largest relative difference of losses": max(abs(a - b) / abs(a) for a, b in pairs),
    }  # fmt: skip


def _evaluation(
    old: Worker,
    new: Worker,
    kind: str,
    rounds: int,
    edits: int,
    folder: Path,
) -> dict[str, Any]:
    """Seconds of evaluating edits, without and with the unedited answers known."""
    told = {"model": "tiny-llava", "editor": kind, "folder": str(folder / kind), "edits": edits}
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for shared in (False, True):
            for which, one in (("old", old), ("new", new)):
                name = f"{which}, answers known" if shared else which
                if shared and name not in found:  # the first time, they are not yet
                    one.ask("evaluate", **told, shared=True)
                found.setdefault(name, []).append(one.ask("evaluate", **told, shared=shared))
    scores: list[Mapping[str, float]] = [one["scores"] for some in found.values() for one in some]
    if any(one != scores[0] for one in scores):
        changed = [k for k in scores[0] if any(one.get(k) != scores[0][k] for one in scores)]
        raise AssertionError(f"{kind}: {len(changed)} scores differ: {changed[:5]}")
    each = {name: [one["seconds"] for one in some] for name, some in found.items()}
    known = ratio_of(each["old, answers known"], each["new, answers known"])
    again = ratio_of(each["old"], each["new, answers known"])
    return {
        "editor": kind, "edits": edits, "equal scores": len(scores[0]),
        **{f"{name}, s": min(some) for name, some in each.items()},
        "ratio": ratio_of(each["old"], each["new"])["best"],
        "ratio, answers known": known["best"], "ratio, answers on disk": again["best"],
    }  # fmt: skip
