"""Prompts that end right before the first answer token with content.

Where a tokenizer writes the space before an answer as a token of its own, the token after the
prompt is the same for all answers; the space then belongs to the prompt.
"""

from collections.abc import Sequence

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
