"""Curves that cost more passes: noise sensitivity, and patching with another picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, ImageStat

from attrib.analyses.patching import clean_runs, patching_of
from attrib.analyses.reliance import reliance
from attrib.analyses.sensitivity import sensitivity
from attrib.explorer.findings import percent
from attrib.explorer.payload import array
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.vocabulary import NoiseModality

SIGMAS = (0.1, 0.5, 1.0)
SPANS = ("visual", "last")


def deep_data(vlm: VLM, batch: Batch, other: Batch | None, seed: int) -> dict[str, Any]:
    """Curves over the layers for the first token of the answer.

    Args:
        vlm: The model.
        batch: The prompt.
        other: The same prompt with another picture; None for a text alone.
        seed: Seed of the noise.
    """
    modalities: list[NoiseModality] = (
        ["text", "visual"] if bool(batch["visual"].any()) else ["text"]
    )
    noise = {m: sensitivity(vlm, batch, m, SIGMAS, seed=seed)[0] for m in modalities}
    data: dict[str, Any] = {
        "sigmas": list(SIGMAS),
        "noise": {m: array(values.cpu().numpy()) for m, values in noise.items()},
    }
    if other is None:
        return data
    runs = clean_runs(vlm, batch, other)
    parts = [patching_of(vlm, batch, runs, span) for span in SPANS]
    curves = torch.stack([torch.stack([p.follows[0], p.difference[0]]).float() for p in parts])
    texts = vlm.tokenizer.batch_decode([[max(int(t), 0)] for t in (parts[0].own, parts[0].other)])
    data["patching"] = {
        "spans": list(SPANS),
        "curves": array(curves.cpu().numpy().astype(np.float32)),
        "answers": texts,
    }
    return data


def reliance_findings(vlm: VLM, batch: Batch, answer: Sequence[int], seed: int) -> list[str]:
    """A sentence per token of the answer: how much it relies on the picture."""
    found = reliance(vlm, batch, answer, seed=seed)
    rows = zip(found.visual.tolist(), found.text.tolist(), found.share.tolist(), strict=True)
    return [_relies(*row) for row in rows]


def _relies(visual: float, text: float, share: float) -> str:
    if share != share:
        return "Neither noise on the picture nor noise on the words changes this token."
    return (
        f"Noise of one standard deviation at the first layer moves this token's distribution by "
        f"{visual:.2g} nats on the picture, by {text:.2g} on the words: {percent(share)} of its "
        "reliance is on the picture."
    )


def other_picture(image: Image.Image, other: Image.Image | None = None) -> Image.Image:
    """The picture to patch from, in the size of `image`: as given, or its mean colour."""
    if other is not None:
        return ImageOps.fit(other.convert("RGB"), image.size)
    mean = tuple(round(channel) for channel in ImageStat.Stat(image.convert("RGB")).mean)
    return Image.new("RGB", image.size, mean)
