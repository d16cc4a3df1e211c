"""Further inputs to train gates on: pictures that were changed, and near negatives.

The picture of an edit comes back cropped, compressed, mirrored or in another frame. Its edit still
applies, and with another question about the changed picture it does not: without those, a gate
would learn that what is changed is covered. The same question about the most similar picture of
another edit is a near negative, too. Where a dataset names no near neighbours of its edits, such as
E-VQA, another edit's question is asked about the same picture.
"""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image, ImageOps, ImageStat
from torch import Tensor
from torch.nn.functional import normalize

from attrib.data.samples import EditRequest, EditSample
from editors.gating.features import CHANGED, MINED_IMAGE, MINED_QUESTION, RelatedInput

CROP = 0.9  # share of each side that is kept
QUALITY = 30  # of JPEG
FRAME = 0.1  # of the longer side, added on each
THUMBNAIL = (12, 12)  # by which pictures are compared
EQUAL = 1 - 1e-4  # cosine from which two pictures are one
CHUNK = 512  # pictures compared with all at a time
TRIES = 8  # draws of another question
OTHER_QUESTION = "changed_other_question"
Change = Callable[[Image.Image, random.Random], Image.Image]


def crop(image: Image.Image, rng: random.Random) -> Image.Image:
    """A random part of the picture, 90 % of each side."""
    width, height = (max(1, round(CROP * side)) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def jpeg(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture after JPEG compression at quality 30."""
    del rng
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return Image.open(file).convert("RGB")


def flip(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture, left and right exchanged."""
    del rng
    return ImageOps.mirror(image)


def frame(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture in a frame of its mean colour, a tenth of the longer side wide."""
    del rng
    mean = tuple(round(one) for one in ImageStat.Stat(image).mean)
    return ImageOps.expand(image, round(FRAME * max(image.size)), mean)


CHANGES: Mapping[str, Change] = dict(zip(CHANGED, (crop, jpeg, flip, frame), strict=True))


def with_change(request: EditRequest, name: str, seed: int = 0) -> EditRequest:
    """A request whose pictures are changed when they are opened, the same at every access."""
    sources = request.source if isinstance(request.source, tuple) else (request.source,)
    images = [partial(_open, request, i, name, seed) for i in range(len(sources))]
    return EditRequest(images if len(images) > 1 else images[0], request.prompt, request.target)


def further_inputs(
    samples: Sequence[EditSample], rows: Sequence[int], num_changes: int, seed: int = 0
) -> list[RelatedInput]:
    """Changed pictures of some samples' requests, and near negatives, made of these rows alone.

    Args:
        samples: All samples.
        rows: The samples that inputs are made for and of.
        num_changes: Kinds of changes for each sample, in turn; each with the request's own question
            and with another one.
        seed: Seed of the crops and of the questions.

    Returns:
        Inputs whose relation is a name in `CHANGES` where the edit applies.
    """
    found = []
    for row in rows:
        if samples[row].request.source is None:
            continue
        other = _other_question(samples, rows, row, seed)
        found += [
            RelatedInput(row, *one) for one in _changed(samples[row], row, other, num_changes, seed)
        ]
        if other is not None and not samples[row].hard_locality:
            found.append(RelatedInput(row, MINED_QUESTION, _about(samples[row], other)))
    return [*found, *_nearest(samples, rows)]


def _changed(
    sample: EditSample, row: int, other: str | None, num: int, seed: int
) -> list[tuple[str, EditRequest]]:
    names, found = list(CHANGES), []
    for name in (names[(row + i) % len(names)] for i in range(num)):
        changed = with_change(sample.request, name, seed + row)
        found.append((name, changed))
        if other is not None:
            found.append((OTHER_QUESTION, EditRequest(changed.source, other, "")))
    return found


def _other_question(
    samples: Sequence[EditSample], rows: Sequence[int], row: int, seed: int
) -> str | None:
    """Another question: of a near neighbour of the sample, else of another sample."""
    rng = random.Random(f"question:{seed}:{row}")
    own = {samples[row].request.prompt, *(r.prompt for r in samples[row].text_generality)}
    near = [one.prompt for one in samples[row].hard_locality if one.prompt not in own]
    if near:
        return rng.choice(near)
    tries = (samples[rng.choice(rows)].request.prompt for _ in range(TRIES))
    return next((prompt for prompt in tries if prompt not in own), None)


def _nearest(samples: Sequence[EditSample], rows: Sequence[int]) -> list[RelatedInput]:
    """Each question about the most similar picture of another edit."""
    seen = [row for row in rows if samples[row].request.source is not None]
    return [
        RelatedInput(row, MINED_IMAGE, _about(samples[near], samples[row].request.prompt))
        for row, near in nearest_pictures(samples, seen).items()
    ]


def _about(sample: EditSample, prompt: str) -> EditRequest:
    return EditRequest(sample.request.source, prompt, "")


def nearest_pictures(samples: Sequence[EditSample], rows: Sequence[int]) -> dict[int, int]:
    """The row with the most similar other picture, for each of `rows`; equal pictures are no other.

    Pictures are compared by the cosine of small thumbnails, the mean picture subtracted.
    """
    if len(rows) < 2:
        return {}
    pictures = torch.stack([_thumbnail(samples[row].request) for row in rows])
    flat = normalize(pictures - pictures.mean(0), dim=1)
    near: dict[int, int] = {}
    for start in range(0, len(rows), CHUNK):
        similar = flat[start : start + CHUNK] @ flat.T
        # A picture that equals the mean has no direction: its cosine with itself is 0, not 1.
        same = torch.cdist(pictures[start : start + CHUNK], pictures, p=1) == 0
        best = similar.masked_fill((similar > EQUAL) | same, -torch.inf).max(1)
        for row, value, which in zip(
            rows[start:], best.values.tolist(), best.indices, strict=False
        ):
            if value > -torch.inf:
                near[row] = rows[int(which)]
    return near


def _thumbnail(request: EditRequest) -> Tensor:
    image = request.images[0].convert("RGB").resize(THUMBNAIL)
    return torch.tensor(list(image.tobytes()), dtype=torch.float32)


def _open(request: EditRequest, number: int, name: str, seed: int) -> Any:
    return CHANGES[name](request.images[number], random.Random(f"{name}:{seed}"))
