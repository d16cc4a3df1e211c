"""The table that compares editors on one model and dataset, in four formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from attrib.files import write_text
from attrib.results import Result
from editors.evaluation.published import published
from editors.evaluation.tables import NAMES, NOTE, costs, summary

PROTOCOLS = {
    "paper": "Protocol paper: teacher-forced token accuracy (the papers' program)",
    "exact": "Protocol exact: all tokens at once, teacher-forced",
    "generate": "Protocol generate: greedy decoding from the prompt alone",
    "easyedit": "Protocol easyedit: EasyEdit's definitions",
}
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border: 0; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
thead th { border-bottom: 1px solid; }
tbody tr:nth-child(even) { background: rgb(128 128 128 / .1); }
"""


@dataclass(frozen=True)
class Trained:
    """How the training of one editor went.

    Attributes:
        editor: Its name.
        seed: Its seed.
        seconds: That it took.
        curve: Numbers on held-out edits, with the step they were seen at.
    """

    editor: str
    seed: int
    seconds: float
    curve: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Editors on one model and dataset.

    Attributes:
        model: Its name.
        data: The dataset's name.
        results: Scores of each editor, one per seed.
        trainings: Of the editors that are trained, one per seed.
        command: What made it.
        cpu_seconds: That preparing, training and scoring an editor took, all seeds together; of
            those of which it is known.
    """

    model: str
    data: str
    results: Sequence[Result]
    trainings: Sequence[Trained]
    command: str
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)

    def parts(self) -> list[tuple[str, pd.DataFrame, str]]:
        """Title, table and note of each: one per protocol, the costs, what is published."""
        scores: list[dict[str, Any]] = summary(self.results).to_dict("records")
        made = []
        for protocol in dict.fromkeys(row["protocol"] for row in scores):
            some = [row for row in scores if row["protocol"] == protocol]
            made.append((PROTOCOLS[protocol], _wide(some), _note(some)))
        made.append(("Costs of an edit (medians) and of training", self._costs(), ""))
        there = published(self.model, self.data)
        if len(there):
            made.append(("As published, on the real models and data", there, ""))
        return made

    def save(self, folder: str | Path) -> list[Path]:
        """Write `table.md`, `.tex`, `.html`, `scores.csv`, `costs.csv` and `learning.csv`."""
        folder = Path(folder)
        scores = summary(self.results).to_csv(index=False)
        written = [
            write_text(folder / "table.md", self.markdown()),
            write_text(folder / "table.tex", self.latex()),
            write_text(folder / "table.html", self.html()),
            write_text(folder / "scores.csv", scores),
            write_text(folder / "costs.csv", self._costs().to_csv(index=False)),
        ]
        curves = self.curves()
        if len(curves):
            written.append(write_text(folder / "learning.csv", curves.to_csv(index=False)))
        return written

    def curves(self) -> pd.DataFrame:
        """Numbers on held-out edits: editor, seed, step, name, value; empty if none is trained."""
        rows = [
            {"editor": one.editor, "seed": one.seed, "step": seen["step"], "name": k, "value": v}
            for one in self.trainings
            for seen in one.curve
            for k, v in seen.items()
            if k != "step"
        ]
        return pd.DataFrame(rows)

    def markdown(self) -> str:
        """For a README."""
        parts = [f"# {_cell_text(self.model)}, {_cell_text(self.data)}", f"    {self.command}"]
        for title, table, note in self.parts():
            rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
            lines = "\n".join(f"| {' | '.join(map(_cell_text, row))} |" for row in rows)
            parts += [f"## {title}", lines, *([note] if note else [])]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        """For a paper; needs the package booktabs."""
        parts = [f"% {self.command}"]
        for title, table, note in self.parts():
            caption = _escaped(f"{self.model}, {self.data}. {title}. {note}".strip())
            parts.append(table.to_latex(index=False, escape=True, caption=caption))
        return "\n".join(parts)

    def html(self) -> str:
        """A page of its own; everything in it is escaped."""
        title = escape(f"{self.model}, {self.data}")
        parts = [f"<h1>{title}</h1><p><code>{escape(self.command)}</code></p>"]
        for name, table, note in self.parts():
            body = table.to_html(index=False, escape=True, border=0)
            parts.append(
                f"<h2>{escape(name)}</h2><div class=wide>{body}</div><p>{escape(note)}</p>"
            )
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        page = f"<!doctype html><html lang=en><head>{head}<title>{title}</title>"
        return f"{page}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"

    def _costs(self) -> pd.DataFrame:
        spent: list[dict[str, Any]] = costs(self.results).to_dict("records")
        seconds = {
            name: median(one.seconds for one in self.trainings if one.editor == name)
            for name in {one.editor for one in self.trainings}
        }
        return pd.DataFrame(
            {
                "editor": row["editor"],
                "gate": row["gate"],
                "training, s": f"{seconds.get(row['editor'], 0.0):,.0f}",
                "edit, ms": f"{row['edit_ms']:,.1f}",
                "bytes stored": f"{row['bytes']:,.0f}",
                "pass with the edit / without": f"{row['latency']:.2f}",
                "CPU in all, min": self._cpu(str(row["editor"])),
            }
            for row in spent
        )

    def _cpu(self, editor: str) -> str:
        """Minutes of preparing, training and scoring."""
        return f"{self.cpu_seconds[editor] / 60:.1f}" if editor in self.cpu_seconds else "-"


def _wide(scores: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per editor, a column per metric, mean and interval in each cell."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in scores:
        names = {"editor": row["editor"], "gate": row["gate"]}
        cells = rows.setdefault((row["editor"], row["gate"]), names)
        cells[str(NAMES.get(row["metric"], row["metric"]))] = _cell(row)
    return pd.DataFrame(list(rows.values())).fillna("")


def _cell(row: Mapping[str, Any]) -> str:
    spread = f" ±{row['spread']:.1f}" if row["runs"] > 1 else ""
    return f"{row['mean']:.1f}{spread} [{row['low']:.1f}, {row['high']:.1f}]"


def _cell_text(cell: object) -> str:
    return escape(str(cell), quote=False).replace("|", "\\|")


def _note(scores: Sequence[Mapping[str, Any]]) -> str:
    """What the numbers are, in a sentence or two."""
    counts = sorted({int(row["n"]) for row in scores})
    n = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    runs = max(int(row["runs"]) for row in scores)
    seeds = f"Up to {runs} seeds; ± is the standard deviation of their means."
    return f"{NOTE.format(n=n)} {seeds if runs > 1 else 'One seed.'}"


def _escaped(text: str) -> str:
    """A caption as LaTeX prints it."""
    return "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in text)
