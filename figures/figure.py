"""A figure of the papers as code: a claim, a measurement, a drawing and a verdict."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from attrib.errors import AttribError, SetupError
from attrib.files import atomic_write, write_text
from figures.style import DEFAULT, Style, applied, freeze_layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

NAMES = (
    *(f"dualedit_figure_{number}" for number in range(1, 6)),
    *(f"visedit_figure_{number}" for number in range(1, 10)),
)
DIGITS = 5  # significant digits of a committed number: far finer than any interval here
ABOUT = "about.json"


@dataclass(frozen=True)
class Setting:
    """The model, the data and the editors that a figure is measured on.

    Attributes:
        model: An embedded name, a Hugging Face id or a folder.
        data: An embedded name or a folder in the E-VQA / E-IC layout.
        split: Split of the data; "vqa-train" and so on for a folder.
        limit: Number of rows to read.
        seed: Seed of the noise and of bootstrap intervals.
        editors: Folder of the trained editors, such as `visedit-seed-0`.
        image_root: Folder of the images, if `data` is a folder.
        dtype: Type of the weights, as `attrib.load` takes it.
    """

    model: str = "tiny-llava"
    data: str = "scenes-vqa"
    split: str = "validation"
    limit: int = 100
    seed: int = 0
    editors: Path = Path("runs/table/tiny-llava/scenes-vqa")
    image_root: Path | None = None
    dtype: str = "auto"


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, with the statistic that decides.

    Attributes:
        holds: None if the numbers do not decide.
        statistic: A sentence with n and the interval.
    """

    holds: bool | None
    statistic: str

    @property
    def word(self) -> str:
        """The verdict without the statistic."""
        if self.holds is None:
            return "undecided here"
        return "holds here" if self.holds else "does not hold here"

    @property
    def text(self) -> str:
        """The verdict and the statistic."""
        return f"{self.word}: {self.statistic}"


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers and images that a figure is drawn from.

    Attributes:
        tables: Data frames by name.
        images: uint8 arrays of shape (height, width, 3), by name.
        about: Provenance, as JSON values.
    """

    tables: Mapping[str, pd.DataFrame]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> list[Path]:
        """Write CSV tables, PNG images and `about.json`, always the same bytes; return the paths.

        Tables and images of an earlier measurement that are not part of this one are removed.
        """
        folder = Path(folder)
        earlier = _saved_files(folder) if (folder / ABOUT).is_file() else []
        paths = []
        for name, table in self.tables.items():
            text = table.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")
            paths.append(write_text(folder / f"{name}.csv", text))
        for name, pixels in self.images.items():
            with atomic_write(folder / f"{name}.png") as file:
                Image.fromarray(pixels).save(file, format="PNG", optimize=True)
            paths.append(folder / f"{name}.png")
        for path in set(earlier) - set(paths):
            path.unlink()
        about = json.dumps(dict(self.about), indent=2, sort_keys=True, allow_nan=False) + "\n"
        return [*paths, write_text(folder / ABOUT, about)]

    @classmethod
    def load(cls, folder: str | Path) -> "Measured":
        """Read what `save` wrote; numbers are rounded.

        Raises:
            SetupError: The folder has no `about.json`.
        """
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise SetupError(
                f"{folder}: no numbers to draw; measure them with --measure, or pass the "
                "repository's figures/data as --results"
            )
        paths = _saved_files(folder)
        tables = {path.stem: _read_table(path) for path in paths if path.suffix == ".csv"}
        images = {
            path.stem: np.asarray(Image.open(path).convert("RGB"))
            for path in paths
            if path.suffix == ".png"
        }
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return cls(tables, images, about)


@dataclass(frozen=True)
class Figure:
    """One figure of the papers, reproduced.

    Attributes:
        name: Name of its files and on the command line, such as "dualedit_figure_1".
        source: Paper and number, such as "DualEdit, Figure 1".
        title: The content in a few words.
        claim: What the original shows, in our words.
        measure: Computes the numbers; takes minutes on one core.
        draw: Draws the numbers; call `render`, which also sets the style.
        verdict: Decides whether the claim holds in these numbers.
        alt: Describes the drawing in words.
        published: The claim in a few words, for a column beside the verdicts.
    """

    name: str
    source: str
    title: str
    claim: str
    measure: Callable[[Setting], Measured]
    draw: Callable[[Measured, Style], "Drawing"]
    verdict: Callable[[Measured], Verdict]
    alt: Callable[[Measured], str]
    published: str

    def render(self, measured: Measured, style: Style = DEFAULT) -> "Drawing":
        """Draw the numbers in a style."""
        with applied(style):
            return freeze_layout(self.draw(measured, style))


def names() -> tuple[str, ...]:
    """Return the names of all figures, in the order of the papers."""
    return NAMES


@cache
def find(name: str) -> Figure:
    """Return the figure of a name; its module is imported on the first call.

    Raises:
        AttribError: No figure has this name; the message lists the names.
    """
    if name not in NAMES:
        raise AttribError(f"no figure {name!r}; there are {', '.join(NAMES)}")
    figure = import_module(f"figures.{name}").FIGURE
    assert figure.name == name, f"figures/{name}.py defines {figure.name}"
    return figure


def _saved_files(folder: Path) -> list[Path]:
    return [*sorted(folder.glob("*.csv")), *sorted(folder.glob("*.png"))]


def _read_table(path: Path) -> pd.DataFrame:
    # "None" is text in these tables; only an empty field is NaN. Ids stay text.
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"example": str})
