"""Write figures as files, list them on a page, and show them in notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attrib.files import atomic_write, write_text
from figures.figure import Figure, Measured, Setting, Verdict, find
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
    "`../notebooks/`. *Published* is what the paper states of its models of 2.7 and 7 billion",
    "parameters, which were not run here. A verdict says whether that holds in the model and data",
    "named beside it (in the column *Verdict* those of the figure's section) and is computed from",
    "the numbers.",
    "",
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


def write_index(
    results: Mapping[str, Measured],
    folder: str | Path,
    others: Mapping[str, Mapping[str, Measured]] | None = None,
) -> Path:
    """Write the page with figures by name, their claims and verdicts, and return its path.

    Args:
        results: The numbers of each figure.
        folder: Folder of the page and of the pictures.
        others: By model, the numbers of the figures that were measured on it too; their pictures
            are in the subfolder of its name.
    """
    others = others or {}
    columns = ["Figure", "Shows", "Published", "Verdict", *(f"on {model}" for model in others)]
    head: list[str] = [*_HEAD, _row(columns), _row(["---"] * len(columns))]
    sections: list[str] = []
    for name, measured in results.items():
        figure = find(name)
        verdict, also = figure.verdict(measured), _verdicts(figure, others)
        title = figure.title.replace("|", "\\|")
        words = [also[model].word if model in also else "not measured" for model in others]
        link = f"[{figure.source}](#{_anchor(figure)})"
        head.append(_row([link, title, figure.published, verdict.word, *words]))
        sections += _section(figure, measured.about, verdict.text, figure.alt(measured))
        for model, found in also.items():
            sections += _other_model(figure, model, others[model][name].about, found.text)
    return write_text(Path(folder) / INDEX, "\n".join([*head, *sections]) + "\n")


def other_models(folder: str | Path) -> dict[str, dict[str, Measured]]:
    """Numbers in `MODEL/data/NAME` below a folder of figures: by model and figure."""
    found: dict[str, dict[str, Measured]] = {}
    for about in sorted(Path(folder).glob("*/data/*/about.json")):
        name, model = about.parent.name, about.parents[2].name
        found.setdefault(model, {})[name] = Measured.load(about.parent)
    return found


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


def _verdicts(figure: Figure, others: Mapping[str, Mapping[str, Measured]]) -> dict[str, Verdict]:
    return {
        model: figure.verdict(found[figure.name])
        for model, found in others.items()
        if figure.name in found
    }


def _other_model(figure: Figure, model: str, about: Mapping[str, Any], verdict: str) -> list[str]:
    stem = f"{model}/{figure.name}"
    return [
        "",
        f"**On {model}** (n = {about.get('n')}): {verdict}",
        "",
        f"[SVG]({stem}.svg), [PNG]({stem}.png), [numbers]({model}/data/{figure.name}/); measured "
        f"by `{about.get('command')}`",
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _anchor(figure: Figure) -> str:
    return figure.source.lower().replace(",", "").replace(" ", "-")


def _without_brackets(text: str) -> str:
    return " ".join(text.replace("[", "(").replace("]", ")").split())
