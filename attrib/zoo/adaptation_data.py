"""The recipe of smol-llava's training, and the data of each of its steps."""

import math
import random
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from torch import Tensor
from torch.utils.data import Dataset

from attrib.data.scenes import make_scene, scene_seeds
from attrib.data.scenes.questions import KINDS
from attrib.data.scenes.vocabulary import PLAIN, Style
from attrib.zoo.curriculum import CurriculumSampler, Stage
from attrib.zoo.packing import Packed, Segment, pack
from attrib.zoo.vision_pretraining import pixels_of

EASY = Stage("plain", KINDS, 0.5, PLAIN, 0.0)
FULL = Stage("everything", KINDS, 0.9, Style(0.5, 0.45, 0.25), 0.0)
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Adaptation:
    """How smol-llava is trained.

    Attributes:
        seed: Of weights and data.
        align_steps: Of the alignment to word embeddings.
        steps: Of packed rows.
        easy_steps: The first of them, with plain questions.
        rows: Packed rows per step.
        length: Positions of a row.
        texts: Number of replayed texts.
        text_length: Tokens of each.
        texts_per_row: Of them in a row.
        replay: Weight of their divergence in the loss.
        learning_rate: Of additions and projector at its peak; the tower has a quarter.
        warmup: Steps until then.
        precision: Of the products of matrices in training.
    """

    seed: int = 0
    align_steps: int = 200
    steps: int = 750
    easy_steps: int = 400
    rows: int = 64
    length: int = 480
    texts: int = 2048
    text_length: int = 48
    texts_per_row: int = 2
    replay: float = 1.0
    learning_rate: float = 1e-3
    warmup: int = 100
    precision: Precision = "bfloat16"

    def rate(self, step: int) -> float:
        """The learning rate of a step as a share of its peak: warm-up, then half a cosine."""
        rising = min(1.0, (step + 1) / self.warmup)
        return rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class StepData(Dataset):
    """The packed rows and the pixels of each step."""

    def __init__(self, recipe: Adaptation, sampler: CurriculumSampler, pad: int, texts: list):
        self.recipe, self.sampler, self.pad, self.texts = recipe, sampler, pad, texts

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Packed, Tensor]:
        """The data of one step."""
        r, rng = self.recipe, random.Random(f"{self.recipe.seed}:{step}")
        stage = EASY if step < r.easy_steps else FULL
        seeds = islice(scene_seeds("backbone", rng.getrandbits(40)), r.rows)
        scenes = [make_scene(seed) for seed in seeds]
        rows = [self._texts(rng) + self.sampler.sample(scene, stage, rng) for scene in scenes]
        packed = pack(self.sampler.prefix, rows, r.length, self.pad)
        return packed, pixels_of(scenes, [rng.getrandbits(30) for _ in scenes])

    def _texts(self, rng: random.Random) -> list[Segment]:
        chosen = rng.sample(range(len(self.texts)), self.recipe.texts_per_row)
        return [
            Segment(self.texts[i], len(self.texts[i]), "text", sees_image=False, replayed=i)
            for i in chosen
        ]
