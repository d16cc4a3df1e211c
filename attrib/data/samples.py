"""What every data source becomes: edit requests, samples around them, and lists of samples."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

from PIL import Image

from attrib.data.images import open_photo, to_rgb
from attrib.errors import RowError
from attrib.files import write_text

Source = Image.Image | Callable[[], Image.Image]
SHOWN_QUARANTINED = 3


@dataclass(frozen=True, init=False, repr=False, eq=False)
class EditRequest:
    """A prompt about an image (or about none) and the answer to it.

    Attributes:
        prompt: the words in front of the answer, without an image marker.
        target: the answer, as it follows the prompt.
        source: where the image comes from: None, a PIL image, or what returns one when called.
    """

    prompt: str
    target: str
    source: Source | None

    def __init__(self, image: Source | str | Path | None, prompt: str, target: str):
        """A request; an `image` given as a path is opened (and checked) on touch."""
        source = partial(open_photo, image) if isinstance(image, str | Path) else image
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "target", target)

    @property
    def image(self) -> Image.Image | None:
        """The image in RGB, opened anew on every touch and not kept; None for text alone.

        Raises:
            RowError: if a row of a data file names a picture that cannot be used.
            BadImage: if the request was made with a path that cannot be used.
        """
        if self.source is None:
            return None
        image = self.source() if callable(self.source) else self.source
        return image if image.mode == "RGB" else to_rgb(image)

    def __repr__(self) -> str:
        if isinstance(self.source, Image.Image):
            image = f"<{self.source.width}x{self.source.height} {self.source.mode}>"
        else:
            image = "None" if self.source is None else "<opened on touch>"
        return f"EditRequest(image={image}, prompt={self.prompt!r}, target={self.target!r})"


@dataclass(frozen=True, eq=False)
class EditSample:
    """One edit and everything it is judged by.

    Attributes:
        id: names the sample among all of its data set, whatever part of it was loaded.
        request: the fact to install.
        text_generality: the same image, the prompt in other words; the same target.
        visual_generality: another picture of the same, the same prompt and target.
        text_locality: unrelated questions without an image.
        visual_locality: unrelated questions about other images.
        hard_locality: near neighbours of the request that must keep their answer.
        meta: what else the row says (`task`, `row`, `pred`, `kind`, ...).
    """

    id: str
    request: EditRequest
    text_generality: list[EditRequest] = field(default_factory=list)
    visual_generality: list[EditRequest] = field(default_factory=list)
    text_locality: list[EditRequest] = field(default_factory=list)
    visual_locality: list[EditRequest] = field(default_factory=list)
    hard_locality: list[EditRequest] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quarantined:
    """A row that was set aside: where it stands and why."""

    file: str
    row: int | str | None
    field: str
    reason: str

    @classmethod
    def from_error(cls, error: RowError) -> "Quarantined":
        """The record of a row that turned out bad."""
        bare = cls(error.file, error.row, error.field, "")
        return replace(bare, reason=str(error).removeprefix(str(bare)))

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.field}: {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class EditData(Sequence[EditSample]):
    """The usable samples of one split, in the order of its rows.

    Attributes:
        name: the data set, as it was asked for.
        split: which part of it.
        samples: the usable rows.
        quarantined: the others, by name.
        provenance: what is needed to load the same again, and the digest of the file.
    """

    name: str
    split: str
    samples: list[EditSample]
    quarantined: list[Quarantined] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> EditSample: ...
    @overload
    def __getitem__(self, index: slice) -> "EditData": ...
    def __getitem__(self, index: int | slice) -> "EditSample | EditData":
        """A sample, or the data with the samples of a slice (its quarantined rows stay)."""
        if isinstance(index, slice):
            part = self.samples[index]
            return EditData(self.name, self.split, part, self.quarantined, self.provenance)
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[EditSample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        counts = f"{len(self)} samples, {len(self.quarantined)} quarantined"
        return f"EditData({self.name!r}, {self.split!r}: {counts})"

    def summary(self, shown: int = SHOWN_QUARANTINED) -> str:
        """Counts, and the first few quarantined rows: a line each."""
        left = len(self.quarantined) - shown
        return "\n".join(
            [
                f"{self.name} {self.split}: {len(self)} samples, "
                f"{len(self.quarantined)} rows quarantined",
                *(f"  {row}" for row in self.quarantined[:shown]),
                *([f"  and {left} more"] if left > 0 else []),
            ]
        )

    def save_quarantined(self, path: str | Path) -> Path:
        """Write every quarantined row to `path`, a JSON object a line."""
        return write_text(path, "".join(json.dumps(asdict(q)) + "\n" for q in self.quarantined))
