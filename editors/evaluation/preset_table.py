"""The presets of all editors as tables of Markdown: what each sets, and where it still differs.

`python -m editors.evaluation.preset_table` writes them into `docs/editors.md`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from attrib.files import write_text
from editors.evaluation.tables import markdown_parts
from editors.registry import EDITORS
from editors.training.presets import Preset

PAGE = Path("docs/editors.md")
START, END = "<!-- presets: generated -->\n", "\n<!-- end of presets -->"


def all_presets() -> Iterator[tuple[str, str, Preset]]:
    """Every preset with its name and the names of its editors."""
    editors: dict[str, Any] = {**EDITORS}  # the protocol of an editor asks for no presets
    known = [(n, name, p) for n, e in editors.items() for name, p in e.config_class.presets.items()]
    for editor, name, preset in known:
        of = [n for n, other, p in known if other == name and p == preset]
        if of[0] == editor:
            yield name, ", ".join(of), preset


def preset_table() -> str:
    """The tables: source and options of each preset, and its deviations one by one."""
    presets = list(all_presets())
    options = [
        {
            "preset": f"`{name}`",
            "editor": of,
            "source": preset.source,
            "sets": ", ".join(f"`{k}={_shown(v)}`" for k, v in preset.options.items()) or "-",
        }
        for name, of, preset in presets
    ]
    deviations = [
        {"preset": f"`{name}`", "editor": of, "what": topic, "here": here}
        for name, of, preset in presets
        for topic, here in preset.deviations.items()
    ]
    parts = [
        ("Presets", pd.DataFrame(options), "Options that are not named have their defaults."),
        ("Deviations from the sources", pd.DataFrame(deviations), ""),
    ]
    return markdown_parts(parts, "###")


def with_table(page: str) -> str:
    """A page with the tables between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{preset_table()}{END}{after}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
