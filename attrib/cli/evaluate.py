"""`attrib evaluate`: the scores of a trained editor, one edit at a time, beside the model's own."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field, field_validator
from typer import Option

from attrib.cli.caching import cached
from attrib.cli.command import ExitCode, add_command, invocation
from attrib.cli.models import load_model
from attrib.cli.outputs import default_folder, exit_code_for, log, write_quarantined
from attrib.cli.plan import plan_lines
from attrib.errors import AttribError, SetupError
from attrib.pipeline.options import AnalysisOptions
from attrib.pipeline.source import load_samples

if TYPE_CHECKING:
    from attrib.model.vlm import VLM
    from attrib.runs import Outcome, Run
    from editors import Editor
    from editors.evaluation.evaluate import Scoring

PANEL = "Evaluation"
PROTOCOLS = ("paper", "exact", "generate", "easyedit")
SETTINGS, GATE, UNGATED = "editor.json", "gate", "none"


class EvaluateOptions(AnalysisOptions):
    """Options of `attrib evaluate`."""

    editor: Annotated[
        Path | None,
        Option(help="Folder of a trained editor, as `attrib train --out` writes it.",
               rich_help_panel=PANEL),
    ] = None  # fmt: skip
    gate: Annotated[
        Path | None,
        Option(help="Folder of a gate that decides which inputs are served, or none.",
               show_default="the editor's own", rich_help_panel=PANEL),
    ] = None  # fmt: skip
    protocols: Annotated[
        str,
        Option(help="What makes an answer right: paper, exact, generate, easyedit; several with "
               "commas between.", rich_help_panel=PANEL),
    ] = "paper,exact,generate"  # fmt: skip
    label: Annotated[
        str | None,
        Option(help="What to call the editor in tables.", show_default="its name",
               rich_help_panel=PANEL),
    ] = None  # fmt: skip
    sequential: Annotated[
        str | None,
        Option(help="Numbers of edits that hold at once, such as 1,10,100: samples are taken in "
               "groups, and each is judged while its whole group holds.",
               show_default="each edit alone", rich_help_panel=PANEL),
    ] = None  # fmt: skip
    # An edit is judged by its whole answer.
    answer_prefix: Annotated[int | None, Option(hidden=True, min=0, max=0), Field(ge=0, le=0)] = 0
    batch_size: Annotated[
        int, Option(help="Inputs per pass; an edit is judged by about 8.", min=1), Field(ge=1)
    ] = 16

    @field_validator("sequential")
    @classmethod
    def _numbers(cls, given: str | None) -> str | None:
        if given is not None and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", given):
            raise ValueError(f"expected numbers of edits such as 1,10,100, got {given!r}")
        return given

    @field_validator("protocols", mode="before")
    @classmethod
    def _known_protocols(cls, given: Any) -> str:
        names = [name.strip() for name in str(given).split(",") if name.strip()]
        if unknown := [name for name in names if name not in PROTOCOLS]:
            raise ValueError(f"no protocol {unknown[0]!r}; protocols are {', '.join(PROTOCOLS)}")
        # One spelling for the same protocols, because they tell runs apart.
        return ",".join(name for name in PROTOCOLS if name in names)


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "evaluate", EvaluateOptions, evaluate)


def evaluate(options: EvaluateOptions) -> int:
    """Score a trained editor: reliability, generality and locality in every protocol."""
    if options.prompt is not None:
        raise AttribError("evaluate is about edits and what they are judged by: give --data")
    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor")
    out = options.out or default_folder("evaluate", options)
    prepared = list(_prepared(options, options.editor, out))
    if options.dry_run:
        for run, _ in prepared if prepared[0][0].rank.number == 0 else ():
            print("\n".join(plan_lines(run, 1)))
        return ExitCode.DONE
    outcomes = [run.execute(scoring, batch_size=1) for run, scoring in prepared]
    done = [outcome for outcome in outcomes if outcome is not None]
    if not done:  # another process writes the results
        return ExitCode.DONE
    text, files = _written([run.out for run, _ in prepared], done, out)
    files += write_quarantined(out, done[0].quarantined)
    print(text)
    print(f"edits used: {len(done[0].used)}, rows quarantined: {len(done[0].quarantined)}")
    print("\n".join(f"  {path}" for path in files))
    return exit_code_for(done[0].quarantined, options.max_failures)


def load_editor(folder: Path, vlm: "VLM") -> "Editor":
    """The editor in a folder, of whichever kind it is.

    Raises:
        SetupError: There is none, of no known kind, or it is of another model.
    """
    from editors import EDITORS

    try:
        name = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["editor"]
    except OSError as error:
        raise SetupError(
            f"{folder}: no trained editor (no {SETTINGS}); train one with `attrib train`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{folder / SETTINGS}: not what an editor writes: {error}") from error
    if name not in EDITORS:
        known = ", ".join(sorted(EDITORS))
        raise SetupError(f"{folder / SETTINGS}: no editor is called {name!r}; known are {known}")
    return EDITORS[name].load(folder, vlm)


def gated(editor: "Editor", folder: Path) -> "Editor":
    """The same editor behind the gate in a folder; behind no gate, if that is called "none".

    Raises:
        SetupError: There is no gate, or the editor has no use for one.
    """
    from editors.gating.gates import load_gate

    gate = None if str(folder) == UNGATED else load_gate(folder)
    with_gate = getattr(editor, "with_gate", None)
    if with_gate is None:
        raise SetupError(f"the editor {editor.name} takes no gate; leave --gate out")
    return with_gate(gate)


def _prepared(options: EvaluateOptions, folder: Path, out: Path) -> "Iterator[tuple[Run, Scoring]]":
    """The runs that the options ask for, and their measurements: one per number of edits."""
    from attrib import runs
    from editors.evaluation.evaluate import Scoring
    from editors.evaluation.multi_edit import Groups
    from editors.evaluation.reference_model import ReferenceModel

    rank = runs.Rank.from_environment()
    numbers = [int(n) for n in (options.sequential or "1").split(",")]
    folders = {n: out / f"at-once-{n}" if options.sequential else out for n in numbers}
    for place in folders.values():
        runs.refuse_foreign(place)  # before minutes go into reading a model
    log(f"evaluate: {folder} on {options.model}, {options.data}, results in {out}")
    data = load_samples(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    protocols = tuple(options.protocols.split(","))
    editor, files = load_editor(folder, vlm), [*_files(folder), *_files(folder / GATE)]
    if options.gate is not None:
        editor, files = gated(editor, options.gate), files + _files(options.gate)
    asked = (vlm, protocols, options.batch_size)
    reference = cached("unedited", asked, lambda: ReferenceModel(*asked))
    made = options.model_dump(mode="json", exclude={"dry_run", "sequential"})
    for number, place in folders.items():
        groups = Groups(list(data), number) if options.sequential else None
        scoring = Scoring.of(vlm, editor, reference, protocols, options.label, groups)
        told = {"gate": scoring.gate, "label": scoring.label, "files": _digest(files)}
        run = runs.prepare(
            vlm,
            data,
            place,
            name="evaluate",
            options=made | told | {"edits_at_once": number},
            seed=options.seed,
            free=runs.NON_IDENTIFYING
            | {f"options.{name}" for name in (*options.all_free(), "editor")},
            rank=rank,
            invocation=invocation(),
        )
        yield run, scoring


def _written(
    folders: "Sequence[Path]", outcomes: "Sequence[Outcome]", out: Path
) -> tuple[str, list[Path]]:
    """The tables as text, and the files of scores, tables and manifest."""
    from attrib.results import Result
    from editors.evaluation.evaluate import SCORES
    from editors.evaluation.tables import markdown, save_tables

    results = [Result(SCORES, done.tables[SCORES], done.manifest) for done in outcomes]
    pairs = list(zip(folders, results, strict=True))
    files = [result.save(folder / f"{SCORES}.parquet") for folder, result in pairs]
    files += save_tables(results, out)
    return markdown(results), [*files, *(folder / "manifest.json" for folder in folders)]


def _files(folder: Path) -> list[Path]:
    """What makes an editor, or a gate."""
    settings = [folder / name for name in (SETTINGS, "gate.json")]
    return [*filter(Path.exists, settings), *sorted(folder.glob("*.safetensors"))]


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of files: another editor is another run, the same in another folder is not."""
    from attrib.environment import sha256

    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
