"""Run an analysis over samples, in a folder: `attrib.run`, and what the commands do."""

import csv
import errno
import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import ValidationError

from attrib.errors import AttribError, SetupError
from attrib.files import write_text
from attrib.pipeline import find_analysis
from attrib.pipeline.analysis import Analysis
from attrib.pipeline.options import explain
from attrib.pipeline.source import as_data
from attrib.results import Result
from attrib.runs import NON_IDENTIFYING, Outcome, Rank, Run, prepare

if TYPE_CHECKING:
    from attrib.data import EditData, EditSample, Quarantined
    from attrib.model.vlm import VLM

FULL = {errno.ENOSPC, errno.EDQUOT}
UNWRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}


def run(
    name: str,
    vlm: "VLM",
    samples: Sequence["EditSample"],
    out: str | Path | None = None,
    **options: Any,
) -> Result:
    """Run an analysis over samples.

        result = attrib.run("sensitivity", vlm, samples, out="runs/x", modality="text")
        result.plot(); result.summary(); result.to_frame()

    Args:
        name: "contributions", "attention", "heatmaps", "sensitivity", "patching", "gate",
            "faithfulness", or the name of a command.
        vlm: the model.
        samples: what `attrib.data.load` returns, or a list of `EditSample`.
        out: folder of the run. The tables are saved there; interrupted, the same call continues.
            By default nothing is kept on disk.
        options: of the analysis, such as `modality="text"` or `batch_size=4`; those of its command.

    Returns:
        The main table; `result.tables` has the others, `result.quarantined` the rows that could
        not be used. Where several processes share `out`, only the first returns rows.

    Raises:
        AttribError: No such analysis or option, or the analysis refuses every sample.
        SetupError: No sample can be used, or the folder is of another run.
    """
    analysis = make_analysis(name, options)
    data = as_data(samples)
    if out is None:
        with TemporaryDirectory() as folder:
            # No other process can see the folder: each measures all samples.
            return complete(start(analysis, vlm, data, folder, rank=Rank()), analysis)
    return complete(start(analysis, vlm, data, out), analysis, save=True)


def make_analysis(name: str, options: dict[str, Any]) -> Analysis:
    """An analysis with its options checked.

    Raises:
        AttribError: No such analysis or option, or a value that does not fit.
    """
    cls = find_analysis(name)
    try:
        return cls(cls.Options.model_validate(options))
    except ValidationError as error:
        raise AttribError(f"{name}: {explain(error, cls.Options)}") from None


def start(
    analysis: Analysis,
    vlm: "VLM",
    data: "EditData",
    out: str | Path,
    *,
    rank: Rank | None = None,
    invocation: str = "",
) -> Run:
    """A run that may start or continue in a folder; see `attrib.runs.prepare`."""
    analysis.check(vlm)
    free = {f"options.{option}" for option in type(analysis.options).all_free()}
    return prepare(
        vlm,
        data,
        out,
        name=analysis.name,
        options=analysis.recorded_options(),
        seed=analysis.options.seed,
        free=NON_IDENTIFYING | free,
        rank=Rank.from_environment() if rank is None else rank,
        invocation=invocation,
        batch_size=analysis.options.batch_size,
    )


def execute(run: Run, analysis: Analysis) -> Result | None:
    """Measure what is missing; the result, or None in every process but the first.

    Raises:
        SetupError: No sample can be used, none has a row in the main table, or a file cannot be
            read or written.
    """
    try:
        outcome = run.execute(analysis.measurement(run.data))
    except OSError as error:
        raise SetupError(_explain(error, run.out)) from error
    if outcome is None:
        return None
    if outcome.tables[analysis.name].empty:
        raise SetupError(analysis.empty)
    return _result(outcome, analysis.name, run.data)


def _explain(error: OSError, out: Path) -> str:
    why = error.strerror or error
    if error.errno in FULL:
        return f"{out}: {why}; free some, and the same command continues with what is finished"
    if error.errno in UNWRITABLE or not out.exists():
        return f"{out} cannot be written: {why}; give another --out"
    return f"{error.filename or out}: {why}; the same command continues with what is in {out}"


def save_tables(result: Result, out: Path) -> list[Path]:
    """Write the main table as result.parquet, and every other table by its name."""
    return [
        table.save(out / f"{'result' if name == result.analysis else name}.parquet")
        for name, table in {result.analysis: result, **result.tables}.items()
    ]


def save_quarantined(quarantined: Sequence["Quarantined"], out: Path) -> list[Path]:
    """Write quarantined.csv if there are such rows; else remove the file of an earlier run."""
    path = out / "quarantined.csv"
    if not quarantined:
        path.unlink(missing_ok=True)
        return []
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "row", "field", "reason"])
    for row in quarantined:
        table.writerow([_inert(row.file), row.row, row.field, _inert(row.reason)])
    return [write_text(path, text.getvalue())]


def complete(run: Run, analysis: Analysis, *, save: bool = False) -> Result:
    """Execute a run; the result, empty in every process but the first."""
    result = execute(run, analysis)
    if result is None:
        rows = pd.DataFrame({"example": [], "value": []})
        return Result(analysis.name, rows, run.manifest)
    if save:
        save_tables(result, run.out)
        save_quarantined(result.quarantined, run.out)
    return result


def _result(outcome: Outcome, name: str, data: "EditData") -> Result:
    tables = {t: Result(t, frame, outcome.manifest) for t, frame in outcome.tables.items()}
    main = tables.pop(name)
    return Result(
        name,
        main.frame,
        main.provenance,
        tables=tables,
        samples=data,
        quarantined=tuple(outcome.quarantined),
    )


def _inert(cell: str) -> str:
    # Spreadsheets evaluate cells that begin like a formula.
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell
