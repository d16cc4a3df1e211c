"""Prompts with their images as tensors, and the positions of each modality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.vocabulary import Span

IGNORE_INDEX = -100  # label of positions whose next token is not part of the target
SHOWN = 3  # prompts in a repr
WIDTH = 60  # characters of each


def is_of_row(name: str) -> bool:
    """Whether an input of the model is a row of tokens, their mask or their types."""
    return name in ("input_ids", "attention_mask") or name.endswith("token_type_ids")


@dataclass(frozen=True)
class Grid:
    """The layout of visual tokens on their image, row by row from the top left.

    Attributes:
        rows: Number of token rows.
        cols: Number of token columns.
        box: (left, top, right, bottom) of the grid in pixels of the original image. It lies inside
            the image if the processor crops, and extends beyond it if the processor pads.
        first: Index of the top left token among the example's visual tokens; above 0 where another
            picture or tiles of a larger rendering come first. The grid has the `rows * cols` tokens
            from there on.
    """

    rows: int
    cols: int
    box: tuple[float, float, float, float]
    first: int = 0


@dataclass(frozen=True)
class Picture:
    """One of the images of a prompt.

    Attributes:
        tokens: Its tokens among the example's visual tokens, such as a map's columns.
        grid: Their layout; None for queries of a Q-Former, which attend to the whole image.
    """

    tokens: slice
    grid: Grid | None


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """Prompts with their images, and the positions of each modality.

    Attributes:
        inputs: Keyword arguments of the Hugging Face model's forward.
        spans: Positions by kind. `visual` and `text` partition the prompt's real tokens except the
            beginning-of-sequence token (`bos`, if there is one); `last` is the last prompt
            token; `target` holds the target's tokens, if targets were given.
        pictures: Per example its images, in order. Their `tokens` partition its visual tokens.
            Empty without an image, and where the processor was called elsewhere (`vlm.batch`).
        ids: Names of the examples (see `named`), which seed their noise.
        prompts: The prompts as they were given.
        alone: Per example the inputs that its own images become, where a model would read them
            differently in another batch (`attrib.model.company`); else empty.
    """

    inputs: dict[str, Any]
    spans: dict[str, Bool[Tensor, "batch pos"]]
    pictures: tuple[tuple[Picture, ...], ...] = ()
    ids: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    alone: tuple[dict[str, Any], ...] = ()

    def __getitem__(self, span: Span) -> Bool[Tensor, "batch pos"]:
        """The positions of a span."""
        return self.spans[span]

    def __repr__(self) -> str:
        lines = [f"Batch of {self.size}, {self.spans['last'].shape[1]} positions"]
        counts = (f"{name} {span.sum(1).tolist()[:SHOWN]}" for name, span in self.spans.items())
        lines.append(f"  tokens: {', '.join(counts)}")
        grids = (" and ".join(map(_shape, own)) or "none" for own in self.pictures[:SHOWN])
        lines.append(f"  grids: {', '.join(grids) or 'none'}")
        lines += [f"  prompt {i}: {text[:WIDTH]!r}" for i, text in enumerate(self.prompts[:SHOWN])]
        if self.size > SHOWN:
            lines.append(f"  ... and {self.size - SHOWN} more examples")
        return "\n".join(lines)

    @cached_property
    def labels(self) -> Int[Tensor, "batch pos"] | None:
        """Id of the next token where that token belongs to the target, -100 elsewhere."""
        if "target" not in self.spans:
            return None
        ids, target = self.inputs["input_ids"], self.spans["target"]
        labels = torch.full_like(ids, -100)
        labels[:, :-1][target[:, 1:]] = ids[target]
        return labels

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.spans["last"])

    @property
    def grids(self) -> tuple[Grid | tuple[Grid | None, ...] | None, ...]:
        """Per example the layout of its visual tokens, or one layout per image if it has several.

        None without an image, and for Q-Former models, whose queries attend to the whole image.
        """
        each = [tuple(picture.grid for picture in own) for own in self.pictures]
        return tuple(own if len(own) > 1 else (own or (None,))[0] for own in each)

    def picture(self, number: int) -> Bool[Tensor, "batch pos"]:
        """The positions of each example's image of that number, from 0 on; none without it.

        Raises:
            AttribError: The images of an example with visual tokens are unknown.
        """
        visual, pictures = self["visual"], self.pictures or ((),) * self.size
        if any(at.any() and not own for at, own in zip(visual, pictures, strict=True)):
            raise AttribError("which visual tokens are of which image is unknown here: use encode")
        tokens = [own[number].tokens if number < len(own) else slice(0, 0) for own in pictures]
        start, stop = visual.new_tensor([(t.start, t.stop) for t in tokens], dtype=torch.long).T
        rank = visual.cumsum(1) - 1
        return visual & (rank >= start[:, None]) & (rank < stop[:, None])

    def only(self, rows: Sequence[int]) -> "Batch | None":
        """Some of the examples, with the same padding.

        None where their images cannot be told apart among the inputs: those that are processed
        have to be one entry per image, and an example may have one image.
        """
        counts = [len(own) for own in self.pictures] or [0] * self.size
        owner = [i for i, num in enumerate(counts) if num]
        at, shown = list(rows), [owner.index(i) for i in rows if counts[i]]
        if self.alone or max(counts) > 1 or bool(shown) != bool(self["visual"].any()):
            return None
        inputs = {}
        for name, value in self.inputs.items():
            size, chosen = (self.size, at) if is_of_row(name) else (len(owner), shown)
            if not isinstance(value, Tensor) or len(value) != size:
                return None
            inputs[name] = value[chosen]
        given = {"pictures": self.pictures, "ids": self.ids, "prompts": self.prompts}
        some = {name: tuple(values[i] for i in at if values) for name, values in given.items()}
        return Batch(inputs, {name: span[at] for name, span in self.spans.items()}, **some)

    def named(self, ids: Sequence[str]) -> "Batch":
        """Return the batch with names for its examples."""
        if len(ids) != self.size:
            raise AttribError(f"{len(ids)} ids for {self.size} examples")
        return replace(self, ids=tuple(ids))


def _shape(picture: Picture) -> str:
    return f"{picture.grid.rows}x{picture.grid.cols}" if picture.grid else "none"


def visual_token_ids(image_token_id: int, config: Any) -> list[int]:
    """Return the ids of visual tokens: of images, and of videos if the model's config has one."""
    video = getattr(config, "video_token_id", None)
    return [image_token_id, video] if isinstance(video, int) else [image_token_id]


