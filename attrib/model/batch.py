"""Prompts with their images as tensors, and where each modality sits in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool, Int
from torch import Tensor

from attrib.errors import AttribError

Span = Literal["visual", "text", "last", "bos", "target"]
IGNORE_INDEX = -100  # label of positions whose next token is not part of the target


@dataclass(frozen=True)
class Grid:
    """Where an example's visual tokens lie in its image, row by row from the top left.

    Attributes:
        rows: Number of token rows.
        cols: Number of token columns.
        box: (left, top, right, bottom) of the gridded area in pixels of the original image. It lies
            inside the image where the processor crops, and reaches beyond it where it pads.
        first: Which of the example's visual tokens is the top left one. Not 0 where tiles of a
            larger rendering come first; `rows * cols` tokens from there on belong to the grid.
    """

    rows: int
    cols: int
    box: tuple[float, float, float, float]
    first: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts with their images, and the positions each modality occupies.

    Attributes:
        inputs: Keyword arguments of the Hugging Face model's forward.
        spans: Positions of the prompt by kind. `visual` and `text` partition the prompt's real
            tokens minus the beginning-of-sequence token, which is `bos` where there is one; `last`
            is the last prompt token; `target` the target's tokens, where targets were given.
        grids: Per example the geometry of its visual tokens, or None: no image, or no geometry
            (queries of a Q-Former attend to the whole image).
        labels: The next token's id where it belongs to the target, -100 elsewhere.
        ids: Names of the examples (`named`): what their noise is keyed by.
    """

    inputs: dict[str, Any]
    spans: dict[str, Bool[Tensor, "batch pos"]]
    grids: tuple[Grid | None, ...] = ()
    labels: Int[Tensor, "batch pos"] | None = None
    ids: tuple[str, ...] = ()

    def __getitem__(self, span: Span) -> Bool[Tensor, "batch pos"]:
        """The positions of a span."""
        return self.spans[span]

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.spans["last"])

    def named(self, ids: Sequence[str]) -> "Batch":
        """The same batch, whose examples have these names."""
        if len(ids) != self.size:
            raise AttribError(f"{len(ids)} ids for {self.size} examples")
        return replace(self, ids=tuple(ids))
