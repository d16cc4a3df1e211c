"""The explorer as one HTML file, and inside a notebook."""

import hashlib
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from attrib import plots
from attrib.explorer.observe import Observation
from attrib.explorer.payload import packed
from attrib.explorer.questions import Asked
from attrib.files import versions, write_text

SCRIPTS = ("data.js", "dom.js", "charts.js", "picture.js", "panels.js", "side.js", "main.js")
HEIGHT = 860  # pixels of the frame in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Explorer:
    """A page about one question; a notebook shows it.

    Attributes:
        data: What the page shows, as JSON.
        sides: The numbers: of one model, of two, or of one before and after an edit.
        asked: Other questions and their answers on both sides.
    """

    data: dict[str, Any]
    sides: tuple[Observation, ...]
    asked: tuple[Asked, ...] = ()

    @property
    def html(self) -> str:
        """The whole page."""
        style, script = _asset("style.css"), "\n".join(map(_asset, SCRIPTS))
        script = f'(() => {{\n"use strict";\n{script}\n}})();\n'
        assert "</" not in script + style, "an end tag would end the script"
        digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
        package = versions()
        data = self.data | {
            "palette": plots.heatmap_palette(),
            "versions": {name: package[name] for name in ("attrib", "torch", "transformers")},
        }
        parts = {
            "@POLICY@": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            "@TITLE@": escape(f"{self.data['prompt']} - attrib explorer"),
            "@STYLE@": style,
            "@DATA@": packed(data),
            "@SCRIPT@": script,
        }
        page = _asset("page.html")
        # One marker after the other from a split: no text that is put in is searched again.
        for marker, text in parts.items():
            head, found, tail = page.rpartition(marker)
            assert found, marker
            page = f"{head}{text}{tail}"
        return page

    def save(self, path: str | Path) -> Path:
        """Write the page; the file needs no network and no other file."""
        return write_text(path, self.html)

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its script reaches nothing of the notebook's."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" title="attrib explorer" '
            f'allow="clipboard-write" style="width: 100%; height: {HEIGHT}px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        texts = [
            f"  {side['label']}: {self.sides[i].text!r}"
            for i, side in enumerate(self.data["sides"])
        ]
        return "\n".join([f"Explorer of {self.data['prompt']!r}", *texts])


def _asset(name: str) -> str:
    return files("attrib.explorer").joinpath("templates", name).read_text(encoding="utf-8")