def token_spans(
    inputs: dict[str, Any],
    visual_ids: Sequence[int],
    bos_id: int | None,
    target_lengths: Sequence[int] | None = None,
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Return the positions of each span in padded rows of tokens.

    Args:
        inputs: Inputs of the model, `input_ids` and `attention_mask` among them.
        visual_ids: Ids of visual tokens.
        bos_id: Id of the beginning-of-sequence token, if there is one.
        target_lengths: Number of target tokens at the end of each row.
    """
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    index = torch.arange(ids.shape[1], device=ids.device)
    end = torch.where(real, index + 1, 0).amax(1, keepdim=True)
    lengths = torch.tensor(target_lengths or [0] * len(ids), device=ids.device)[:, None]
    prompt = real & (index < end - lengths)
    visual = prompt & torch.isin(ids, ids.new_tensor(visual_ids))
    words = prompt & ~visual
    # Q-Former models put the visual tokens before the beginning-of-sequence token.
    bos = words & (words.cumsum(1) == 1) & (ids == (-1 if bos_id is None else bos_id))
    spans = {"visual": visual, "text": words & ~bos, "last": index == end - lengths - 1}
    if bos.any():
        spans["bos"] = bos
    if target_lengths is not None:
        spans["target"] = real & ~prompt
    return spans
