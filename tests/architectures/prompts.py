"""Tokenizers with the special tokens of a family, and a processor for models without one here."""

from collections.abc import Callable, Sequence
from typing import Any

import transformers as tr
from torch import Tensor
from transformers.video_processing_utils import BaseVideoProcessor

from attrib.model.processor_files import without_video_check
from tests.tiny_models import IMAGE, QWEN_TEMPLATE, SPECIAL, tokenizer


def words(bos: str | None = None, extra: Sequence[str] = (), **tokens: str) -> Any:
    """The byte-level tokenizer.

    Args:
        bos: The token before every text.
        extra: Tokens after the usual ones.
        tokens: By the key of `SPECIAL`, another text for that token; else the name under which the
            tokenizer has it: `image_token="<image>"`.
    """
    special = SPECIAL | {key: text for key, text in tokens.items() if key in SPECIAL}
    names = {key: text for key, text in tokens.items() if key not in SPECIAL}
    bos = bos and special["bos"]
    return tokenizer(bos, (*special.values(), *extra), extra_special_tokens=names)


def square(size: int) -> dict[str, int]:
    """A size of images, both sides alike."""
    return {"height": size, "width": size}


def patches_pil(patch: int = 14, kind: Any = None, **settings: Any) -> Any:
    """Qwen2-VL's image processor, or one like it, for pictures of a few tokens."""
    sizes = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    usual = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
    return (kind or tr.Qwen2VLImageProcessorPil)(**usual | settings)


def patches(
    processor_class: Any, patch: int = 14, template: str = QWEN_TEMPLATE, words: Any = words,
    images: Any = None, audio: bool = False, **tokens: str,
) -> Any:  # fmt: skip
    """A processor of the Qwen-VL kind: as many tokens as merged patches."""
    ears = {"feature_extractor": tr.WhisperFeatureExtractor()} if audio else {}
    names = {"image_token": "<image>", "video_token": "<video>"} | tokens
    return without_video_check(processor_class)(
        image_processor=images or patches_pil(patch), tokenizer=words(**names),
        video_processor=BaseVideoProcessor(), chat_template=template, **ears,
    )  # fmt: skip


class ByHand:
    """A processor for models whose own one cannot be built here.

    Every picture becomes a square of `size` pixels and `count` image tokens.

    Args:
        size: Side of the processed picture.
        count: Number of its tokens.
        inputs: From the pictures, "image channel height width", to the model's inputs; by default
            `pixel_values`.
        before: Text before the image tokens; `after`, after them.
        types: Whether there is an input that is 1 at image tokens.
    """

    chat_template = None

    def __init__(
        self, size: int, count: int, inputs: Callable[[Tensor], dict[str, Any]] | None = None,
        before: str = "", after: str = "", words: Any = None, types: bool = False,
    ):  # fmt: skip
        self.types = types
        self.tokenizer = words or tokenizer()
        self.image_processor = tr.SiglipImageProcessorPil(size=square(size))
        self.image_token = "<image>"
        self.expansion = before + "<image>" * count + after
        self.inputs = inputs or (lambda pixels: {"pixel_values": pixels})

    def __call__(self, images: Any, text: list[str], return_tensors: str, **padding: Any) -> Any:
        """Inputs of texts with "<image>" where their one picture belongs."""
        flat = [image for row in images for image in row]
        if len(flat) != sum(one.count("<image>") for one in text):
            raise ValueError("as many pictures as <image> in the texts are needed")
        longer = [one.replace("<image>", self.expansion) for one in text]
        ids = self.tokenizer(longer, return_tensors=return_tensors, **padding)
        pixels = self.image_processor(images=flat, return_tensors=return_tensors)["pixel_values"]
        rows = {key: ids[key] for key in ("input_ids", "attention_mask")}
        if self.types:
            rows["mm_token_type_ids"] = (rows["input_ids"] == IMAGE).long()
        return rows | self.inputs(pixels)


def cut(pixels: Tensor, patch: int, times: int = 1) -> tuple[Tensor, Tensor]:
    """Patches of pictures, row by row, and the grid of each picture.

    Args:
        pixels: "image channel height width".
        patch: Side of a patch.
        times: How often each picture is repeated, as frames.

    Returns:
        "patch channel frame height width" of all pictures, and "image 3": frames, rows and columns.
    """
    images, channels, height, width = pixels.shape
    rows, cols = height // patch, width // patch
    parts = pixels.reshape(images, channels, rows, patch, cols, patch)
    parts = parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    grid = pixels.new_tensor([[1, rows, cols]]).long().repeat(images, 1)
    return parts[:, :, None].repeat(1, 1, times, 1, 1), grid
