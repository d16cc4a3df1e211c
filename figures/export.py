"""Write figures as files, list them on a page, and show them in notebooks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrib.files import atomic_write, write_text
from figures.figure import Figure, Measured, Setting, find
from figures.style import DEFAULT, Style, applied

DPI = 130  # of files: two columns of print
SCREEN_DPI = 80
DATA = Path(__file__).parent / "data"  # the committed numbers
INDEX = "README.md"
_HEAD = (
    "# The papers' figures, reproduced",
    "",
    "`python -m figures` draws all of them from the numbers in `data/`, always the same bytes;",
    "`python -m figures NAME --measure` measures the numbers first. Each figure has a notebook in",
    "`../notebooks/`. A verdict applies to the model and data named beside it and is computed",
    "from the numbers.",
    "",
    "| Figure | Shows | Verdict |",
    "| --- | --- | --- |",
)


def write(
    figure: Figure, measured: Measured, folder: str | Path, style: Style = DEFAULT
) -> list[Path]:
    """Write a figure as NAME.svg and NAME.png and return the paths."""
    from attrib.plots.drawing import figure_png, figure_svg

    stem = Path(folder) / figure.name
    with applied(style):
        drawing = figure.render(measured, style)
        title = f"{figure.source}, reproduced"
        vector = write_text(f"{stem}.svg", figure_svg(drawing, title, figure.alt(measured)))
        with atomic_write(f"{stem}.png") as file:
            file.write(figure_png(drawing, dpi=DPI))
    return [vector, Path(f"{stem}.png")]


def write_index(results: Mapping[str, Measured], folder: str | Path) -> Path:
    """Write the page with figures by name, their claims and verdicts, and return its path."""
    head: list[str] = [*_HEAD]
    sections: list[str] = []
    for name, measured in results.items():
        figure = find(name)
        verdict = figure.verdict(measured)
        title = figure.title.replace("|", "\\|")
        head.append(f"| [{figure.source}](#{_anchor(figure)}) | {title} | {verdict.word} |")
        sections += _section(figure, measured.about, verdict.text, figure.alt(measured))
    return write_text(Path(folder) / INDEX, "\n".join([*head, *sections]) + "\n")


def results(figure: Figure, setting: Setting | None = None, folder: Path = DATA) -> Measured:
    """Return the committed numbers of a figure, or measure those of another setting.

    Args:
        figure: The figure.
        setting: Model, data and editors; the committed numbers are those of the default setting.
        folder: Folder of committed numbers. Without it (an installed package), numbers are
            measured.
    """
    committed = folder / figure.name
    if committed.is_dir() and (setting is None or setting == Setting()):
        return Measured.load(committed)
    return figure.measure(setting or Setting())


@dataclass(frozen=True)
class Picture:
    """A drawing that notebooks display, with its text alternative."""

    png: bytes
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"image/png": self.png, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def show(figure: Figure, measured: Measured, style: Style = DEFAULT) -> Picture:
    """Draw a figure for a notebook."""
    from attrib.plots.drawing import figure_png

    with applied(style):
        return Picture(
            figure_png(figure.render(measured, style), dpi=SCREEN_DPI), figure.alt(measured)
        )


def _section(figure: Figure, about: Mapping[str, Any], verdict: str, alt: str) -> list[str]:
    name = figure.name
    measured_on = f"{about.get('model')} on {about.get('data')}, n = {about.get('n')}"
    return [
        "",
        f"## {figure.source}",
        "",
        f"{figure.title}: {measured_on}.",
        "",
        f"![{_without_brackets(alt)}]({name}.svg)",
        "",
        f"**Claim of the original.** {figure.claim}",
        "",
        f"**Verdict.** {verdict}",
        "",
        f"**In words.** {alt}",
        "",
        f"[PNG]({name}.png), [numbers](data/{name}/), [notebook](../notebooks/{name}.ipynb); "
        f"measured by `{about.get('command')}`",
    ]


def _anchor(figure: Figure) -> str:
    return figure.source.lower().replace(",", "").replace(" ", "-")


def _without_brackets(text: str) -> str:
    return " ".join(text.replace("[", "(").replace("]", ")").split())
