"""The forms of a report: HTML, Markdown and JSON. Text of datasets and models is escaped in all.

HTML is one file without network access, and without script unless it has heatmaps. It can be
printed, and has a light and a dark theme.
"""

import hashlib
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attrib import plots
from attrib.report.page import Block, Page, Table, shown, visible

MARKDOWN = re.compile(r"([\\`*_\[\]{}|#!~$])")


def render_html(page: Page) -> str:
    """The page as one HTML file."""
    script = files("attrib.report").joinpath("templates", "slider.js").read_text(encoding="utf-8")
    assert "</" not in script, "an end tag would end the script"
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=PackageLoader("attrib.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "visible": visible, "data_uri": _data_uri}
    has_heatmaps = any(block.kind == "heatmaps" for part in page.sections for block in part.blocks)
    return environment.get_template("page.html.j2").render(
        page=page,
        script=Markup(script) if has_heatmaps else "",
        policy=f" script-src 'sha256-{digest}';" if has_heatmaps else "",
        scale=plots.heatmap_scale_png(),
        place=_place,
    )


def render_markdown(page: Page) -> str:
    """The page as Markdown; no prompt, name or file name can become markup."""
    parts = [f"# {_plain(page.title)}", f"**{_plain(page.badge)}**" if page.badge else ""]
    parts += [f"**{_plain(page.headline)}**", *map(_markdown, page.lead)]
    for section in page.sections:
        parts += [f"## {_plain(section.title)}", *map(_markdown, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain_sections(page: Page) -> list[dict[str, Any]]:
    """The sections as JSON can hold them, without pictures."""
    return [
        {"title": section.title, "blocks": [one for b in section.blocks for one in _json(b)]}
        for section in page.sections
    ]


def finite(value: Any) -> Any:
    """The value with None for numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(block: Block) -> list[dict[str, Any]]:
    if block.kind == "details":
        return [one for inner in block.content[1] for one in _json(inner)]
    if block.kind == "table":
        return [{"kind": "table", "content": block.content._asdict()}]
    if block.kind == "figures":
        return [{"kind": "table", "content": one.table._asdict()} for one in block.content]
    if block.kind == "heatmaps":
        return [{"kind": "table", "content": block.content.table._asdict()}]
    return [] if block.kind == "cards" else [block._asdict()]


def _markdown(block: Block) -> str:
    kind, content = block
    if kind in ("text", "caption"):
        return _plain(content)
    if kind == "heading":
        return f"### {_plain(content)}"
    if kind == "list":
        return "\n".join(f"- {_plain(line)}" for line in content)
    if kind == "terms":
        return "\n".join(f"- {_plain(name)}: {_plain(text)}" for name, text in content.items())
    if kind == "commands":
        return "\n\n".join(
            f"{_plain(purpose)}:\n\n" + "\n".join(f"    {visible(line)}" for line in lines)
            for purpose, lines in content.items()
        )
    if kind == "details":
        return "\n\n".join(_markdown(inner) for inner in content[1])
    if kind == "figures":
        return "\n\n".join(_markdown_table(one.table) for one in content)
    if kind == "heatmaps":
        return f"The pictures are in report.html.\n\n{_markdown_table(content.table)}"
    return _markdown_table(content) if kind == "table" else ""


def _markdown_table(table: Table) -> str:
    lines = [[table.head, *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[str(name), *cells] for name, cells in table.rows]
    marked = {str(name) for name in table.chosen}
    texts = [[cell if cell == "---" else _plain(cell) for cell in cells] for cells in lines]
    texts = [[f"**{c[0]}**" if c[0] in marked else c[0], *c[1:]] for c in texts]
    title = f"**{_plain(table.title)}**\n\n" if table.title else ""
    return title + "\n".join(f"| {' | '.join(cells)} |" for cells in texts)


def _plain(text: str) -> str:
    """Text that Markdown, and HTML inside of it, leave as it is."""
    return MARKDOWN.sub(r"\\\1", escape(visible(text), quote=False))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _place(
    frame: tuple[float, float, float, float], left: float, top: float, right: float, bottom: float
) -> str:
    """A box inside a frame (left, top, width, height) as CSS."""
    x, y, width, height = frame
    values = {
        "left": (left - x) / width, "top": (top - y) / height,
        "width": (right - left) / width, "height": (bottom - top) / height,
    }  # fmt: skip
    return ";".join(f"{name}:{100 * value:.4g}%" for name, value in values.items())
