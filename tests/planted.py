"""Planted results: tables whose truth we chose, in the shape the analyses give them."""

import io

import numpy as np
import pandas as pd
from PIL import Image

from attrib.analyses.attention import STATISTICS
from attrib.analyses.direct_logits import MODULES
from attrib.data import Quarantined
from attrib.report import Study
from attrib.report.demo_report import Card
from attrib.results import Result, tidy

LAYERS = 12
PROVENANCE = {
    "model": {"name": "planted", "class": "None", "layers": LAYERS},
    "data": {"name": "scenes-vqa", "split": "test"},
    "options": {"limit": 24},
    "seed": 0,
    "versions": {"python": "3.11"},
}


def contributions(curve, noise=0.05, examples=24, analysis="contributions"):
    """Both modules follow `curve` over the layers."""
    rng = np.random.default_rng(0)
    values = np.asarray(curve)[None, :, None] + noise * rng.normal(
        size=(examples, len(curve), len(MODULES))
    )
    return _result(analysis, values, layer=range(len(curve)), module=MODULES)


def attention(visual, bos=0.3, examples=24):
    """The image gets the shares `visual`, BOS always `bos`, text the rest; 16 and 10 tokens."""
    visual = np.asarray(visual) + 0.01 * np.random.default_rng(0).normal(
        size=(examples, len(visual))
    )
    text = 1 - bos - visual
    columns = {
        "text_mean": text / 10,
        "text_sum": text,
        "visual_mean": visual / 16,
        "visual_sum": visual,
        "visual_top3": visual / 6,
        "bos": np.full_like(visual, bos),
    }
    values = np.stack([columns[name] for name in STATISTICS], -1)
    return _result("attention", values, layer=range(visual.shape[1]), statistic=STATISTICS)


def answers(examples=24, right=20):
    """The first `right` answers are right."""
    rows = [
        {"example": f"e{i}", "answer": "red", "truth": "red", "value": float(i < right)}
        for i in range(examples)
    ]
    return Result("answers", pd.DataFrame(rows), PROVENANCE)


def study(prompt="What color is the star? The answer is:", quarantined=1):
    """A study in which layers 6 and up write the answer, and layer 5 reads the image."""
    late = np.linspace(0, 1, LAYERS) ** 2
    reads = 0.2 + 0.3 * np.exp(-((np.arange(LAYERS) - 5) ** 2) / 4)
    return Study(
        results={
            "contributions": contributions(late),
            "wrong_key": contributions(0.08 * late, analysis="wrong_key"),
            "attention": attention(reads),
            "answers": answers(),
        },
        cards=[card(prompt, i) for i in range(6)],
        quarantined=[Quarantined("a.json", i, "image", "no such file") for i in range(quarantined)],
        provenance=PROVENANCE,
        commands=["attrib demo --model planted --seed 0"],
    )


def card(prompt, index=0):
    """An example with a small picture; every third answer is wrong."""
    image = Image.new("RGB", (32, 32), ["teal", "salmon", "gold"][index % 3])
    file = io.BytesIO()
    image.save(file, format="PNG")
    right = index % 3 != 2
    kind = ["color", "shape", "count"][index % 3]
    return Card(file.getvalue(), prompt, "red", "red" if right else "blue", right, kind)


def _result(analysis, values, **axes):
    ids = [f"e{i}" for i in range(len(values))]
    return Result(analysis, tidy(values, example=ids, **axes), PROVENANCE)
