"""The report on layers as one HTML file that needs nothing else, as Markdown and as JSON."""

import hashlib
import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attrib import plots
from attrib.files import write_text
from attrib.report.content import chosen_for, content_of
from attrib.report.evidence import Table
from attrib.report.layer_study import LayerStudy
from attrib.report.page import MOST_ROWS, environment, flat, visible

LAYOUT = "attrib report 1"
TEXTS = ("partial", "headline", "sureness", "meaning", "why", "selection", "rule_said", "caveats",
         "agreement", "grid_said", "missing", "commands", "meanings")  # fmt: skip
TABLES = ("rule_tables", "regret_tables", "runs_table", "told_table", "heat_table")
MEANT = re.compile(r"([\\`*_\[\]{}|#!~$])")  # what Markdown would read as its own


def write_layer_report(study: LayerStudy, out: Path) -> list[Path]:
    """Write report.html, report.md and report.json into a folder, and layers.json; their paths."""
    content = content_of(study)
    return [
        write_text(out / "report.html", render_html(study, content)),
        write_text(out / "report.md", render_markdown(study, content)),
        write_text(out / "report.json", render_json(study, content)),
        study.report.save(out / "layers.json"),
    ]


def render_html(study: LayerStudy, content: dict[str, Any] | None = None) -> str:
    """The report as HTML: works from a file, with and without script, light, dark and printed.

    Args:
        study: what to show.
        content: of `content_of`, where it was made already.
    """
    script = _script()
    template = environment().get_template("layers.html.j2")
    return template.render(
        **(content or content_of(study)),
        script=Markup(script),
        script_digest=digest_of(script),
        scale=plots.heatmap_scale_png(),
        place=_place,
        chosen_for=partial(chosen_for, study),
        most_rows=MOST_ROWS,
    )


def render_markdown(study: LayerStudy, content: dict[str, Any] | None = None) -> str:
    """The report as Markdown; no prompt, name or file name can become markup."""
    made = Environment(
        loader=PackageLoader("attrib.report"),
        autoescape=False,  # `finalize` makes all values plain text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    made.filters |= {"flat": flat, "code": _code, "table": _table}
    said = content or content_of(study)
    text = made.get_template("layers.md.j2").render(**said, most_rows=MOST_ROWS)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def render_json(study: LayerStudy, content: dict[str, Any] | None = None) -> str:
    """The report as JSON: what the other forms say and show, without the pictures."""
    content = content or content_of(study)
    plain = {
        "layout": LAYOUT,
        "layers": dict(study.report.layers),
        "rule": study.report.rule,
        "num_layers": study.report.num_layers,
        **{name: content[name] for name in TEXTS},
        "evidence": [
            {"title": part.title, "said": part.said, "tables": [f.table for f in part.figures]}
            for part in content["parts"]
        ],
        "scores": [figure.table for figure in content["scores"]],
        **{name: content[name] for name in TABLES},
        "curves": study.evidence.to_dict("records"),
        "regret": {k: t.to_dict("records") for k, t in study.judged.tables.items()}
        if study.judged
        else None,
        "samples": [{"name": name, "prompt": prompt} for name, prompt in content["samples"]],
        "quarantined": [vars(row) for row in study.quarantined],
        "provenance": dict(study.report.provenance),
    }
    return json.dumps(_finite(plain), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def digest_of(script: str) -> str:
    """A script as a content policy names it: this one and no other may run."""
    return f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _script() -> str:
    source = files("attrib.report").joinpath("templates", "layers.js").read_text(encoding="utf-8")
    assert "</" not in source, "an end tag would end the script"
    return source


def _place(
    frame: tuple[float, float, float, float], left: float, top: float, right: float, bottom: float
) -> str:
    """Where a box lies in a frame (left, top, width, height), as style."""
    x, y, width, height = frame
    values = {
        "left": (left - x) / width, "top": (top - y) / height,
        "width": (right - left) / width, "height": (bottom - top) / height,
    }  # fmt: skip
    return ";".join(f"{name}:{100 * value:.4g}%" for name, value in values.items())


def _plain(value: Any) -> Any:
    """Text that Markdown, and HTML inside of it, leave as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return MEANT.sub(r"\\\1", escape(visible(value), quote=False))


def _code(line: str) -> Markup:
    """A line of an indented block, in which nothing is markup."""
    return Markup("    " + visible(line))


def _table(table: Table) -> Markup:
    """A table as Markdown, with its title; the chosen rows are bold."""
    chosen = table.get("chosen", ())
    lines = [f"**{_plain(table['title'])}**", ""]
    lines.append(_line([table.get("head", "layer"), *table["columns"]]))
    lines.append(_line(["---"] * (1 + len(table["columns"])), plain=str))
    for name, cells in table["rows"]:
        first = f"**{_plain(str(name))}**" if name in chosen else _plain(str(name))
        lines.append(_line([Markup(first), *cells]))
    return Markup("\n".join(lines) + "\n\n")


def _line(cells: Sequence[str], plain: Callable[[str], str] | None = None) -> str:
    return f"| {' | '.join((plain or _plain)(cell) for cell in cells)} |"


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
