"""Find the placeholder for an image in the prompts of any Hugging Face processor.

Some processors insert image tokens automatically (BLIP-2, PaliGemma). Most expand a marker in the
prompt ("<image>" and a newline for LLaVA), which is read from the chat template and then tried.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from attrib.errors import SetupError, describe

# Added tokens around images and their parts, such as "<|vision_start|>" or "[IMG_BREAK]".
STANDS_FOR_IMAGE = re.compile(r"(?i)[<\[].*(image|img|video|vision|audio|row_\d).*[>\]]$")


@dataclass(frozen=True)
class ImagePlaceholder:
    """The placeholder for an image in a processor's prompts.

    Attributes:
        marker: Text before the prompt; "" if the processor inserts image tokens automatically.
        image_token_id: The input id of a visual token.
        reserved: Strings that stand for an image, which a text must not contain.
        target_types: Name of each token-type input of the processor -> type of target tokens: 0 if
            types mark images (Gemma 3, Qwen-VL), 1 if 0 marks bidirectional attention (PaliGemma).
    """

    marker: str
    image_token_id: int
    reserved: tuple[str, ...]
    target_types: dict[str, int]

    @property
    def auto_inserts(self) -> bool:
        """Whether the processor inserts image tokens without a marker."""
        return not self.marker


def find_placeholder(processor: Any, image_token_id: int) -> ImagePlaceholder:
    """Find the image placeholder of `processor` by trying candidates.

    Raises:
        SetupError: No candidate makes the processor insert image tokens.
    """
    token = str(processor.tokenizer.convert_ids_to_tokens(image_token_id))
    names = ("image_token", "boi_token", "video_token", "fake_image_token", "start_image_token")
    reserved = {token} | {str(t) for name in names if (t := getattr(processor, name, None))}
    reserved |= set(filter(STANDS_FOR_IMAGE.match, processor.tokenizer.get_added_vocab()))
    marker = _template_marker(processor)
    # Without a template: no marker, for processors that insert automatically; else LLaVA's.
    why = ""
    for candidate in [marker] if marker else ["", f"{getattr(processor, 'image_token', token)}\n"]:
        try:
            types = _target_types(processor, candidate, image_token_id)
        except Exception as error:  # of any class: also if images and markers do not match
            why = f" ({describe(error)})"
            continue
        if types is not None:
            return ImagePlaceholder(candidate, image_token_id, tuple(sorted(reserved)), types)
    if image_token_id >= len(processor.tokenizer):
        why = f": its tokenizer has {len(processor.tokenizer)} tokens"
    raise SetupError(
        f"{type(processor).__name__} inserts no image token (id {image_token_id}, {token!r}) into "
        f"prompts{why}; give the processor of this model, with its image token and its settings "
        "such as num_query_tokens or patch_size"
    )


def has_chat_template(processor: Any) -> bool:
    """Whether a processor can write prompts in a chat template."""
    return getattr(processor, "chat_template", None) is not None


def _template_marker(processor: Any) -> str | None:
    """Return what the chat template adds for an image: the difference of two renderings."""
    if not has_chat_template(processor):
        return None
    try:
        plain, marked = (render(processor, "x", num_images) for num_images in (0, 1))
    except Exception:  # of any class; `encode` says it where the template is asked for
        return None
    start = _num_common(plain, marked)
    end = _num_common(plain[start:][::-1], marked[start:][::-1])
    return marked[start : len(marked) - end] or None


def _num_common(a: str, b: str) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def render(processor: Any, prompt: str, num_images: int) -> str:
    """Render a prompt in the processor's chat template, up to the start of the answer."""
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def blank_image() -> Image.Image:
    """Return a small grey image, for processors that require one."""
    return Image.new("RGB", (64, 64), "grey")


def _target_types(processor: Any, marker: str, image_token_id: int) -> dict[str, int] | None:
    with quiet():
        out = processor(images=[[blank_image()]], text=[f"{marker}x"], return_tensors="pt")
    visual = out["input_ids"] == image_token_id
    if not visual.any():
        return None
    types = {key: value for key, value in out.items() if key.endswith("type_ids")}
    return {key: int(not value[visual].any()) for key, value in types.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of transformers."""
    # Not by its level: each change of that looks at every logger of the process.
    handlers = tuple(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its use of numpy
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
