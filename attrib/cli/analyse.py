"""The commands of the analyses: each over a dataset, or about one photo."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import create_model

from attrib.cli.command import ExitCode, add_command, invocation
from attrib.cli.edited import EDITED, EditedOptions, check_edit, show_edited, without_edit
from attrib.cli.outputs import (
    exit_code_for,
    log,
    plan_lines,
    print_files,
    refuse_unwritable,
    results_folder,
    write_quarantined,
)
from attrib.cli.photos import open_photos
from attrib.errors import AttribError
from attrib.pipeline import find_analysis
from attrib.pipeline.options import AnalysisOptions, MeasureOptions

if TYPE_CHECKING:
    from attrib.pipeline.analysis import Analysis
    from attrib.results import Result
    from attrib.runs import Run


def add_to(app: typer.Typer, name: str) -> None:
    """Add the command of one analysis to the command line."""
    cls = find_analysis(name)
    call = partial(analyse, cls)
    call.__doc__ = cls.__doc__
    add_command(app, name, command_options(cls), call)


def command_options(cls: "type[Analysis]") -> type[AnalysisOptions]:
    """The options of an analysis's command: its own, and those that all analyses share."""
    own: Any = cls.Options
    bases = (AnalysisOptions,) if own is MeasureOptions else (own, AnalysisOptions)
    bases = (EditedOptions, *bases) if cls.name in EDITED else bases
    made: Any = create_model(own.__name__, __base__=bases, __doc__=own.__doc__)
    reads_answer = {"key", "other_image", "edit"} & set(made.model_fields)
    made.refused = {} if reads_answer else {"target": f"{cls.name} reads no answer; leave it out"}
    if cls.needs_dataset:
        why = f"{cls.name} needs a dataset: give --data instead of one photo"
        made.refused = dict.fromkeys(("prompt", "image", "target"), why)
    return made


def analyse(cls: "type[Analysis]", options: AnalysisOptions) -> int:
    """Run an analysis; write its tables, figures and manifest. Returns the exit code."""
    given, options = options, _unedited(cls, options)
    analysis = cls(options)
    if line := analysis.announce():
        log(line)
    run = _prepare(analysis, options)
    if options.dry_run:
        if run.rank.number == 0:
            more = analysis.plan(run.vlm, run.data)
            print("\n".join(plan_lines(run, more)))
        return ExitCode.DONE
    from attrib.pipeline.run import execute

    result = execute(run, analysis)
    if result is None:  # the first process writes the results
        return ExitCode.DONE
    files = _write(result, analysis, run.out)
    if getattr(given, "edit", None) is not None:
        answer = partial(_answer, run, options)
        files += show_edited(analysis, run, result, given, answer)
    else:
        if options.prompt is not None:
            print(_answer(run, options))
        print(analysis.summarize(result))
    print(_counts(run, analysis, result))
    print_files(files)
    return exit_code_for(result.quarantined, options.max_failures)


def _prepare(analysis: "Analysis", options: AnalysisOptions) -> "Run":
    """The run that the options ask for, after all checks that need no forward pass."""
    from attrib.pipeline.run import start
    from attrib.pipeline.source import describe_source, load_model, load_samples
    from attrib.runs import Rank, refuse_foreign

    rank = Rank.from_environment()
    out = results_folder(analysis.name, options)
    refuse_foreign(out)  # before the model is loaded, which may take minutes
    refuse_unwritable(out)
    open_photos(options.image)
    if other := getattr(options, "other_image", None):
        open_photos([other], "other-image")
    which = f" (rank {rank.number} of {rank.world})" if rank.world > 1 else ""
    source = describe_source(options)
    log(f"{analysis.name}: {options.model} on {source}, results in {out}{which}")
    data = load_samples(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    return start(analysis, vlm, data, out, rank=rank, invocation=invocation())


def _unedited(cls: "type[Analysis]", options: AnalysisOptions) -> AnalysisOptions:
    """The options without those of an edit, which are checked."""
    if not isinstance(options, EditedOptions):
        return options
    reads_target = getattr(options, "key", None) == "gold"
    if options.target and not (reads_target or options.edit) and options.prompt:
        raise AttribError(
            f"--target: {cls.name} reads no answer; leave it out, or give --edit, which installs it"
        )
    if options.edit is not None and options.prompt is None:
        raise AttribError("--edit: one photo is shown before and after; give --image and --prompt")
    check_edit(options, reads_target=reads_target)
    return without_edit(options)


def _counts(run: "Run", analysis: "Analysis", result: "Result") -> str:
    """How many samples and rows were used, and why the others were not."""
    bad = len(result.quarantined)
    left = len(run.data) + len(run.data.quarantined) - result.examples - bad
    why = f", {analysis.unused}: {left}" if left > 0 and analysis.unused else ""
    return f"samples used: {result.examples}, rows quarantined: {bad}{why}"


def _answer(run: "Run", options: AnalysisOptions) -> str:
    """The model's answer about one photo, and the token that the analysis is about."""
    from attrib.analyses.answers import answer_of

    request = run.data[0].request
    batch = run.vlm.encode([list(request.images) or None], [request.prompt])
    return str(answer_of(run.vlm, batch, getattr(options, "answer_token", None) or 0))


def _write(result: "Result", analysis: "Analysis", out: Path) -> list[Path]:
    """Write tables, figures, exports and quarantined rows; the paths of all files."""
    from attrib import plots
    from attrib.files import write_text
    from attrib.pipeline.run import save_tables

    files = save_tables(result, out)
    for stem, draw in analysis.plots(result).items():
        files += plots.save(draw(), out / stem)
    files += [write_text(out / n, text) for n, text in analysis.exports(result).items()]
    files.append(out / "manifest.json")
    return files + write_quarantined(out, result.quarantined)
