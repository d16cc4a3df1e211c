"""The forms of a report: HTML, Markdown and JSON. Text of datasets and models is escaped in all.

HTML is one file without network access, and without script unless it has heatmaps. It can be
printed, and has a light and a dark theme.
"""

import hashlib
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
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
    environment.filters |= {
        "shown": shown, "visible": visible, "data_uri": _data_uri, "nobreak": _nobreak,
    }  # fmt: skip
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
    parts += [f"**{_plain(page.headline)}**", *(_markdown(*leaf) for leaf in _leaves(page.lead))]
    for section in page.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_markdown(*leaf) for leaf in _leaves(section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def plain_sections(page: Page) -> list[dict[str, Any]]:
    """The sections for JSON: texts and tables, without pictures."""
    return [
        {
            "title": section.title,
            "blocks": [{"kind": kind, "content": some} for kind, some in _leaves(section.blocks)],
        }
        for section in page.sections
    ]


def finite(value: Any) -> Any:
    """The value as JSON can hold it: None for numbers that are not finite, tables as mappings."""
    if isinstance(value, Table):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _leaves(blocks: Iterable[Block]) -> Iterator[Block]:
    """Texts, lists and tables, also those inside details, figures and heatmaps."""
    for block in blocks:
        if block.kind == "details":
            yield from _leaves(block.content[1])
        elif block.kind == "figures":
            yield from (Block("table", one.table) for one in block.content.figures)
            yield Block("caption", block.content.caption)
        elif block.kind == "heatmaps":
            yield Block("text", "The pictures are in report.html.")
            yield Block("table", block.content.table)
        elif block.kind != "cards":
            yield block


def _markdown(kind: str, content: Any) -> str:
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
    return _markdown_table(content) if kind == "table" else _plain(content)


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


def _nobreak(text: str) -> str:
    """Text in which "75 %" stays on one line."""
    return re.sub(r"(?<=\d) %", "\u00a0%", text)


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
