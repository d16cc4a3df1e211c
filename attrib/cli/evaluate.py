"""`attrib evaluate`: score a trained editor, one edit at a time or several at once."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator
from typer import Option

from attrib.cli.command import ExitCode, invocation, naming_option
from attrib.cli.gates import gate_of
from attrib.cli.outputs import default_folder, exit_code_for, log, plan_lines, write_quarantined
from attrib.errors import AttribError
from attrib.pipeline.options import AnalysisOptions, ModelOptions, Photos, option
from attrib.pipeline.source import load_model, load_samples

if TYPE_CHECKING:
    from PIL import Image

    from attrib.model.vlm import VLM
    from attrib.runs import Run
    from editors.base import Edit
    from editors.evaluation.scoring import Scoring


PANEL = "Evaluation"
PROTOCOLS = ("paper", "exact", "generate", "generate-prefix", "easyedit")


class EvaluateOptions(AnalysisOptions):
    """Options of `attrib evaluate`."""

    refused = dict.fromkeys(
        ("prompt", "image", "target"),
        "evaluate needs edits with the inputs to evaluate them on: give --data",
    )

    editor: Path | None = option(
        None, "Folder of an editor that `attrib train --out` wrote.", panel=PANEL
    )
    gate: str | None = option(
        None,
        "What decides which inputs an edit applies to, for any editor: learned, prompt_last or "
        "sequence_last, fitted to training edits; the folder of a gate or of an editor with one; "
        "or none.",
        panel=PANEL,
        shown="the editor's own",
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
    sequential: str | None = option(
        None,
        "Numbers of edits that are applied at once, such as 1,10,100: samples are grouped, and "
        "each is scored with its whole group applied.",
        panel=PANEL,
        shown="one at a time",
    )
    # Edits are evaluated on whole answers.
    answer_prefix: Annotated[int | None, Option(hidden=True, min=0, max=0), Field(ge=0, le=0)] = 0
    batch_size: int | None = option(16, "Inputs per pass; an edit has about 8.", ge=1)

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
        # One spelling for the same protocols: they identify the run.
        return ",".join(name for name in PROTOCOLS if name in names)


def evaluate(options: EvaluateOptions) -> int:
    """Score a trained editor: reliability, generality and locality in every protocol."""
    from editors.evaluation import save_scores
    from editors.evaluation.tables import markdown

    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor")
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
    print(markdown(results))
    print(f"edits used: {len(done[0].used)}, rows quarantined: {len(done[0].quarantined)}")
    print("\n".join(f"  {path}" for path in files))
    return exit_code_for(done[0].quarantined, options.max_failures)


def _prepare(options: EvaluateOptions, folder: Path, out: Path) -> "list[tuple[Run, Scoring]]":
    """Prepare a run for each number of edits at once."""
    from attrib.runs import Rank, refuse_foreign
    from editors import load_editor
    from editors.evaluation import prepare_evaluation
    from editors.evaluation.reference_model import ReferenceModel
    from editors.evaluation.scoring import Groups, Scoring
    from editors.gating.gated_editor import behind

    rank = Rank.from_environment()
    numbers = [int(n) for n in (options.sequential or "1").split(",")]
    folders = {n: out / f"at-once-{n}" if options.sequential else out for n in numbers}
    for place in folders.values():
        refuse_foreign(place)  # before the model is loaded
    log(f"evaluate: {folder} on {options.model}, {options.data}, results in {out}")
    data = load_samples(options)
    vlm = load_model(options.model_copy(update={"device": rank.device(options.device)}))
    protocols = tuple(options.protocols.split(","))
    editor, sources = load_editor(folder, vlm), [folder, folder / "gate"]
    if options.gate is not None:
        gate, of_gate = gate_of(options.gate, vlm, options, out)
        editor, sources = behind(editor, gate), [folder, *of_gate]
    reference = ReferenceModel(vlm, protocols, options.batch_size or 16)
    prepared = []
    for number, place in folders.items():
        groups = Groups(list(data), number) if options.sequential else None
        scoring = Scoring.of(editor, reference, protocols, options.label, groups)
        run = prepare_evaluation(
            scoring,
            data,
            place,
            sources,
            options=options.model_dump(mode="json", exclude={"dry_run", "sequential"}),
            seed=options.seed,
            free={*options.all_free(), "editor"},
            rank=rank,
            invocation=invocation(),
        )
        prepared.append((run, scoring))
    return prepared


PANEL = "Questions"
UNRELATED = "nq question: what is the capital of France? The answer is:"
Question = tuple[str, "list[Image.Image]", str]


class EditOptions(ModelOptions):
    """Options of `attrib edit`."""

    editor: Path | None = option(None, "Folder of an editor that `attrib train` wrote.")
    image: Photos = option(
        None, "The photo; again for another one in the prompt, none to edit text alone."
    )
    prompt: str | None = option(None, "The question about it.")
    target: str | None = option(None, "The new answer.")
    rephrase: str | None = option(
        None, "The question in other words.", shown="not asked", panel=PANEL
    )
    unrelated: str = option(UNRELATED, "A question whose answer must not change.", panel=PANEL)
    unrelated_image: Path | None = option(None, "Its photo.", shown="none", panel=PANEL)
    max_new_tokens: int = option(16, "Longest answer, in tokens.", ge=1)
    save: Path | None = option(None, "Save the edit to this file (.safetensors).")
    load: Path | None = option(None, "Load a saved edit instead of making one.")


def edit(options: EditOptions) -> int:
    """Edit one fact and show the answers before and after."""
    from editors import load_editor
    from editors.io import save_edit

    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor, see `attrib train`")
    if options.prompt is None or (options.load is None and not options.target):
        raise AttribError("--prompt and --target: give the question and the new answer")
    if options.load is not None and options.target is not None:
        raise AttribError("--target: the edit of --load has its answer; give one of them")
    vlm = load_model(options)
    editor: Any = load_editor(options.editor, vlm)
    questions = list(_questions(options, vlm))
    made = _make_edit(options, vlm, editor)
    print("\n".join(_answers(vlm, made, questions, options.max_new_tokens)))
    print(f"edit: {made.num_bytes:,} bytes")
    if options.save is not None:
        print(f"  {save_edit(made, options.save, vlm, editor)}")
    return ExitCode.DONE


def _make_edit(options: EditOptions, vlm: "VLM", editor: Any) -> "Edit":
    from attrib.data import EditRequest
    from editors.base import encode_requests
    from editors.io import load_edit

    if options.load is not None:
        return load_edit(options.load, vlm, editor)
    request = EditRequest(options.image, options.prompt or "", options.target or "")
    with naming_option("target"):
        encode_requests(vlm, [request])
    return editor.edit(vlm, request)


def _questions(options: EditOptions, vlm: "VLM") -> Iterator[Question]:
    from attrib.data import open_photo

    asked = [
        ("request", options.image, options.prompt),
        ("rephrase", options.image, options.rephrase),
        ("unrelated", options.unrelated_image and [options.unrelated_image], options.unrelated),
    ]
    for name, paths, prompt in asked:
        if prompt is not None:
            images = [open_photo(path) for path in paths or ()]
            with naming_option("prompt" if name == "request" else name):  # before the edit is made
                vlm.encode([images], [prompt])
            yield name, images, prompt


def _answers(vlm: "VLM", edit: "Edit", questions: list[Question], longest: int) -> list[str]:
    """A paragraph per question, with the answers before and after."""
    names, images, prompts = zip(*questions, strict=True)
    batch = vlm.encode(images, prompts)
    before = vlm.generate(batch, max_new_tokens=longest)
    with edit.applied(vlm):
        after = vlm.generate(batch, max_new_tokens=longest)
    return [
        f"{name}: {prompt}\n  before: {old}\n  after:  {new}"
        for name, prompt, old, new in zip(names, prompts, before, after, strict=True)
    ]
