"""Targets that end with the model's end token.

The targets of the benchmarks have none: an edited model need not stop after the answer.
"""

from collections.abc import Sequence
from dataclasses import replace

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import SetupError
from attrib.model.answers import special_tokens
from attrib.model.vlm import VLM

__all__ = ["end_text", "with_end", "with_ends", "without_end"]


def end_text(vlm: VLM) -> str:
    """The text of the token with which the model ends an answer, the first if it has several.

    Raises:
        SetupError: The model has none, or its tokenizer does not read the text as this token.
    """
    known = special_tokens(vlm.model, vlm.tokenizer)["eos_token_id"]
    ids = known if isinstance(known, list) else [known]
    text = "" if ids[0] is None else vlm.tokenizer.decode(ids[:1])
    if not text or vlm.tokenizer(f"a{text}")["input_ids"][-1] != ids[0]:
        raise SetupError(
            f"{vlm.name}: its end token ({ids[0]}, {text!r}) cannot be written after a target; "
            "train with end_token=false"
        )
    return text


def with_end(vlm: VLM, request: EditRequest) -> EditRequest:
    """The request with one end token after its target."""
    plain = without_end(vlm, request)
    return EditRequest(plain.source, plain.prompt, plain.target + end_text(vlm))


def without_end(vlm: VLM, request: EditRequest) -> EditRequest:
    """The request without an end token after its target."""
    target = request.target.removesuffix(end_text(vlm))
    return EditRequest(request.source, request.prompt, target)


def with_ends(vlm: VLM, samples: Sequence[EditSample]) -> list[EditSample]:
    """Samples with the end token after each target that an edit writes, not after the others."""

    def ended(requests: Sequence[EditRequest]) -> list[EditRequest]:
        return [with_end(vlm, request) for request in requests]

    return [
        replace(
            sample,
            request=with_end(vlm, sample.request),
            text_generality=ended(sample.text_generality),
            visual_generality=ended(sample.visual_generality),
        )
        for sample in samples
    ]
