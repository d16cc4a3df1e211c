"""Which rows `encode` refuses, each by its number and with what would work."""

from collections.abc import Callable, Sequence
from functools import cache
from logging import getLogger
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from attrib.errors import AttribError, describe, is_out_of_memory
from attrib.model.answers import without_end_space
from attrib.model.image_placeholder import ImagePlaceholder, blank_image
from attrib.model.pictures import Pictures, check_list

Made = TypeVar("Made")
QFORMER_MASK = "qformer_attention_mask"
logger = getLogger("attrib")


def check_texts(
    placeholder: ImagePlaceholder,
    images: Pictures,
    prompts: Sequence[str],
    targets: Sequence[str] | None,
    answers: Sequence[str] | None = None,
) -> None:
    """Refuse lists of different lengths, prompts without content, and placeholders in texts."""
    check_list("prompts", prompts)
    several = ", and several for one prompt as a list in the list: encode([[a, b]], [prompt])"
    for name, given in (("images", images), ("targets", targets), ("answers", answers)):
        check_list(name, given or ())
        if given is not None and len(given) != len(prompts):
            counts = f"{len(given)} {name} for {len(prompts)} prompts"
            more = several if name == "images" else ""
            raise AttribError(f"{counts}: give one for each{more}")
    if not prompts:
        raise AttribError("no prompts: give at least one")
    named = (("prompt", prompts), ("target", targets or ()), ("answer", answers or ()))
    for what, texts in named:
        for row, text in enumerate(texts):
            check_text(placeholder, text, f"{what} {row}")
    for row, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        if not without_end_space(prompt) and not own:
            raise AttribError(f"prompt {row} is empty, and there is no image: give one of them")
    if any(prompt != without_end_space(prompt) for prompt in prompts):
        _note("a prompt ends with a space, which is read as the start of the answer after it")


def check_lengths(
    rows: Sequence[dict[str, list[int]]], tensors: dict[str, Any], config: Any
) -> None:
    """Refuse rows with more tokens than the decoder, or the Q-Former, has positions."""
    qformer = getattr(config, "qformer_config", None)
    mask = tensors.get(QFORMER_MASK)
    counts = [
        ("the decoder", config.get_text_config(), [len(row["input_ids"]) for row in rows]),
        ("the Q-Former", qformer, mask.sum(1).tolist() if isinstance(mask, Tensor) else []),
    ]
    for part, settings, lengths in counts:
        limit = getattr(settings, "max_position_embeddings", None)
        for row, length in enumerate(lengths):
            if isinstance(limit, int) and length > limit:
                raise AttribError(
                    f"prompt {row} has {length} tokens with its image and target, and {part} "
                    f"{limit} positions; shorten it"
                )


def tokenize(tokenizer: Any, text: str, row: int) -> list[int]:
    """Return the tokens of a prompt; its errors, of whatever class, name the row."""
    return _naming(lambda: tokenizer(text)["input_ids"], f"prompt {row}: the tokenizer")


def process_rows(
    process: Callable[[list[list[Image.Image]], list[str]], Made],
    images: Pictures,
    texts: Sequence[str],
    rows: Sequence[int],
) -> Made:
    """Return `process(images, texts)`; its errors, of whatever class, name the row at fault.

    Rows without an image are given a blank one.

    Raises:
        AttribError: The processor refuses a row, or these rows together.
    """
    together = f"prompts {rows[0]} to {rows[-1]}: the processor"
    lists = [list(own) or [blank_image()] for own in images]
    try:
        return _naming(lambda: process(lists, list(texts)), together)
    except AttribError:
        for row, given, own, text in zip(rows, images, lists, texts, strict=True):
            sizes = ", ".join(f"{image.width} x {image.height}" for image in own)
            what = "image" if len(own) == 1 else "images of prompt"
            where = f"{what} {row} ({sizes}) with its prompt" if given else f"prompt {row}"
            where = f"{where}: the processor"
            _naming(lambda own=own, text=text: process([own], [text]), where)
        raise


def render_prompt(render: Callable[[], str], row: int) -> str:
    """Return a prompt in its chat template; errors name the row."""
    return _naming(render, f"prompt {row}: the chat template")


def _naming(make: Callable[[], Made], what: str) -> Made:
    try:
        return make()
    except Exception as error:  # processors raise errors of any class
        if is_out_of_memory(error):
            raise
        raise AttribError(f"{what} refuses it ({describe(error)}); change or remove it") from error


def check_text(placeholder: ImagePlaceholder, text: str, where: str) -> str:
    """Return a text; refuse what is none, what no tokenizer reads, and placeholders of images."""
    if not isinstance(text, str):
        raise AttribError(f"{where} is a {type(text).__name__}; expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"holds half a Unicode character at position {error.start}"
        raise AttribError(f"{where} {what}; remove it") from error
    for reserved in placeholder.reserved:
        if reserved in text:
            raise AttribError(
                f"{where} contains {reserved!r}, which stands for an image; remove it: "
                "image tokens are inserted automatically"
            )
    return text


@cache
def _note(message: str) -> None:
    logger.warning(message)  # once: a dataset may have thousands of such rows
