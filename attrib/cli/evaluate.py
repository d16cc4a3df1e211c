"""`attrib evaluate`: score a trained editor, one edit at a time or several at once."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator
from typer import Option

from attrib.cli.benchmark_options import BenchmarkOptions
from attrib.cli.command import ExitCode, invocation
from attrib.cli.edited import EDITOR
from attrib.cli.gates import NO_GATE, gate_of, is_gate_name
from attrib.cli.outputs import (
    default_folder,
    exit_code_for,
    log,
    plan_lines,
    print_files,
    write_quarantined,
)
from attrib.errors import AttribError
from attrib.pipeline.options import AnalysisOptions, option
from attrib.pipeline.source import load_model, load_samples, require_targets

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.runs import Run
    from editors.adapters.sites import Gate
    from editors.base import Mode
    from editors.evaluation.scoring import Scoring


PANEL = "Evaluation"
PROTOCOLS = ("paper", "exact", "generate", "generate-prefix", "easyedit")


def known_protocols(given: Any) -> str:
    """Protocols, comma-separated, in one spelling for the same ones: they identify a run.

    Raises:
        ValueError: There is no such protocol.
    """
    names = [name.strip() for name in str(given).split(",") if name.strip()]
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise ValueError(f"no protocol {unknown[0]!r}; protocols are {', '.join(PROTOCOLS)}")
    return ",".join(name for name in PROTOCOLS if name in names)


class EvaluateOptions(BenchmarkOptions, AnalysisOptions):
    """Options of `attrib evaluate`."""

    refused = dict.fromkeys(
        ("prompt", "image", "target"),
        "evaluate needs edits with the inputs to evaluate them on: give --data",
    )

    editor: Path | None = option(None, EDITOR, panel=PANEL)
    gate: str | None = option(
        None,
        "What decides which inputs an edit applies to, for any editor: learned, prompt_last or "
        "sequence_last, fitted to training edits; the folder of a gate or of an editor with one; "
        "or none.",
        panel=PANEL,
        shown="the editor's own",
    )
    both: bool = option(
        False,
        "Score the editor without the gate too, from the same passes: the gate decides which "
        "answers hold.",
        panel=PANEL,
    )
    gate_layer: int = option(1, "Layer that a fitted gate reads.", panel=PANEL, ge=0)
    gate_limit: int | None = option(
        None, "Training edits that a gate is fitted to.", panel=PANEL, shown="all", ge=2
    )
    protocols: str = option(
        "paper,exact,generate",
        "When an answer counts as right: paper, exact, generate (the whole answer), "
        "generate-prefix (it may go on), easyedit; comma-separated.",
        panel=PANEL,
    )
    label: str | None = option(None, "Name of the editor in tables.", panel=PANEL, shown="its own")
    at_once: str | None = option(
        None,
        "Numbers of edits that are held at once, such as 1,10,100: each is made on the original "
        "model. Samples are grouped, and each is scored with its whole group applied.",
        panel=PANEL,
        shown="one at a time",
    )
    sequential: str | None = option(
        None,
        "The same, but each edit is made on the model as edited by those before it (ft-l, ft-v, "
        "ke, mend).",
        panel=PANEL,
        shown="one at a time",
    )
    fluency: int = option(
        0,
        "Tokens that are generated before and after each edit to measure fluency (entropy of "
        "n-grams, repetition); 0 for none.",
        panel=PANEL,
        ge=0,
    )
    peak_memory: bool = option(
        False, "Measure the peak memory of making an edit.", panel=PANEL, flags=("--peak-memory",)
    )
    answers: Path | None = option(
        None,
        "Folder of the unedited model's answers: evaluations of any editor share them.",
        panel=PANEL,
        shown="unedited, beside --out",
    )
    # Edits are evaluated on whole answers.
    answer_prefix: Annotated[int | None, Option(hidden=True, min=0, max=0), Field(ge=0, le=0)] = 0
    batch_size: int | None = option(16, "Inputs per pass; an edit has about 8.", ge=1)

    @field_validator("at_once", "sequential")
    @classmethod
    def _numbers(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", given):
            raise ValueError(f"expected numbers of edits such as 1,10,100, got {given!r}")
        return given

    @field_validator("protocols", mode="before")
    @classmethod
    def _known_protocols(cls, given: Any) -> str:
        return known_protocols(given)


def evaluate(options: EvaluateOptions) -> int:
    """Score a trained editor: reliability, generality and locality in every protocol."""
    from editors.evaluation import save_scores
    from editors.evaluation.left_out import left_out
    from editors.evaluation.terminal_tables import terminal_tables

    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor, or ft-l")
    out = options.out or default_folder("evaluate", options)
    prepared = _prepare(options, options.editor, out)
    runs = [run for run, _ in prepared]
    if options.dry_run:
        for run in runs if runs[0].rank.number == 0 else ():
            print("\n".join(plan_lines(run)))
        return ExitCode.DONE
    outcomes = [run.execute(scoring) for run, scoring in prepared]
    done = [outcome for outcome in outcomes if outcome is not None]
    if not done:  # another process writes the results
        return ExitCode.DONE
    results, files = save_scores(runs, done, out)
    files += write_quarantined(out, done[0].quarantined)
    print(terminal_tables(results), end="\n\n")
    if line := left_out(runs[0].data):
        print(line)
    print(f"edits used: {len(done[0].used)}, rows quarantined: {len(done[0].quarantined)}")
    print_files(files)
    return exit_code_for(done[0].quarantined, options.max_failures)


def _prepare(options: EvaluateOptions, folder: Path, out: Path) -> "list[tuple[Run, Scoring]]":
    """Prepare a run for each number of edits at once."""
    from attrib.runs import Rank, refuse_foreign
    from editors.evaluation import prepare_evaluation
    from editors.evaluation.extra_costs import ExtraCosts
    from editors.evaluation.groups import Groups
    from editors.evaluation.reference_model import ReferenceModel
    from editors.evaluation.scoring import Scoring

    rank = Rank.from_environment()
    if options.at_once and options.sequential:
        raise AttribError("--at-once: edits are held at once or made in sequence, not both")
    if options.both and options.gate in (None, NO_GATE):
        raise AttribError("--both: give the gate behind which edits are scored too, with --gate")
    if options.sequential and options.gate not in (None, NO_GATE):  # before a gate is fitted
        raise AttribError(
            "--sequential: edits behind a gate are made on the original model; hold them at once, "
            "--at-once, or leave the gate out, --gate none"
        )
    mode: Mode = "sequential" if options.sequential else "batch"
    given = options.sequential or options.at_once
    numbers = [int(n) for n in (given or "1").split(",")]
    name = "sequential" if options.sequential else "at-once"
    folders = {n: out / f"{name}-{n}" if given else out for n in numbers}
    for place in folders.values():
        refuse_foreign(place)  # before the model is loaded
    log(f"evaluate: {folder} on {options.model}, {options.data}, results in {out}")
    data = scored_edits(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    protocols = tuple(options.protocols.split(","))
    editor, behind, sources, settings = _editor(options, vlm, folder, out)
    answers = options.answers or out.parent / "unedited"
    reference = ReferenceModel(vlm, protocols, options.batch_size or 16, answers)
    prepared = []
    for number, place in folders.items():
        groups = Groups(list(data), number, mode) if given else None
        extra = ExtraCosts(options.fluency, options.peak_memory)  # measures a peak once
        scoring = Scoring.of(editor, reference, protocols, options.label, groups, extra, behind)
        run = prepare_evaluation(
            scoring,
            data,
            place,
            sources,
            options={
                **options.model_dump(mode="json", exclude={"dry_run", "at_once", "sequential"}),
                **settings,
            },
            seed=options.seed,
            free={*options.all_free(), "editor", "answers"},
            rank=rank,
            invocation=invocation(),
        )
        prepared.append((run, scoring))
    return prepared


def scored_edits(options: EvaluateOptions) -> "EditData":
    """The edits to score; whole where `--disjoint` is about those that a gate is fitted to."""
    whole = {"disjoint": options.disjoint and not is_gate_name(options.gate)}
    return require_targets(load_samples(options.model_copy(update=whole)))


def _editor(
    options: EvaluateOptions, vlm: "VLM", given: Path, out: Path
) -> "tuple[Any, Gate | None, list[Path], dict[str, Any]]":
    """The editor, behind its gate; what identifies it; and a gate to score it behind as well.

    Returns:
        The editor; the gate that it is scored behind too, with `--both`; the folders that identify
        them; and settings that do, those of an editor without files.
    """
    from editors.gating.gated_editor import behind
    from editors.registry import editor_folder, load_editor

    editor: Any = load_editor(given, vlm)
    folder = editor_folder(given, vlm)
    own = [] if folder is None else [folder]
    settings = {"settings": editor.config.settings()} if folder is None else {}
    if options.gate is None:
        return editor, None, [*own, *(one / "gate" for one in own)], settings
    gate, of_gate = gate_of(options.gate, vlm, options, out)
    sources = [*own, *of_gate]
    if options.both:
        return behind(editor, None), gate, sources, settings
    return behind(editor, gate), None, sources, settings
