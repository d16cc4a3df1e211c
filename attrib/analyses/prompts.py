"""The prompts of patching: the same for two images, token for token, and ended before the answer.

Where a tokenizer writes the space before an answer as a token of its own, the token after the
prompt is the same for all answers; the space then belongs to the prompt. Contributions of answers
read such prompts, too.
"""

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Bool
from PIL import Image, ImageOps
from torch import Tensor

from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.model.answers import split_blank
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.vocabulary import PatchSpan

SPANS: tuple[PatchSpan, ...] = get_args(PatchSpan)


def after_space(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample], answers: Sequence[str]
) -> Batch:
    """The batch with prompts that end with the blank tokens before `answers`, if there are any."""
    requests = [sample.request for sample in samples]
    pairs = list(zip(requests, answers, strict=True))
    if not any(split_blank(vlm.tokenizer, r.prompt, answer)[0] for r, answer in pairs):
        return batch
    images, prompts = [r.image for r in requests], [r.prompt for r in requests]
    return vlm.encode(images, prompts, answers=answers).named([s.id for s in samples])


def check_pairs(batch: Batch, other: Batch) -> None:
    """Refuse two batches whose tokens differ, naming the first row that does.

    Raises:
        AttribError: Different numbers of rows, tokens in a row, or padding.
    """
    if batch.size != other.size:
        raise AttribError(f"patching: {batch.size} rows and {other.size} others; pair them 1 to 1")
    for row, reason in differing_rows(batch, other).items():
        raise AttribError(f"patching: row {row}: {reason}")
    one, two = prompt_positions(batch), prompt_positions(other)
    if one.shape != two.shape or not torch.equal(one, two):
        raise AttribError(
            "patching: the two batches are padded differently; encode both in the same way"
        )


def differing_rows(batch: Batch, other: Batch) -> dict[int, str]:
    """Row -> why the states of one prompt cannot replace the other's, padding aside."""
    reasons = {row: _difference(batch, other, row) for row in range(batch.size)}
    return {row: reason for row, reason in reasons.items() if reason}


def prompt_positions(batch: Batch) -> Bool[Tensor, "batch pos"]:
    """Every position of the prompt: visual tokens, text, beginning of sequence."""
    whole = batch["visual"] | batch["text"]
    return whole | batch["bos"] if "bos" in batch.spans else whole


def span_positions(batch: Batch, span: PatchSpan) -> Bool[Tensor, "batch pos"]:
    """The positions where states are replaced."""
    if span == "all":
        return prompt_positions(batch)
    if span not in SPANS:
        raise AttribError(f"span: expected one of {', '.join(SPANS)}, got {span!r}")
    return batch[span]


def _difference(batch: Batch, other: Batch, row: int) -> str:
    own, theirs = (int(b["visual"][row].sum()) for b in (batch, other))
    if own != theirs:
        return f"{own} visual tokens and {theirs} in the other; give both images the same size"
    pictures = [b.pictures[row] for b in (batch, other) if b.pictures and b.pictures[row]]
    shapes = {tuple((g.rows, g.cols) for p in own if (g := p.grid)) for own in pictures}
    if len(shapes) > 1:
        return f"visual tokens in grids of {shapes}; give both images the same size"
    one, two = (b.inputs["input_ids"][row][prompt_positions(b)[row]] for b in (batch, other))
    same = torch.equal(one, two)
    return "" if same else "the prompts differ; give the same words with another image"


def partner(sample: EditSample) -> tuple[str, Image.Image]:
    """The other image for a sample's question, and its kind.

    "same_question": the image of a hard locality input with the same prompt. Otherwise "unrelated":
    the image of its visual locality, which real data files have.

    Raises:
        AttribError: The sample has neither.
    """
    same = [r for r in sample.hard_locality if r.prompt == sample.request.prompt]
    for name, requests in (("same_question", same), ("unrelated", sample.visual_locality)):
        for request in requests:
            if len(images := request.images) == 1:
                return name, images[0]
    raise AttribError(
        "patching needs another image for the same question: a hard locality input with the same "
        "prompt, an image for visual locality, or --other-image"
    )


def partner_image(
    sample: EditSample, other: Image.Image | None, fit: bool
) -> tuple[Image.Image, str]:
    """`other`, or else the sample's `partner`, and its kind.

    Args:
        sample: A sample with an image.
        other: The other image, if given.
        fit: Crop and scale the other image to the size of the sample's.
    """
    images = sample.request.images
    if not images:
        raise AttribError("this request is text only: patching needs an image")
    if len(images) > 1:
        raise AttribError(
            f"this request has {len(images)} images, and the other image replaces one; encode both "
            "versions and call attrib.patching(vlm, batch, other)"
        )
    own = images[0]
    name, image = partner(sample) if other is None else ("given", other)
    return (ImageOps.fit(image, own.size) if fit else image), name
