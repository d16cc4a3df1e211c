"""Targets that end with the model's end token.

The targets of the benchmarks have none: an edited model need not stop after the answer.
"""

from collections.abc import Sequence
from dataclasses import replace

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import SetupError
from attrib.model.answers import special_tokens
from attrib.model.vlm import VLM

__all__ = [
    "end_token_text", "with_end_token", "with_end_tokens", "without_end_token",
    "without_end_tokens",
]  # fmt: skip


def end_token_text(vlm: VLM) -> str:
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


def with_end_token(vlm: VLM, request: EditRequest) -> EditRequest:
    """The request with one end token after its target."""
    end = end_token_text(vlm)
    return _ended(request, end, end)


def without_end_token(vlm: VLM, request: EditRequest) -> EditRequest:
    """The request without an end token after its target."""
    return _ended(request, end_token_text(vlm), "")


def with_end_tokens(vlm: VLM, samples: Sequence[EditSample]) -> list[EditSample]:
    """Samples with the end token after each target that an edit writes, not after the others."""
    end = end_token_text(vlm)
    return [_ended_sample(sample, end, end) for sample in samples]


def without_end_tokens(vlm: VLM, samples: Sequence[EditSample]) -> list[EditSample]:
    """Samples without the end token after the targets that an edit writes."""
    end = end_token_text(vlm)
    return [_ended_sample(sample, end, "") for sample in samples]


def _ended_sample(sample: EditSample, end: str, new: str) -> EditSample:
    return replace(
        sample,
        request=_ended(sample.request, end, new),
        text_generality=[_ended(request, end, new) for request in sample.text_generality],
        visual_generality=[_ended(request, end, new) for request in sample.visual_generality],
    )


def _ended(request: EditRequest, end: str, new: str) -> EditRequest:
    """The request whose target ends with `new`, in place of `end` if it ends with that."""
    return EditRequest(request.source, request.prompt, request.target.removesuffix(end) + new)
