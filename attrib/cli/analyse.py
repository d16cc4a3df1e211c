"""`attrib contributions` and `attrib attention`: one analysis over data, or about one photo."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attrib.cli.command import ExitCode, add_command, invocation
from attrib.cli.models import load_model
from attrib.cli.options import AnalysisOptions, AttentionOptions, ContributionOptions
from attrib.cli.outputs import (
    digests,
    exit_code_for,
    log,
    refuse_unwritable,
    results_folder,
    write_quarantined,
)
from attrib.cli.plan import planned
from attrib.errors import SetupError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.results import Result
    from attrib.runs import Outcome, Run
    from attrib.runs.collect import Measure


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    add_command(app, "contributions", ContributionOptions, contributions)
    add_command(app, "attention", AttentionOptions, attention)


def contributions(options: ContributionOptions) -> int:
    """How much each layer's attention and MLP push the key token (VisEdit, Figs. 1, 5, 6)."""
    from attrib import plots
    from attrib.analyses.tables import measure_contributions
    from attrib.report.summaries import summarize_contributions

    def draw(result: "Result") -> dict[str, "Axes"]:
        title = f"Contribution to the key token ({options.key})"
        return {"contributions": plots.contributions(result, title=title)}

    measure = partial(measure_contributions, key=options.key, norm=options.norm)
    empty = "the data is without a wrong answer to use as key: give --key token:WORD"
    return analyse("contributions", options, measure, draw, summarize_contributions, empty=empty)


def attention(options: AttentionOptions) -> int:
    """What the last prompt token attends to in each layer (DualEdit, Fig. 1)."""
    from attrib import plots
    from attrib.analyses.tables import measure_attention
    from attrib.report.summaries import summarize_attention

    def draw(result: "Result") -> dict[str, "Axes"]:
        return {
            "attention": plots.attention(result),
            "attention-share": plots.attention(result, quantity="share"),
        }

    return analyse("attention", options, measure_attention, draw, summarize_attention)


def analyse(
    name: str,
    options: AnalysisOptions,
    measure: "Measure",
    draw: "Callable[[Result], dict[str, Axes]]",
    about: "Callable[[Result], str]",
    *,
    check: "Callable[[VLM], None] | None" = None,
    plan: "Callable[[VLM, EditData], Iterable[str]] | None" = None,
    empty: str = "no sample has what this analysis measures",
) -> int:
    """Run an analysis over data or one photo; write its tables, figures and manifest; exit code.

    What the folder of the results holds of the same run already is not computed again.

    Args:
        name: of the analysis, and of its main table.
        options: what the user chose.
        measure: maps a batch and its samples to tables by name; each is saved.
        draw: figures of the main table, by the names of their files.
        about: what the main table says, in a sentence or two.
        check: raises where the options do not fit the model, before anything is computed.
        plan: lines that --dry-run prints in addition, such as what the run will cost.
        empty: what to say where samples could be used and the main table has no row.
    """
    run = _prepared(name, options)
    if check is not None:
        check(run.vlm)
    if options.dry_run:
        for line in planned(run, options.batch_size, plan) if run.rank.number == 0 else ():
            print(line)
        return ExitCode.DONE
    outcome = _executed(run, measure, options.batch_size)
    if outcome is None:
        return ExitCode.DONE
    if outcome.tables[name].empty:
        raise SetupError(empty)
    result, files = _written(name, run.out, outcome, draw)
    files += write_quarantined(run.out, outcome.quarantined)
    print(about(result))
    print(f"samples used: {result.examples}, rows quarantined: {len(outcome.quarantined)}")
    print("\n".join(f"  {path}" for path in files))
    return exit_code_for(outcome.quarantined, options.max_failures)


def _prepared(name: str, options: AnalysisOptions) -> "Run":
    """The run that the options ask for, which nothing keeps from beginning."""
    from attrib import runs

    rank = runs.Rank.from_environment()
    out = results_folder(name, options)
    runs.refuse_foreign(out)  # before minutes go into reading a model
    refuse_unwritable(out)
    which = f" (rank {rank.number} of {rank.world})" if rank.world > 1 else ""
    log(f"{name}: {options.model} on {_source(options)}, results in {out}{which}")
    data = load_data(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    return runs.prepare(
        vlm,
        data,
        out,
        name=name,
        options=options.model_dump(mode="json", exclude={"dry_run"}),
        seed=options.seed,
        free=runs.NON_IDENTIFYING | {f"options.{option}" for option in options.free},
        rank=rank,
        invocation=invocation(),
    )


def _executed(run: "Run", measure: "Measure", batch_size: int) -> "Outcome | None":
    try:
        return run.execute(measure, batch_size=batch_size)
    except OSError as error:
        why = error.strerror or error
        raise SetupError(f"{run.out} cannot be written: {why}; give another --out") from error


def _written(
    name: str, out: Path, outcome: "Outcome", draw: "Callable[[Result], dict[str, Axes]]"
) -> "tuple[Result, list[Path]]":
    """The main result; and the files of all results and figures, and of the manifest."""
    from attrib import plots
    from attrib.results import Result

    results = {t: Result(t, frame, outcome.manifest) for t, frame in outcome.tables.items()}
    files = [
        result.save(out / f"{'result' if table == name else table}.parquet")
        for table, result in results.items()
    ]
    for stem, ax in draw(results[name]).items():
        files += plots.save(ax, out / stem)
    return results[name], [*files, out / "manifest.json"]


def _source(options: AnalysisOptions) -> str:
    if options.prompt is None:
        return f"{options.data} {options.split or ''}".strip()
    return f"{options.prompt!r}" + (f" about {options.image}" if options.image else "")


def load_data(options: AnalysisOptions) -> "EditData":
    """The samples that an analysis is about: of a dataset, or the one typed by hand.

    Raises:
        AttribError: when the data cannot be read.
    """
    from attrib.data import EditData, EditRequest, EditSample
    from attrib.data.answer_prefix import add_answer_prefix, shared_prefix_length

    if options.prompt is None:
        data = read_data(options)
        words = shared_prefix_length(data) if options.lead is None else options.lead
        return add_answer_prefix(data, words)
    request = EditRequest(options.image, options.prompt, options.target or "")
    typed = EditSample("photo", request, meta={"row": 0})
    made_of = {"file": "command line", **digests(options)}
    return EditData("typed by hand", "", [typed], provenance=made_of)


def first_word(options: AnalysisOptions) -> int:
    """The number of the answers' word that is looked at, counted from 0."""
    from attrib.data.answer_prefix import shared_prefix_length

    return shared_prefix_length(read_data(options)) if options.lead is None else options.lead


def read_data(options: AnalysisOptions) -> "EditData":
    """The samples of a dataset as they are: no word of an answer is given with the question."""
    from attrib.data import load

    split = options.split or ("test" if options.data.startswith("scenes-") else "")
    return load(options.data, split, image_root=options.image_root, limit=options.limit)
