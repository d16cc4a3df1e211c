"""Edit requests, samples and datasets: what every data source is read into."""

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from attrib.data.image_sources import (
    GivenImage,
    Sources,
    as_source,
    describe_source,
    open_sources,
)
from attrib.errors import AttribError, RowError
from attrib.files import write_text

MAX_QUARANTINED_SHOWN = 3
MAX_ROWS_SHOWN = 5
MAX_CHARACTERS_SHOWN = 80
THUMBNAIL = 128  # pixels
_ALWAYS_SHOWN = tuple(f"{kind}_{what}" for what in ("generality", "locality") for kind in (
    "text", "visual", "hard"
))  # fmt: skip


@dataclass(frozen=True, init=False, repr=False, eq=False)
class EditRequest:
    """A prompt about an image (or about several, or none) and the answer to it.

    Attributes:
        prompt: the words before the answer, without an image placeholder.
        target: the answer, as it follows the prompt.
        source: where the image comes from: None, a PIL image, or a function that returns one; a
            tuple of these for several images.
    """

    prompt: str
    target: str
    source: Sources

    def __init__(self, image: GivenImage | Sequence[GivenImage] | None, prompt: str, target: str):
        """A request. An `image` given as a path is opened and checked on access.

        A list of images is several images in one prompt.
        """
        object.__setattr__(self, "source", as_source(image))
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "target", target)

    @property
    def image(self) -> Image.Image | list[Image.Image] | None:
        """The image as `vlm.encode` takes it: None for text alone, a list for several images.

        Upright in RGB, opened at every access and not kept.

        Raises:
            AttribError: if an image in memory cannot be used.
            RowError: if a row of a data file names an image that cannot be used.
            BadImage: if the request was made with a path that cannot be used.
        """
        images = self.images
        return images if len(images) > 1 else next(iter(images), None)

    @property
    def images(self) -> list[Image.Image]:
        """All images of the prompt, in order; see `image`."""
        return open_sources(self.source)

    def __repr__(self) -> str:
        image = describe_source(self.source)
        prompt, target = _short(self.prompt), _short(self.target)
        return f"EditRequest(image={image}, prompt={prompt}, target={target})"

    def _repr_html_(self) -> str:
        return f"{_thumbnail(self)}{html.escape(_line(self))}"


@dataclass(frozen=True, eq=False, repr=False)
class EditSample:
    """One edit and the requests that its scores are computed on.

    Attributes:
        id: unique within the dataset, whatever part of it was loaded.
        request: the fact to install.
        text_generality: the same image with a paraphrased prompt; the same target.
        visual_generality: another image of the same content; the same prompt and target.
        text_locality: unrelated questions without an image.
        visual_locality: unrelated questions about other images.
        hard_locality: near neighbours of the request that must keep their answer.
        meta: the other fields of the row (`task`, `row`, `pred`, `kind`, ...).
        portability: questions whose answer follows from the edit, with that answer.
        text_reliability: the edited fact, asked about by text alone.
        picture_reliability: the edited fact, asked about with the edit's image in other words.
        linked: further facts that a benchmark edits along with the request.
    """

    id: str
    request: EditRequest
    text_generality: list[EditRequest] = field(default_factory=list)
    visual_generality: list[EditRequest] = field(default_factory=list)
    text_locality: list[EditRequest] = field(default_factory=list)
    visual_locality: list[EditRequest] = field(default_factory=list)
    hard_locality: list[EditRequest] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    portability: list[EditRequest] = field(default_factory=list)
    text_reliability: list[EditRequest] = field(default_factory=list)
    picture_reliability: list[EditRequest] = field(default_factory=list)
    linked: list[EditRequest] = field(default_factory=list)

    @property
    def requests(self) -> "list[EditRequest]":
        """The request itself, then everything it is judged by."""
        judged = [some for name, some in self._requests().items() if name != "linked"]
        return [self.request, *(one for some in judged for one in some)]

    def _requests(self) -> dict[str, list[EditRequest]]:
        lists = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in lists.items() if isinstance(value, list)}

    def __repr__(self) -> str:
        lines = [f"EditSample({self.id!r}): {_line(self.request)}"]
        for name, requests in self._requests().items():
            more = f" (and {len(requests) - 1} more)" if len(requests) > 1 else ""
            if requests or name in _ALWAYS_SHOWN:
                lines.append(f"  {name}: {_line(requests[0]) if requests else 'none'}{more}")
        return "\n".join([*lines, f"  meta: {_cut(str(self.meta))}"])

    def _repr_html_(self) -> str:
        return f"{_thumbnail(self.request)}<pre>{html.escape(repr(self))}</pre>"


@dataclass(frozen=True)
class Quarantined:
    """A row that cannot be used: where it is and why."""

    file: str
    row: int | str | None
    field: str
    reason: str

    @classmethod
    def from_error(cls, error: RowError) -> "Quarantined":
        """The record of a row that raised `error`."""
        return cls(error.file, error.row, error.field, error.reason)

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}: {self.field}: {self.reason}"


@dataclass(frozen=True, eq=False, repr=False)
class EditData(Sequence[EditSample]):
    """The usable samples of one split, in the order of its rows.

    Attributes:
        name: the dataset, as passed to `load`.
        split: which part of it.
        samples: the usable rows.
        quarantined: the rows that cannot be used, with the reason.
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
            return replace(self, samples=self.samples[index])
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[EditSample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        lines = [
            f"EditData({self.name!r}, split={self.split!r}): {len(self)} samples, "
            f"{len(self.quarantined)} quarantined"
        ]
        lines += [f"  {s.id}: {_line(s.request)}" for s in self.samples[:MAX_ROWS_SHOWN]]
        return "\n".join([*lines, *_more(len(self) - MAX_ROWS_SHOWN)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def summary(self, shown: int = MAX_QUARANTINED_SHOWN) -> str:
        """Counts, and one line for each of the first `shown` quarantined rows."""
        head = (
            f"{self.name} {self.split}: {len(self)} samples, "
            f"{len(self.quarantined)} rows quarantined"
        )
        rows = [f"  {row}" for row in self.quarantined[:shown]]
        return "\n".join([head, *rows, *_more(len(self.quarantined) - shown)])

    def save_quarantined(self, path: str | Path) -> Path:
        """Write every quarantined row to `path` as JSON lines."""
        return write_text(path, "".join(json.dumps(asdict(q)) + "\n" for q in self.quarantined))


def _more(left: int) -> list[str]:
    return [f"  and {left} more"] if left > 0 else []


def _cut(text: str) -> str:
    """The first characters of a text."""
    return text if len(text) <= MAX_CHARACTERS_SHOWN else text[:MAX_CHARACTERS_SHOWN] + "..."


def _short(text: str) -> str:
    return repr(_cut(text))


def _line(request: EditRequest) -> str:
    return f"{_short(request.prompt)} -> {_short(request.target)}"


def _thumbnail(request: EditRequest) -> str:
    """The request's images as HTML elements; the reason where one cannot be opened."""
    try:
        images = request.images
    except (AttribError, OSError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    return "".join(map(_as_html, images))


def _as_html(image: Image.Image) -> str:
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="" style="display:block">'
