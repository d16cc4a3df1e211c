"""The comparison of editors on one model and dataset, beside published rows, in four formats."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from attrib.files import write_text
from attrib.results import Result
from editors.evaluation.paired import differences
from editors.evaluation.tables import (
    COST_NAMES,
    COST_NOTE,
    FLUENCY,
    costs,
    markdown_parts,
    markdown_text,
    score_tables,
    summary,
)

REFERENCE, SHOWN = "dualedit", "avg"  # what differences are shown from, and of which metric
PUBLISHED = Path(__file__).with_name("published.csv")
DATASETS = {"scenes-vqa": "E-VQA", "scenes-captions": "E-IC"}
# VisEdit copied rows that were measured by EasyEdit's definitions, on other prompts and images.
PUBLISHED_PROTOCOLS = {
    "paper": "paper",
    "easyedit": "easyedit: not comparable with the others",
}
SCORES = {"rel": "Rel", "t_gen": "T-Gen", "v_gen": "V-Gen", "t_loc": "T-Loc", "m_loc": "M-Loc"}
COLUMNS = ["editor", *SCORES.values(), "Avg", "protocol", "source", "note"]
FITTED = r"\begin{adjustbox}{max width=\linewidth}"
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border: 0; }
:is(th, td):nth-child(-n + 2) { text-align: left; white-space: nowrap; }
thead th { border-bottom: 1px solid; }
tbody tr:nth-child(even) { background: rgb(128 128 128 / .1); }
"""


