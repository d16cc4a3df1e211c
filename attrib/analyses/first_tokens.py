"""Prompts that end right before the first answer token with content.

Where a tokenizer writes the space before an answer as a token of its own, the token after the
prompt is the same for all answers; the space then belongs to the prompt.
"""

from collections.abc import Sequence

from PIL import Image

from attrib.data import EditSample
from attrib.model.batch import Batch
from attrib.model.targets import split_blank
from attrib.model.vlm import VLM


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


def encode_others(
    vlm: VLM, batch: Batch, samples: Sequence[EditSample], images: Sequence[Image.Image]
) -> Batch:
    """The prompts of `batch` with other images, ended by the same blank tokens, if any."""
    rows = zip(batch.inputs["input_ids"], batch["last"], strict=True)
    ends = [vlm.tokenizer.decode(ids[last].tolist()) for ids, last in rows]
    answers = [
        "" if end.strip() else sample.request.target
        for end, sample in zip(ends, samples, strict=True)
    ]
    return vlm.encode(list(images), [s.request.prompt for s in samples], answers=answers)
