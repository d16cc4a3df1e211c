"""What smol-llava and SmolLM2 are asked."""

import csv
import json
import random
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from attrib.data.scenes import render
from attrib.model.vlm import VLM
from attrib.zoo.evaluate import held_out_questions
from attrib.zoo.text_questions import held_out_text_questions

FACTS = Path(__file__).parents[1] / "common_facts.csv"
LOCALITY = "nq question: "
CHAT = "<|im_start|>user\n{}?<|im_end|>\n<|im_start|>assistant\n"  # SmolLM2's, of a question


@dataclass
class Subject:
    """A model, the plain language model that it was made from, and what they are asked.

    Attributes:
        vlm: smol-llava.
        language: folder of SmolLM2.
        data: folder in the E-VQA layout, for `text`.
        count: number of scenes.
        text_count: number of natural questions.
        curve_count: number of questions for `layers`.
        seed: of questions and noise.
    """

    vlm: VLM
    language: Path
    data: Path | None
    count: int = 1000
    text_count: int = 200
    curve_count: int = 60
    seed: int = 0
    _rendered: dict[int, Image.Image] = field(default_factory=dict)

    @cached_property
    def asked(self) -> list[tuple[Any, Any, str]]:
        """Scene, question and prompt of each held-out question."""
        return list(held_out_questions(self.count, self.seed))

    def image(self, index: int) -> Image.Image:
        """The picture of a scene; after the last comes the first."""
        index %= self.count
        if index not in self._rendered:
            self._rendered[index] = render(self.asked[index][0], 0)[0]
        return self._rendered[index]

    @cached_property
    def plain(self) -> Any:
        """SmolLM2 itself."""
        model: Any = AutoModelForCausalLM.from_pretrained(self.language, dtype=torch.float32)
        return model.eval().requires_grad_(False)

    @cached_property
    def natural(self) -> list[tuple[int, str, str]]:
        """Row, question and answer of the natural questions, in a seeded order."""
        assert self.data is not None, "--data: the folder with vqa/vqa_train.json"
        rows = json.loads((self.data / "vqa" / "vqa_train.json").read_text())
        order = random.Random(f"text:{self.seed}").sample(range(len(rows)), len(rows))
        texts = [(i, rows[i]["loc"].removeprefix(LOCALITY), rows[i]["loc_ans"]) for i in order]
        return [(i, q, a) for i, q, a in texts if not contains(q, a)]

    @cached_property
    def common(self) -> list[tuple[int, str, str]]:
        """Row, question and answer of the common facts."""
        return [(i, question, answer) for i, (question, answer) in enumerate(common_facts())]

    @cached_property
    def everyday(self) -> list[tuple[int, str, str]]:
        """Number, question and answer of the questions that are held out from training."""
        return [(i, q.text, q.answer) for i, q in enumerate(held_out_text_questions())]


def common_facts() -> list[tuple[str, str]]:
    """Questions and answers of the common facts."""
    with FACTS.open(newline="") as file:
        return [(row["question"], row["answer"]) for row in csv.DictReader(file)]


def contains(text: str, answer: str) -> bool:
    """Whether the words of an answer are in a text, in order."""
    words = [" ".join(re.findall(r"\w+", part.lower())) for part in (text, answer)]
    return bool(words[1]) and f" {words[1]} " in f" {words[0]} "
