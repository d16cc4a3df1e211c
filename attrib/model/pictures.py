"""Several pictures in one prompt: which visual tokens are of which picture, and where on it.

A video is given as its frames, which are pictures. Processors take pictures in the order of their
markers, so the visual tokens of a prompt are those of its first picture, then of its second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from attrib.data.images import open_photo
from attrib.data.pixels import as_rgb
from attrib.errors import AttribError, describe, is_out_of_memory
from attrib.model.batch import Picture
from attrib.model.image_placeholder import ImagePlaceholder, blank_image, quiet
from attrib.model.patch_grid import grid_finder

Given = Image.Image | str | Path
GivenImages = Sequence[Given | Sequence[Given] | None]  # one entry per prompt
Pictures = Sequence[Sequence[Image.Image]]  # the pictures of each prompt
Size = tuple[int, int]


def check_list(name: str, given: Any, needed: str = "__len__") -> None:
    """Refuse a single image or text where `encode` expects a list with one entry per prompt.

    Raises:
        AttribError: The message names the argument.
    """
    if isinstance(given, str | Image.Image) or not hasattr(given, needed):
        kind = "a text" if isinstance(given, str) else f"a {type(given).__name__}"
        example = "encode([image], [prompt])"
        raise AttribError(
            f"{name} is {kind}; give a list with one entry per prompt, such as {example}"
        )


def picture_lists(images: GivenImages) -> list[list[Image.Image]]:
    """Return the pictures of each prompt as models get them, see `attrib.data.pixels`.

    Raises:
        AttribError: One is no image, or cannot be used; the message names it as `image 0`, or as
            `image 0[1]` if it is the second picture of its prompt.
    """
    check_list("images", images, "__iter__")
    return [
        [_upright(one, f"image {row}[{k}]") for k, one in enumerate(given)]
        if isinstance(given, list | tuple)
        else [_upright(one, f"image {row}") for one in (given,) if one is not None]
        for row, given in enumerate(images)
    ]


def _upright(image: Any, where: str) -> Image.Image:
    if len(shape := getattr(image, "shape", ())) > 3:
        kind = f"{type(image).__name__} of shape {tuple(shape)}"
        raise AttribError(f"{where} is a video ({kind}); give its frames as a list of PIL images")
    if not isinstance(image, Image.Image | str | Path):
        kind = type(image).__name__
        raise AttribError(
            f"{where} is a {kind}; expected a PIL image, a path or None, or a list of them"
        )
    try:
        return as_rgb(image) if isinstance(image, Image.Image) else open_photo(image)
    except AttribError as error:
        raise AttribError(f"{where}: {error}") from error


@dataclass(frozen=True, eq=False)
class PictureFinder:
    """Finds the visual tokens of each picture of a prompt.

    Attributes:
        processor: The Hugging Face processor; its tokenizer has a token for padding.
        placeholder: How images are marked in its prompts.
        patch_size: Side of the vision tower's patches, in pixels of the processed image; None for
            queries, which have no place on a picture.
    """

    processor: Any
    placeholder: ImagePlaceholder
    patch_size: int | None

    def accept(self, images: GivenImages) -> list[list[Image.Image]]:
        """Return the pictures of each prompt, see `picture_lists`.

        Raises:
            AttribError: One is no image or cannot be used, or a prompt has several and the
                processor takes one; the message says why.
        """
        pictures = picture_lists(images)
        row = next((row for row, own in enumerate(pictures) if len(own) > 1), None)
        if row is not None and self._refusal:
            raise AttribError(
                f"prompt {row} has {len(pictures[row])} images, and "
                f"{type(self.processor).__name__} takes one per prompt: {self._refusal}; ask about "
                "one image at a time, or paste them side by side into one"
            )
        return pictures

    def find(
        self, pictures: Pictures, visual: Bool[Tensor, "batch pos"]
    ) -> tuple[tuple[Picture, ...], ...]:
        """Return the pictures of each prompt, with their visual tokens and grids.

        Args:
            pictures: Of each prompt, as images.
            visual: Positions of visual tokens.

        Raises:
            AttribError: The visual tokens of a prompt cannot be divided among its pictures.
        """
        rows = enumerate(zip(pictures, visual.sum(1).tolist(), strict=True))
        return tuple(self._find(row, images, total) for row, (images, total) in rows)

    def _find(self, row: int, images: Sequence[Image.Image], total: int) -> tuple[Picture, ...]:
        sizes = tuple(image.size for image in images)
        counts = self._divide(sizes, total)
        if len(images) > 1 and (sum(counts) != total or len(counts) != len(images)):
            raise AttribError(
                f"prompt {row}: its {total} visual tokens cannot be divided among its "
                f"{len(images)} images, which have {counts} of their own; give it one image"
            )
        found, start = [], 0
        for size, num in zip(sizes, counts, strict=True):
            grid = self._grid_of(size, num, len(sizes))
            grid = grid and replace(grid, first=grid.first + start)
            found.append(Picture(slice(start, start + num), grid))
            start += num
        return tuple(found)

    def _divide(self, sizes: tuple[Size, ...], total: int) -> list[int]:
        """Return the number of visual tokens of each picture of one prompt."""
        # Processors that insert tokens without a marker insert the same number for every picture.
        same = self.placeholder.auto_inserts or len(set(sizes)) == 1
        if same and sizes and total % len(sizes) == 0:
            return [total // len(sizes)] * len(sizes)
        if len(sizes) < 2:
            return [total] * len(sizes)
        together = self._counts(sizes)
        # Tokenizers that read the separator as plain text count the pictures as one.
        return together if len(together) == len(sizes) else [sum(self._counts((s,))) for s in sizes]

    @cached_property
    def _counts(self) -> Any:
        return lru_cache(maxsize=4096)(self._count_between_separators)

    def _count_between_separators(self, sizes: tuple[Size, ...]) -> list[int]:
        """Count the visual tokens of each picture in a prompt with separators between them.

        Counts depend on the sizes alone, but on all of them together: LLaVA-OneVision cuts a
        picture into tiles only if it is alone. Text inside a picture's own tokens (rows of tiles)
        forbids to divide them at text.
        """
        tokenizer = self.processor.tokenizer
        separator = tokenizer.eos_token or tokenizer.pad_token
        text = separator.join([self.placeholder.marker] * len(sizes)) + separator
        counts = [0]
        for token in self._ids([Image.new("RGB", size, "grey") for size in sizes], text):
            if token == tokenizer.convert_tokens_to_ids(separator):
                counts.append(0)
            counts[-1] += token == self.placeholder.image_token_id
        return [count for count in counts if count]

    @cached_property
    def _refusal(self) -> str:
        """Why the processor takes one picture per prompt; "" if it takes several."""
        try:
            # Not one: a picture alone may be cut into tiles.
            two, three = (
                sum(
                    token == self.placeholder.image_token_id
                    for token in self._ids([blank_image()] * num, self.placeholder.marker * num)
                )
                for num in (2, 3)
            )
        except Exception as error:  # processors raise errors of any class
            if is_out_of_memory(error):
                raise
            return describe(error)
        same = f"it inserts {two} visual tokens, however many images there are"
        return "" if 0 < two < three else same

    def _ids(self, images: list[Image.Image], text: str) -> list[int]:
        with quiet():
            out = self.processor(images=[images], text=[f"{text}x"], return_tensors="pt")
        return out["input_ids"][0].tolist()

    @cached_property
    def _grid_of(self) -> Any:
        return grid_finder(self.processor.image_processor, self.patch_size)
