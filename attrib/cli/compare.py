"""`attrib compare`: two runs of one analysis example by example, or evaluations edit by edit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from attrib.cli.command import ExitCode
from attrib.cli.compare_editors import compare_evaluations, is_evaluation
from attrib.cli.outputs import print_files, refuse_unwritable, write_manifest
from attrib.errors import AttribError
from attrib.pipeline.options import Options, option

if TYPE_CHECKING:
    from attrib.report.comparison import Comparison
    from attrib.report.run_reader import RunRead

SHOWN = 12


class CompareOptions(Options):
    """Options of `attrib compare`."""

    runs: Annotated[
        list[Path] | None,
        Argument(
            metavar="RUN RUN",
            help="Folders of two runs of an analysis, or of any number of evaluations.",
        ),
    ] = None
    table: str | None = option(None, "Table to compare.", shown="the main one")
    by: str | None = option(
        None, "Columns that make a group, such as layer,module.", shown="all that vary"
    )
    resamples: int = option(1000, "Bootstrap draws of the intervals.", ge=1)
    seed: int = option(0, "Seed of the draws.")
    out: Path = option(Path("comparison"), "Folder of the table and the figure.")


def compare(options: CompareOptions) -> int:
    """Compare two runs of one analysis, or editors: paired differences, with intervals."""
    if any(map(is_evaluation, options.runs or [])):
        print_files(_compare_editors(options))
        return ExitCode.DONE
    from attrib.report.comparison import compare as compare_results

    runs = _runs(options)
    results = [_table(run, options.table) for run in runs]
    found = compare_results(
        results[0],
        results[1],
        by=None if options.by is None else [name.strip() for name in options.by.split(",")],
        resamples=options.resamples,
        seed=options.seed,
    )
    print(found.summary())
    print(found.frame.head(SHOWN).to_string(index=False, float_format="{:.4g}".format))
    if len(found.frame) > SHOWN:
        print(f"... {len(found.frame)} rows in the file")
    print_files(_save(found, options))
    return ExitCode.DONE


def _compare_editors(options: CompareOptions) -> list[Path]:
    if given := [name for name in ("table", "by") if getattr(options, name) is not None]:
        raise AttribError(f"--{given[0]}: evaluations have one table; leave it out")
    refuse_unwritable(options.out)
    folders = options.runs or []
    files = compare_evaluations(folders, options.out, options.resamples, options.seed)
    about = {
        "runs": [str(folder) for folder in folders],
        "options": options.model_dump(mode="json", exclude={"runs", "out"}),
    }
    return [*files, write_manifest(options.out, "compare", about)]


def _runs(options: CompareOptions) -> list["RunRead"]:
    from attrib.report.run_reader import read_run

    folders = options.runs or []
    if len(folders) != 2:
        raise AttribError(f"expected the folders of two runs, got {len(folders)}")
    refuse_unwritable(options.out)
    runs = [(folder, read_run(folder)) for folder in folders]
    if missing := [folder for folder, run in runs if run is None]:
        raise AttribError(
            f"{missing[0]}: no results of an analysis there; give the folder of a run such as "
            "`attrib contributions --out`"
        )
    return [run for _, run in runs if run is not None]


def _table(run: "RunRead", name: str | None):
    tables = {run.result.analysis: run.result, **run.tables}
    if (name or run.result.analysis) not in tables:
        raise AttribError(f"{run.folder}: no table {name!r}; there are {', '.join(tables)}")
    return tables[name or run.result.analysis]


def _save(found: "Comparison", options: CompareOptions) -> list[Path]:
    from attrib.files import write_text
    from attrib.plots import save

    files = [write_text(options.out / "differences.csv", found.frame.to_csv(index=False))]
    if "layer" in found.by:
        files += save(found.plot(), options.out / "differences")
    about = {
        "runs": [str(run) for run in options.runs or []],
        "table": found.analysis,
        "examples": {"shared": found.shared, "of each": list(found.examples)},
        "settings": {name: list(pair) for name, pair in found.settings.items()},
        "options": options.model_dump(mode="json", exclude={"runs", "out"}),
    }
    return [*files, write_manifest(options.out, "compare", about)]
