"""A study as one HTML file that needs nothing else: no script, no network, light or dark."""

import unicodedata
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attrib import plots
from attrib.files import write_text
from attrib.report import summaries
from attrib.report.demo_study import Study
from attrib.results import Result

LONGEST_TEXT = 400  # characters of one prompt or answer; the whole text is in the results
MOST_ROWS = 100  # of quarantined rows; all of them are in quarantined.csv


def write_page(study: Study, path: str | Path) -> Path:
    """Write the study to `path` as one HTML file; the path."""
    return write_text(path, render(study))


def render(study: Study) -> str:
    """The study as HTML."""
    results = study.results
    return (
        environment()
        .get_template("first.html.j2")
        .render(
            study=study,
            finding=summaries.summarize_demo(results["contributions"], results["wrong_key"]),
            contributions=summaries.summarize_contributions(
                results["contributions"], "the answer token"
            ),
            control=summaries.summarize_control(results["contributions"], results["wrong_key"]),
            attention=summaries.summarize_attention(results["attention"]),
            answers=summaries.summarize_answers(results["answers"]),
            contribution_figures=_contribution_figures(
                results["contributions"], results["wrong_key"]
            ),
            attention_figures=_attention_figures(results["attention"]),
            examples=results["contributions"].examples,
            most_rows=MOST_ROWS,
        )
    )


def _contribution_figures(right: Result, wrong: Result) -> list[dict[str, Any]]:
    left = plots.contributions(right, _axes(), title="Key: the model's own answer")
    control = plots.contributions(wrong, _axes(), title="Control: an unrelated answer")
    plots.share_scale(left, control)
    columns = {"attn": "attention", "mlp": "MLP"}
    return [
        {"svg": Markup(plots.svg(ax, target="page", prefix=prefix)), "table": _table(r, columns)}
        for ax, prefix, r in ((left, "right-", right), (control, "wrong-", wrong))
    ]


def _attention_figures(result: Result) -> list[dict[str, Any]]:
    quantities = {
        "token": {
            "text_mean": "text, mean",
            "visual_mean": "visual, mean",
            "visual_top3": "top-3 visual",
        },
        "share": {"text_sum": "all text", "visual_sum": "all visual", "bos": "BOS"},
    }
    drawings = {
        "token": plots.attention(result, _axes(), quantity="token"),
        "share": plots.attention(result, _axes(), quantity="share"),
    }
    return [
        {
            "svg": Markup(plots.svg(drawings[name], target="page", prefix=f"{name}-")),
            "table": _table(result, columns),
        }
        for name, columns in quantities.items()
    ]


def _axes() -> Any:
    # Small figures, so that their text is still legible on a telephone.
    return plots.new_axes(4.4, 3.1)


def _table(result: Result, columns: dict[str, str]) -> dict[str, Any]:
    """Layers down, groups across: mean and interval, as text."""
    (group,) = set(result.frame.columns) & {"module", "statistic"}
    means = result.mean(["layer", group]).set_index(["layer", group])
    layers = sorted({layer for layer, _ in means.index})
    cells = [[interval(means.loc[(layer, name)]) for name in columns] for layer in layers]
    return {"columns": list(columns.values()), "rows": list(zip(layers, cells, strict=True))}


def interval(row: Any) -> str:
    """A mean with the ends of its interval, as text."""
    if not np.isfinite(row["mean"]):
        return "none"
    if not np.isfinite(row["low"]):
        return f"{row['mean']:.3g}"
    return f"{row['mean']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def environment() -> Environment:
    """Templates in which every value is text, whatever it holds, and none is left out."""
    made = Environment(
        loader=PackageLoader("attrib.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"shown": shown, "visible": visible, "data_uri": _data_uri, "flat": flat}
    return made


def shown(text: str) -> str:
    """Text that may be anything, made safe to look at: not endless, and nothing invisible in it.

    Control and formatting characters (zero-width, right-to-left override, ...) become their code,
    so that what is read is what is there.
    """
    return visible(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ...")


def visible(text: str) -> str:
    """Text of any length with nothing invisible in it, as `shown` has it."""
    return "".join(c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in text)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def flat(value: Any, name: str = "") -> Sequence[tuple[str, str]]:
    """Nested provenance as (dotted name, text) pairs; what is not set is left out."""
    if isinstance(value, dict):
        return [
            pair
            for key, inner in value.items()
            for pair in flat(inner, f"{name}.{key}" if name else str(key))
        ]
    return [] if value is None else [(name, str(value))]
