"""Find out how a processor wants an image announced in a prompt.

Some processors put an image's tokens in by themselves (BLIP-2, PaliGemma); most want a marker in
the prompt ("<image>" and a newline for LLaVA), which they turn into as many tokens as the image
needs. The marker stands in the processor's chat template, and whether it works is tried out: no
list of models.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers.utils import logging

from attrib.errors import SetupError


@dataclass(frozen=True)
class ImagePlaceholder:
    """How a processor wants an image announced in a prompt.

    Attributes:
        marker: What goes before the prompt; "" if the processor inserts the image's tokens itself.
        image_token_id: The id that stands for one visual token.
        reserved: Strings the processor takes for an image; a prompt must not hold them.
        target_types: Extra inputs with one number per token that the processor returns, and that
            number for a target's tokens. Where it marks images (Gemma 3, Qwen-VL) they are 0; where
            0 marks what is seen in both directions (PaliGemma) they are 1.
    """

    marker: str
    image_token_id: int
    reserved: tuple[str, ...]
    target_types: dict[str, int]

    @property
    def auto_inserts(self) -> bool:
        """Whether the processor puts the image's tokens in, so that no marker is needed."""
        return not self.marker


def find_placeholder(processor: Any, image_token_id: int) -> ImagePlaceholder:
    """How `processor` wants an image announced, found by asking it.

    Raises:
        SetupError: Neither the processor nor a marker brings the image's tokens into a prompt.
    """
    token = str(processor.tokenizer.convert_ids_to_tokens(image_token_id))
    names = ("image_token", "boi_token", "video_token", "fake_image_token", "start_image_token")
    reserved = {token} | {str(t) for name in names if (t := getattr(processor, name, None))}
    marker = template_marker(processor)
    # Without a template: nothing, for processors that insert; else the token and a newline, as
    # LLaVA.
    for candidate in [marker] if marker else ["", f"{getattr(processor, 'image_token', token)}\n"]:
        types = _target_types(processor, candidate, image_token_id)
        if types is not None:
            return ImagePlaceholder(candidate, image_token_id, tuple(sorted(reserved)), types)
    raise SetupError(
        f"{type(processor).__name__} puts no image token (id {image_token_id}, {token!r}) into "
        "a prompt; it does not belong to the model, or lacks a setting such as num_query_tokens"
    )


def template_marker(processor: Any) -> str | None:
    """What the chat template puts in for an image: the difference of rendering with and without."""
    if getattr(processor, "chat_template", None) is None:
        return None
    plain, marked = (render(processor, "x", has_image) for has_image in (False, True))
    start = _num_common(plain, marked)
    end = _num_common(plain[start:][::-1], marked[start:][::-1])
    return marked[start : len(marked) - end] or None


def _num_common(a: str, b: str) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def render(processor: Any, prompt: str, has_image: bool) -> str:
    """A prompt in the processor's chat template, up to where the answer begins."""
    content = [{"type": "image"}] * has_image + [{"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def blank_image() -> Image.Image:
    """A small grey image, for where a processor insists on one."""
    return Image.new("RGB", (64, 64), "grey")


def _target_types(processor: Any, marker: str, image_token_id: int) -> dict[str, int] | None:
    try:
        with quiet():
            out = processor(images=[[blank_image()]], text=[f"{marker}x"], return_tensors="pt")
    except ValueError:  # how processors say that images and markers do not match
        return None
    visual = out["input_ids"] == image_token_id
    if not visual.any():
        return None
    types = {key: value for key, value in out.items() if key.endswith("type_ids")}
    return {key: int(not value[visual].any()) for key, value in types.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back transformers' advice where it does not apply."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own use of numpy
            yield
    finally:
        logging.set_verbosity(level)
