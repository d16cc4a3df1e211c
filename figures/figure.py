"""What every re-made figure of the papers is: a claim, a measurement, a picture and a verdict."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from attrib.errors import SetupError
from attrib.files import atomic_write, write_text
from figures.style import DEFAULT, Style, applied

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DIGITS = 5  # significant ones of a committed number: far finer than any interval here
ABOUT = "about.json"


@dataclass(frozen=True)
class Setting:
    """What a figure is measured on.

    Attributes:
        model: an embedded name, a Hugging Face id or a folder.
        data: an embedded name or a folder in the E-VQA / E-IC layout.
        split: of the data; "vqa-train" and so on for a folder.
        limit: number of rows to read.
        seed: of noise and of bootstrap intervals.
        editors: folder with the trained editors, such as `visedit-seed-0`.
        image_root: folder of a folder's images.
    """

    model: str = "tiny-llava"
    data: str = "scenes-vqa"
    split: str = "validation"
    limit: int = 100
    seed: int = 0
    editors: Path = Path("runs/table/tiny-llava/scenes-vqa")
    image_root: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds, and the statistic that says so.

    Attributes:
        holds: None where it cannot be told.
        statistic: in a sentence, with its n and interval.
    """

    holds: bool | None
    statistic: str

    @property
    def word(self) -> str:
        """The verdict alone."""
        if self.holds is None:
            return "cannot be told here"
        return "holds here" if self.holds else "does not hold here"

    @property
    def text(self) -> str:
        """The verdict and what it rests on."""
        return f"{self.word}: {self.statistic}"


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers and images that a figure is drawn from.

    Attributes:
        tables: by name.
        images: by name; uint8 of shape (height, width, 3).
        about: how they were made; what JSON can hold.
    """

    tables: Mapping[str, pd.DataFrame]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> list[Path]:
        """Write CSV tables, PNG images and `about.json`, the same bytes every time; their paths.

        Tables and images of an earlier measurement that this one no longer has are removed.
        """
        folder = Path(folder)
        earlier = _kept_in(folder) if (folder / ABOUT).is_file() else []
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
        """What `save` wrote, with its rounded numbers.

        Raises:
            SetupError: nothing was saved there.
        """
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise SetupError(
                f"{folder}: no results to draw; make them with --measure, or give the folder of "
                "the repository's results as --results"
            )
        paths = _kept_in(folder)
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
    """One figure of the papers, re-made.

    Attributes:
        name: of its files and of the command, such as "dualedit_figure_1".
        source: such as "DualEdit, Figure 1".
        title: what is drawn, in a few words.
        claim: what the original shows, in our words.
        measure: makes the numbers; minutes on one core.
        draw: makes the picture; call `drawn`, which sets the look.
        verdict: whether the claim holds in these numbers.
        alt: the picture in words, for who cannot see it.
    """

    name: str
    source: str
    title: str
    claim: str
    measure: Callable[[Setting], Measured]
    draw: Callable[[Measured, Style], "Drawing"]
    verdict: Callable[[Measured], Verdict]
    alt: Callable[[Measured], str]

    def drawn(self, measured: Measured, style: Style = DEFAULT) -> "Drawing":
        """The picture in a style."""
        with applied(style):
            return self.draw(measured, style)


def _kept_in(folder: Path) -> list[Path]:
    return [*sorted(folder.glob("*.csv")), *sorted(folder.glob("*.png"))]


def _read_table(path: Path) -> pd.DataFrame:
    # Words such as "None" are words; only an empty field is no number. Ids stay text.
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"example": str})