@dataclass(frozen=True)
class Trained:
    """The training of one editor.

    Attributes:
        editor: Its name.
        seed: Its seed.
        seconds: Duration.
        curve: Validation numbers, each record with its step.
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
        trainings: Trainings of the trained editors, one per seed.
        command: The command that made it.
        cpu_seconds: CPU time of preparing, training and scoring by editor, summed over seeds, where
            known.
    """

    model: str
    data: str
    results: Sequence[Result]
    trainings: Sequence[Trained]
    command: str
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)

    def parts(self) -> list[tuple[str, pd.DataFrame, str]]:
        """Title, table and note of each part: one per protocol, costs, published rows."""
        parts = score_tables(self._scores)
        parts += self._against()
        parts.append(("Costs of an edit (medians) and of training", self._costs(), COST_NOTE))
        rows = published(self.model, self.data)
        if len(rows):
            parts.append(("As published, on the real models and data", rows, ""))
        return parts

    def save(self, folder: str | Path) -> list[Path]:
        """Write `table.md`, `.tex`, `.html`, `scores.csv`, `costs.csv` and `learning.csv`."""
        texts = {
            "table.md": self.markdown(),
            "table.tex": self.latex(),
            "table.html": self.html(),
            "scores.csv": self._scores.to_csv(index=False),
            "costs.csv": self._costs().to_csv(index=False),
        }
        if len(self._differences):
            texts["differences.csv"] = self._differences.to_csv(index=False)
        curves = self.curves()
        if len(curves):
            texts["learning.csv"] = curves.to_csv(index=False)
        return [write_text(Path(folder) / name, text) for name, text in texts.items()]

    def curves(self) -> pd.DataFrame:
        """Validation curves: editor, seed, step, name, value; empty if no editor was trained."""
        rows = [
            {"editor": one.editor, "seed": one.seed, "step": seen["step"], "name": k, "value": v}
            for one in self.trainings
            for seen in one.curve
            for k, v in seen.items()
            if k != "step"
        ]
        return pd.DataFrame(rows)

    def markdown(self) -> str:
        """The comparison in Markdown."""
        head = f"# {markdown_text(self.model)}, {markdown_text(self.data)}\n\n    {self.command}"
        return f"{head}\n\n{markdown_parts(self.parts(), '##')}\n"

    def latex(self) -> str:
        """The comparison in LaTeX, no table wider than the text."""
        parts = [f"% {self.command}", "% needs the packages booktabs and adjustbox"]
        for title, table, note in self.parts():
            caption = f"{self.model}, {self.data}. {title}. {note}".strip()
            caption = "".join(f"\\{sign}" if sign in "&%$#_{}" else sign for sign in caption)
            text = table.to_latex(index=False, escape=True, caption=caption)
            text = text.replace(r"\begin{tabular}", FITTED + r"\begin{tabular}")
            parts.append(text.replace(r"\end{tabular}", r"\end{tabular}\end{adjustbox}"))
        return "\n".join(parts)

    def html(self) -> str:
        """The comparison as an HTML page; all names are escaped."""
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

    @cached_property
    def _scores(self) -> pd.DataFrame:
        """The summary, whose intervals take a moment: every format shows it."""
        return summary(self.results)

    @cached_property
    def _differences(self) -> pd.DataFrame:
        """All paired differences of editors on the same edits."""
        return differences(self.results)

    def _against(self) -> list[tuple[str, pd.DataFrame, str]]:
        """The differences of the average from one editor, in words, and how they were tested."""
        table = self._differences
        if table.empty or SHOWN not in set(table["metric"]):
            return []
        base = REFERENCE if REFERENCE in {*table["editor"], *table["other"]} else table["other"][0]
        is_pair = (table["editor"] == base) != (table["other"] == base)
        own = table.loc[(table["metric"] == SHOWN) & is_pair]
        if own.empty:  # one editor, as it is and behind its gate
            return []
        rows = []
        for row in own.to_dict("records"):
            sides = [(row["editor"], row["gate"]), (row["other"], row["other_gate"])]
            sign = 1 if row["other"] == base else -1
            (one, gate), (_, base_gate) = sides if sign > 0 else sides[::-1]
            ends = sorted((sign * row["low"], sign * row["high"]))
            rows.append(
                {
                    "editor": one, "gate": gate, f"{base}'s gate": base_gate,
                    "protocol": row["protocol"],
                    f"Avg minus {base}'s": f"{sign * row['difference']:+.1f} "
                    f"[{ends[0]:+.1f}, {ends[1]:+.1f}]",
                    "p": f"{row['p']:.3f}", "p, Holm": f"{row['p_holm']:.3f}",
                }
            )  # fmt: skip
        note = (
            f"Bootstrap over facts and seeds, the same edits for both; p-values by Holm's method "
            f"over all {len(table)} comparisons of pairs, protocols and metrics "
            "(`differences.csv`)."
        )
        return [("Paired differences", pd.DataFrame(rows), note)]

    def _costs(self) -> pd.DataFrame:
        spent: list[dict[str, Any]] = costs(self.results).to_dict("records")
        seconds: dict[str, list[float]] = {}
        for one in self.trainings:
            seconds.setdefault(one.editor, []).append(one.seconds)
        cpu = {name: f"{total / 60:.1f}" for name, total in self.cpu_seconds.items()}
        return pd.DataFrame(
            {
                "editor": row["editor"],
                "gate": row["gate"],
                "training, s": f"{median(seconds.get(row['editor'], [0.0])):,.0f}",
                "edit, ms": f"{row['edit_ms']:,.1f}",
                "bytes stored": f"{row['bytes']:,.0f}",
                "pass with the edit / without": f"{row['latency']:.2f}",
                "peak MiB of an edit": _mib(row.get("peak_bytes")),
                **{COST_NAMES[name]: f"{row[name]:.2f}" for name in FLUENCY if name in row},
                "CPU in all, min": cpu.get(row["editor"], "-"),
            }
            for row in spent
        )


def _mib(size: float | None) -> str:
    return "-" if size is None or pd.isna(size) else f"{size / 2**20:,.1f}"


def published(backbone: str, data: str) -> pd.DataFrame:
    """Published rows for comparison: VisEdit's Tables 1 and 6, DualEdit's Table 2.

    Args:
        backbone: A model whose name contains "blip2", "llava" or "minigpt4".
        data: An embedded dataset, or E-VQA or E-IC.

    Returns:
        One row per editor: the five scores and their mean in per cent, the protocol, the paper and
        a note. Empty for a model family or dataset without published rows.
    """
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == DATASETS.get(data, data)]
    return pd.DataFrame(
        [_published_row(row) for row in rows if row["backbone"] in backbone.lower()],
        columns=COLUMNS,
    )


def _published_row(row: dict[str, str]) -> dict[str, object]:
    scores = {name: float(row[key]) for key, name in SCORES.items()}
    return {
        "editor": row["editor"], **scores, "Avg": round(sum(scores.values()) / len(scores), 2),
        "protocol": PUBLISHED_PROTOCOLS[row["protocol"]], "source": row["source"],
        "note": row["note"],
    }  # fmt: skip
