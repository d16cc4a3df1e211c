"""Tables of scores: one per protocol, a row per editor, the unedited model's always among them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attrib.errors import AttribError
from attrib.files import write_text
from attrib.results import Result
from editors.evaluation.metrics import COST, METRICS, NO_GATE, UNEDITED
from editors.evaluation.protocols import PROTOCOLS

NAMES = {
    "rel": "Rel",
    "t_gen": "T-Gen",
    "v_gen": "V-Gen",
    "t_loc": "T-Loc",
    "m_loc": "M-Loc",
    "avg": "Avg",
    "same_image_same_kind": "same image, same kind",
    "same_image_other_kind": "same image, other kind",
    "same_image": "same image, other question",
    "same_question_other_image": "same question, other image",
    "hard_locality": "hard locality",
}
KEYS = ["editor", "gate"]
COSTS = ["edit_ms", "bytes", "pass_ms", "edited_pass_ms"]
SHOWN = 8  # letters of a fingerprint
LARGE = 10_000  # from here on without digits behind the point
NOTE = "In per cent, with 95 % bootstrap intervals over {n} edits."


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """Mean scores in per cent, of every editor and of the unedited model.

    Results of one editor and gate are runs with different seeds: each edit counts with its mean
    over them.

    Returns:
        One row per editor, protocol and metric: editor, gate, protocol, metric, mean, low and high
        (a 95 % bootstrap interval over edits), n (edits), runs, and spread, the standard deviation
        of the runs' own means (NaN for one run).

    Raises:
        AttribError: There is nothing, or results are of different models or data.
    """
    scores = _together(results)
    by = [*KEYS, "protocol", "metric"]
    rows: list[dict[str, Any]] = scores.mean(by).to_dict("records")
    for row in rows:
        row.update({name: 100 * row[name] for name in ("mean", "low", "high")})
        row["runs"], row["spread"] = _spread(results, {name: row[name] for name in by})
    return pd.DataFrame(sorted(rows, key=_order(results)))


def costs(results: Sequence[Result]) -> pd.DataFrame:
    """What edits cost: medians over edits, a row per editor.

    Returns:
        editor, gate, edit_ms, bytes, pass_ms, edited_pass_ms, and latency: the median over edits
        of the time of a pass with the edit as a multiple of the time without.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        for editor, gate, metric, value in _records(result.where(protocol=COST)):
            found.setdefault((editor, gate), {}).setdefault(metric, []).append(value)
    rows = []
    for key, of in found.items():
        ratios = np.divide(of["edited_pass_ms"], of["pass_ms"])  # rows of one edit are in order
        medians = {metric: float(np.median(of[metric])) for metric in COSTS}
        rows.append(dict(zip(KEYS, key, strict=True)) | medians | {"latency": np.median(ratios)})
    return pd.DataFrame(rows, columns=[*KEYS, *COSTS, "latency"])


def markdown(results: Sequence[Result]) -> str:
    """The tables of `summary` and `costs` for people: one for each protocol."""
    rows: list[dict[str, Any]] = summary(results).to_dict("records")
    parts = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        some = [row for row in rows if row["protocol"] == protocol]
        note = NOTE.format(n=_range([row["n"] for row in some]))
        parts += [f"### Protocol: {protocol}", _table(some), note]
    spent = costs(results)
    lines = [[_plain(cell) for cell in row] for row in spent.itertuples(index=False)]
    head = [_COST_NAMES.get(str(name), str(name)) for name in spent.columns]
    return "\n\n".join([*parts, "### Cost of an edit (medians)", _rendered(head, lines)]) + "\n"


def save_tables(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Write `summary.csv`, `costs.csv` and `summary.md` into a folder."""
    folder = Path(folder)
    return [
        write_text(folder / "summary.csv", summary(results).to_csv(index=False)),
        write_text(folder / "costs.csv", costs(results).to_csv(index=False)),
        write_text(folder / "summary.md", markdown(results)),
    ]


_COST_NAMES = {
    "edit_ms": "edit, ms",
    "bytes": "bytes stored",
    "pass_ms": "a pass, ms",
    "edited_pass_ms": "with the edit, ms",
    "latency": "ratio",
}


def _together(results: Sequence[Result]) -> Result:
    """All scores as one result, which keeps what the results have in common."""
    if not results:
        raise AttribError("no scores to tabulate: give the results of editors.evaluate")
    for what in ("model", "data"):
        found = {_identity(result, what) for result in results}
        if len(found) > 1:
            raise AttribError(
                f"scores of different {what} do not belong into one table: "
                f"{' and '.join(sorted(found))}"
            )
    frame = pd.concat([result.frame for result in results], ignore_index=True)
    frame = frame.loc[np.asarray(frame["protocol"] != COST)]
    return Result(results[0].analysis, frame, {"seed": results[0].seed})


def _identity(result: Result, what: str) -> str:
    """Which model, or data, the scores are of, in words."""
    made = result.provenance[what]
    parts = (made["name"], made.get("split"), (made.get("fingerprint") or "")[:SHOWN])
    return " ".join(part for part in parts if part)


def _records(result: Result) -> list[tuple[str, str, str, float]]:
    """Editor, gate, metric and value of each row."""
    columns = [result.frame[name].tolist() for name in (*KEYS, "metric", "value")]
    return list(zip(*columns, strict=True))


def _spread(results: Sequence[Result], group: dict[str, str]) -> tuple[int, float]:
    """How many results hold a group, and the standard deviation of its mean over them."""
    if group["editor"] == UNEDITED:  # it has no seed, in however many results it stands
        return 1, float("nan")
    found = [result.where(**group).frame["value"].to_numpy(dtype=float) for result in results]
    means = [100 * values.mean() for values in found if len(values)]
    return len(means), float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")


def _order(results: Sequence[Result]) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """Protocols, then editors as they were given behind the unedited model, then metrics."""
    pairs = [(editor, gate) for result in results for editor, gate, _, _ in _records(result)]
    editors = list(dict.fromkeys([(UNEDITED, NO_GATE), *pairs]))
    metrics = [*METRICS, *sorted({row[2] for result in results for row in _records(result)})]

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        editor = editors.index((row["editor"], row["gate"]))
        return PROTOCOLS.index(row["protocol"]), editor, metrics.index(row["metric"])

    return place


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of editors, columns of metrics, an interval in each cell."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        line = cells.setdefault((row["editor"], row["gate"]), {"runs": str(row["runs"])})
        line[row["metric"]] = _interval(row)
    columns = metrics if all(row["runs"] == 1 for row in rows) else [*metrics, "runs"]
    lines = [[*key, *(line.get(name, "") for name in columns)] for key, line in cells.items()]
    return _rendered([*KEYS, *(str(NAMES.get(name, name)) for name in columns)], lines)


def _interval(row: dict[str, Any]) -> str:
    form = "{mean:.1f} [{low:.1f}, {high:.1f}]" if np.isfinite(row["low"]) else "{mean:.1f}"
    return form.format(**row)


def _rendered(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def _plain(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.4g}" if abs(cell) < LARGE else f"{cell:,.0f}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
