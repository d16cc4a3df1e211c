"""Tables of scores: one per protocol, a row per editor, the unedited model first."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attrib.errors import AttribError
from attrib.files import write_text
from attrib.results import Result
from attrib.stats import clustered_interval
from editors.evaluation.metrics import METRICS
from editors.evaluation.protocols import PROTOCOLS
from editors.evaluation.scoring import COST, UNEDITED, UNEDITED_GATE

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
    "text_rel": "text Rel",
    "picture_rel": "picture Rel",
    "portability": "Port",
    **{f"port_{hops}_hop": f"Port {hops}-hop" for hops in range(1, 5)},
    "port_comp": "Port, both edits",
}
TITLES = {
    "paper": "Protocol paper: teacher-forced token accuracy (the papers' program)",
    "exact": "Protocol exact: all tokens at once, teacher-forced",
    "generate": "Protocol generate: greedy decoding from the prompt alone, the whole answer",
    "generate-prefix": "Protocol generate-prefix: greedy decoding, the answer may go on",
    "easyedit": "Protocol easyedit: EasyEdit's definitions",
}
COST_NAMES = {
    "edit_ms": "edit, ms",
    "bytes": "bytes stored",
    "pass_ms": "a pass, ms",
    "edited_pass_ms": "with the edit, ms",
    "latency": "ratio",
    "peak_bytes": "peak bytes of an edit",
    "entropy_before": "n-gram entropy before",
    "entropy_after": "n-gram entropy after",
    "repetition_before": "repetition before",
    "repetition_after": "repetition after",
}
KEYS = ["editor", "gate"]
WHEN = ("before", "after")
COSTS = ["edit_ms", "bytes", "pass_ms", "edited_pass_ms"]
FLUENCY = [f"{m}_{w}" for m in ("entropy", "repetition") for w in WHEN]
# Measured on one edit of a run, or if asked for.
SOME_COSTS = ["peak_bytes", *FLUENCY]
COST_NOTE = (
    "ratio: the time of a pass with the edit over one without, the median over edits. An edit "
    "takes no work away from a pass: a ratio below 1 is the noise of timing on this machine."
)
DIGITS = 8  # of a fingerprint or digest that tell results apart
LARGE = 10_000  # numbers from here on are shown without decimals


def summary(results: Sequence[Result]) -> pd.DataFrame:
    """Mean scores in per cent of every editor and of the unedited model.

    Results of one editor and gate are runs with different seeds: each edit counts with its mean
    over them.

    Returns:
        One row per editor, protocol and metric: editor, gate, protocol, metric, mean, low and high
        (a 95 % interval, clustered by what edits share: `attrib.stats.clustered_interval`),
        n (edits), items (clusters), runs, and spread, the standard deviation of the runs' own means
        (NaN for one run).

    Raises:
        AttribError: There are no results, or they are of different models or data.
    """
    by = [*KEYS, "protocol", "metric"]
    combined = _combined(results)
    table = _over_items(combined.mean(by), combined, by)
    means: list[Any] = [r.frame.groupby(by, as_index=False)["value"].mean() for r in results]
    runs: Any = pd.concat(means)
    seeded = runs["editor"] != UNEDITED  # the unedited model has no seed, in however many results
    runs = pd.concat([runs[seeded], runs[~seeded].drop_duplicates(by)])
    spread = runs.groupby(by)["value"].agg(runs="count", spread="std").reset_index()
    table = table.merge(spread, on=by)
    per_cent = ["mean", "low", "high", "spread"]
    table[per_cent] *= 100
    return pd.DataFrame(sorted(table.to_dict("records"), key=_order(results)))


def _over_items(table: pd.DataFrame, scores: Result, by: list[str]) -> pd.DataFrame:
    """The table with intervals over items, and their number."""
    frame, table = scores.frame, table.set_index(by)
    if "item" not in frame:  # of an earlier version
        frame = frame.assign(item=frame["example"])
    for key, part in frame.groupby(by):
        each = part.groupby("example", sort=False).agg({"value": "mean", "item": "first"})
        items, names = pd.factorize(each["item"])
        values = np.asarray(each["value"], dtype=float)
        ends = clustered_interval(values, items, seed=scores.seed)
        table.loc[key, ["low", "high", "items"]] = (*ends, len(names))
    return table.astype({"items": int}).reset_index()


def costs(results: Sequence[Result]) -> pd.DataFrame:
    """Costs of edits: medians over edits, a row per editor.

    Returns:
        editor, gate, edit_ms, bytes, pass_ms, edited_pass_ms, and latency: the median over edits of
        the ratio of the times of a pass with and without the edit; and those of `SOME_COSTS` that
        were measured.
    """
    parts = [r.where(protocol=COST).frame.assign(run=i) for i, r in enumerate(results)]
    keys = [*KEYS, "run", "example"]
    wide = pd.concat(parts).pivot_table("value", keys, "metric", sort=False)
    wide["latency"] = wide["edited_pass_ms"] / wide["pass_ms"]
    shown = [*COSTS, "latency", *(name for name in SOME_COSTS if name in wide)]
    return wide.groupby(KEYS, sort=False)[shown].median().reset_index()


def score_tables(scores: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """Title, table and note per protocol of a `summary`: a row per editor, a column per metric."""
    parts = []
    for protocol, some in scores.groupby("protocol", sort=False):
        rows: dict[tuple[str, str], dict[str, str]] = {}
        records: list[dict[str, Any]] = some.to_dict("records")
        for row in records:
            keys = {name: row[name] for name in KEYS}
            cells = rows.setdefault((row["editor"], row["gate"]), keys)
            metric = str(row["metric"])
            cells[NAMES.get(metric, metric)] = _cell(row)
        table = pd.DataFrame(list(rows.values())).fillna("")
        parts.append((TITLES[str(protocol)], table, _note(some)))
    return parts


def parts_of(scores: pd.DataFrame, spent: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """Title, table and note per protocol of a `summary`, and those of `costs`."""
    spent = spent.rename(columns=COST_NAMES).map(_shortened)
    return [*score_tables(scores), ("Cost of an edit (medians)", spent, COST_NOTE)]


def _markdown(scores: pd.DataFrame, spent: pd.DataFrame) -> str:
    return markdown_parts(parts_of(scores, spent), "###") + "\n"


def markdown_parts(parts: Sequence[tuple[str, pd.DataFrame, str]], heading: str) -> str:
    """Titles, tables and notes in Markdown; cells are escaped."""
    return "\n\n".join(
        "\n\n".join(filter(None, (f"{heading} {title}", _markdown_table(table), note)))
        for title, table, note in parts
    )


def save_tables(results: Sequence[Result], folder: str | Path) -> list[Path]:
    """Write `summary.csv`, `costs.csv` and `summary.md` into a folder."""
    folder, scores, spent = Path(folder), summary(results), costs(results)
    return [
        write_text(folder / "summary.csv", scores.to_csv(index=False)),
        write_text(folder / "costs.csv", spent.to_csv(index=False)),
        write_text(folder / "summary.md", _markdown(scores, spent)),
    ]


def markdown_text(cell: object) -> str:
    """Escape a cell for Markdown."""
    return escape(str(cell), quote=False).replace("|", "\\|")


def _markdown_table(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(markdown_text, row))} |" for row in rows)


def _shortened(cell: object) -> object:
    if not isinstance(cell, float):
        return cell
    return f"{cell:,.4g}" if abs(cell) < LARGE else f"{cell:,.0f}"


def _cell(row: dict[str, Any]) -> str:
    spread = f" ±{row['spread']:.1f}" if row["runs"] > 1 else ""
    ends = f" [{row['low']:.1f}, {row['high']:.1f}]" if np.isfinite(row["low"]) else ""
    return f"{row['mean']:.1f}{spread}{ends}"


def _note(scores: pd.DataFrame) -> str:
    low, high = (int(end) for end in np.asarray(scores["n"].agg(["min", "max"])))
    runs = int(np.asarray(scores["runs"]).max())
    n = f"{low}" if low == high else f"{low} to {high}"
    seeds = f"Up to {runs} seeds; ± is the standard deviation of their means."
    return (
        f"In per cent, with 95 % intervals over {n} edits, clustered by what they share: T-Loc and "
        "Avg by fact, M-Loc by its image, other scores by the edit's image; Wilson's where each "
        "cluster is all right or all wrong. "
        f"{seeds if runs > 1 else 'One seed.'}"
    )


def _combined(results: Sequence[Result]) -> Result:
    """All scores as one result, with the provenance that the results share."""
    if not results:
        raise AttribError("no scores to tabulate: give the results of editors.evaluate")
    for what in ("model", "data"):
        found = {_identity(result, what) for result in results}
        told = {name for name, digest in found if digest}
        # Without a digest, as of a plain list of samples, the name has to do.
        apart = sorted(one for one in found if one[1] or one[0] not in told)
        if len(apart) > 1:
            raise AttribError(
                f"scores of different {what} do not belong into one table: "
                f"{' and '.join(' '.join(filter(None, one)) for one in apart)}"
            )
    frame = pd.concat([result.frame for result in results], ignore_index=True)
    frame = frame.loc[np.asarray(frame["protocol"] != COST)]
    return Result(results[0].analysis, frame, {"seed": results[0].seed})


def _identity(result: Result, what: str) -> tuple[str, str]:
    """Name and split of a result's model or data, and the start of its digest, "" without one.

    The digest of data is of its whole file, however many of the rows were read.
    """
    made = result.provenance[what]
    name = " ".join(filter(None, (made["name"], made.get("split"))))
    return name, (made.get("fingerprint") or made.get("sha256") or "")[:DIGITS]


def _order(results: Sequence[Result]) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """Sort key: protocol, then editor (the unedited model first, others as given), then metric."""
    frame = pd.concat([result.frame for result in results])
    pairs = frame[KEYS].drop_duplicates().itertuples(index=False, name=None)
    editors = list(dict.fromkeys([(UNEDITED, UNEDITED_GATE), *pairs]))
    metrics = [*METRICS, *sorted(set(frame["metric"]))]

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        editor = editors.index((row["editor"], row["gate"]))
        return PROTOCOLS.index(row["protocol"]), editor, metrics.index(row["metric"])

    return place
