"""Figures as files, the same bytes every time; the page that lists them; figures on a screen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrib.files import atomic_write, write_text
from figures.figure import Figure, Measured, Setting
from figures.registry import find
from figures.style import DEFAULT, Style, applied

DPI = 130  # of files: two columns of print
SCREEN_DPI = 80
COMMITTED = Path("figures/data")
INDEX = "README.md"
_HEAD = (
    "# The papers' figures, re-made",
    "",
    "`attrib figures` draws all of these from the numbers in `data/`, the same bytes every time;",
    "`attrib figures NAME --measure` makes the numbers anew. Each figure has a notebook in",
    "`../notebooks/`. A verdict is about the model and data that stand beside it, and is computed",
    "from the numbers.",
    "",
    "| Figure | Shows | Verdict |",
    "| --- | --- | --- |",
)


def write(
    figure: Figure, measured: Measured, folder: str | Path, style: Style = DEFAULT
) -> list[Path]:
    """Write a figure as NAME.svg and NAME.png; their paths."""
    from attrib.plots.drawing import figure_png, figure_svg

    stem = Path(folder) / figure.name
    with applied(style):
        drawing = figure.drawn(measured, style)
        said = f"{figure.source}, re-made"
        vector = write_text(f"{stem}.svg", figure_svg(drawing, said, figure.alt(measured)))
        with atomic_write(f"{stem}.png") as file:
            file.write(figure_png(drawing, dpi=DPI))
    return [vector, Path(f"{stem}.png")]


def write_index(results: Mapping[str, Measured], folder: str | Path) -> Path:
    """Write the page that shows figures, by name, with their claims and verdicts; its path."""
    head: list[str] = [*_HEAD]
    sections: list[str] = []
    for name, measured in results.items():
        figure = find(name)
        verdict = figure.verdict(measured)
        title = figure.title.replace("|", "\\|")
        head.append(f"| [{figure.source}](#{_anchor(figure)}) | {title} | {verdict.word} |")
        sections += _section(figure, measured.about, verdict.text, figure.alt(measured))
    return write_text(Path(folder) / INDEX, "\n".join([*head, *sections]) + "\n")


def results(figure: Figure, setting: Setting | None = None, folder: Path | None = None) -> Measured:
    """The committed numbers of a figure where they are of this setting, else freshly measured ones.

    Args:
        figure: whose numbers.
        setting: what on; the default setting is the one that the committed numbers are of.
        folder: of committed results; found above the working folder if not given.
    """
    folder = committed() if folder is None else folder
    if folder is not None and (setting is None or setting == Setting()):
        return Measured.load(folder / figure.name)
    return figure.measure(setting or Setting())


def committed() -> Path | None:
    """The repository's folder of results, where the working folder is in the repository."""
    here = Path.cwd()
    return next((up / COMMITTED for up in (here, *here.parents) if (up / COMMITTED).is_dir()), None)


@dataclass(frozen=True)
class Picture:
    """A drawn figure that notebooks display, with its text alternative."""

    png: bytes
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"image/png": self.png, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def show(figure: Figure, measured: Measured, style: Style = DEFAULT) -> Picture:
    """A figure for a notebook."""
    from attrib.plots.drawing import figure_png

    with applied(style):
        return Picture(
            figure_png(figure.drawn(measured, style), dpi=SCREEN_DPI), figure.alt(measured)
        )


def _section(figure: Figure, about: Mapping[str, Any], verdict: str, alt: str) -> list[str]:
    name = figure.name
    made = f"{about.get('model')} on {about.get('data')}, n = {about.get('n')}"
    return [
        "",
        f"## {figure.source}",
        "",
        f"{figure.title}: {made}.",
        "",
        f"![{_inside_brackets(alt)}]({name}.svg)",
        "",
        f"**Claim of the original.** {figure.claim}",
        "",
        f"**Verdict.** {verdict}",
        "",
        f"**In words.** {alt}",
        "",
        f"[PNG]({name}.png), [numbers](data/{name}/), [notebook](../notebooks/{name}.ipynb); made "
        f"by `{about.get('command')}`",
    ]


def _anchor(figure: Figure) -> str:
    return figure.source.lower().replace(",", "").replace(" ", "-")


def _inside_brackets(text: str) -> str:
    return " ".join(text.replace("[", "(").replace("]", ")").split())
