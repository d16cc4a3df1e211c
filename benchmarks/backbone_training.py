"""Both trainings of smol-llava for some steps each, projected to their recipes.

A part of `benchmarks.gpu` that needs SmolLM2 in the cache (`attrib models fetch smollm2`). What
precedes the steps (sampled texts, alignment, answers, projection) is done whole.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attrib.files import ADDITIONS, WEIGHTS, language_model_folder, missing_part
from attrib.zoo.adaptation import AdaptationRun
from attrib.zoo.adaptation_data import Adaptation
from attrib.zoo.text_keeping import TextKeeping, TextKeepingRun
from benchmarks.steps import Row

STEPS, WORKERS = 30, 8
SMALL_SCENES = {"align_steps": 2, "rows": 1, "texts": 9, "text_length": 8, "texts_per_row": 1}
SMALL_TEXTS = {"rows": 1, "texts_per_row": 1, "sampled": 10, "question_tokens": 4,
               "answer_tokens": 2, "moment_steps": 1}  # fmt: skip


def measure(device: str, *, dry: bool) -> Row:
    """Seconds per step of each training, and the minutes of its recipe.

    Args:
        device: Where to train.
        dry: Two steps of a small recipe with two layers of SmolLM2.

    Raises:
        FileNotFoundError: SmolLM2 is not there.
    """
    if lacks := missing_part(WEIGHTS / "smol-llava"):
        raise FileNotFoundError(lacks)
    small = {"steps": 2, "easy_steps": 1, "warmup": 1} if dry else {"steps": STEPS}
    scenes = replace(Adaptation(), **small, **(SMALL_SCENES if dry else {}))
    texts = replace(TextKeeping(), **small, **(SMALL_TEXTS if dry else {}))
    with tempfile.TemporaryDirectory() as out:
        first, second = Path(out) / "scenes", Path(out) / "texts"
        language = shallow(Path(out) / "language") if dry else language_model_folder()
        how = (device, 0 if dry else WORKERS)
        run = AdaptationRun(first, scenes, language, *how)
        row = {"scenes": timed(run, Adaptation().steps)}
        run.export(first)
        run = TextKeepingRun(second, texts, language, first / ADDITIONS, *how)
        return {**row, "texts": timed(run, TextKeeping().steps)}


def shallow(folder: Path) -> Path:
    """Save the first two layers of SmolLM2."""
    whole = language_model_folder()
    model = AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=2, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return folder


def timed(run: AdaptationRun, goal: int) -> Row:
    """Train to the end of the run's recipe; the first step counts as preparation."""
    stamps, began = [], time.perf_counter()

    def note(line: str) -> None:
        if line.startswith("smol-llava step"):
            stamps.append(time.perf_counter())

    run.train(note, log_every=1)
    step = statistics.median(b - a for a, b in pairwise(stamps))
    prepared = stamps[0] - began
    return {
        "steps": len(stamps),
        "seconds to prepare": prepared,
        "seconds per step": step,
        f"minutes for {goal:,} steps": (prepared + goal * step) / 60,
    }
