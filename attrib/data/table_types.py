"""What the readers of tables return: rows, the columns' names, and handles of stored images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BadRow:
    """A row of a file that could not be read.

    Attributes:
        reason: why, with the line where there is one.
    """

    reason: str


@dataclass(frozen=True)
class StoredImage:
    """An image whose bytes a table holds; they are read when it is opened.

    Attributes:
        column: its column.
        row: its row in the table.
        at: its place where a cell holds several.
    """

    column: str
    row: int
    at: int | None = None

    def __str__(self) -> str:
        place = "" if self.at is None else f"[{self.at}]"
        return f"{self.column}{place} of row {self.row}"


def no_stored_image(image: StoredImage) -> bytes:
    """For tables of text, which hold no images."""
    raise AssertionError(f"{image}: a table of text holds no bytes")


@dataclass(frozen=True)
class Table:
    """A table that was read, but for its images.

    Attributes:
        path: the file, or the folder of a saved dataset.
        columns: names of the columns, in order.
        rows: a mapping by column, or a `BadRow`; anything else is no row.
        digest: SHA-256 of the file, or over the files of the folder.
        separator: what stands between several images of one cell; None where cells are lists.
        read_image: the bytes of a stored image; raises BadImage.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[object]
    digest: str
    separator: str | None = None
    read_image: Callable[[StoredImage], bytes] = no_stored_image

    @property
    def folder(self) -> Path:
        """Where relative paths of images start, unless an image root is given."""
        return self.path if self.path.is_dir() else self.path.parent
