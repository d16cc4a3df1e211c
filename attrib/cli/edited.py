"""`--edit`: which edit a command applies, and an analysis of one photo before and after it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrib.cli.command import naming_option
from attrib.cli.outputs import log, write_manifest
from attrib.errors import AttribError, SetupError
from attrib.pipeline.options import Options, option

if TYPE_CHECKING:
    from attrib.model.batch import Batch
    from attrib.model.vlm import VLM
    from attrib.pipeline.analysis import Analysis
    from attrib.results import Result
    from attrib.runs import Run

EDITOR = (
    "Folder of an editor that `attrib train` wrote; dualedit, which the package has trained for "
    "tiny-llava; or ft-l or ft-v, which need no training."
)
EDIT = "An edit"
EDITED = ("contributions", "heatmap", "attention", "sweep", "deletion")  # analyses with --edit
NUMBERS = {"attention": ("text_sum", "visual_sum")}  # statistics that the terminal shows
Some = TypeVar("Some", bound="EditedOptions")


class EditedOptions(Options):
    """Options that name an edit."""

    free = frozenset({"edit", "edit_prompt", "load"})

    edit: Path | None = option(
        None,
        "Folder or name of an editor, as for `attrib edit`, with --target; or a saved edit of "
        "weights. Shows before and after.",
        panel=EDIT,
    )
    target: str | None = option(
        None, "The new answer that --edit installs; the answer for --key gold.", panel=EDIT
    )
    edit_prompt: str | None = option(
        None, "The question that is edited.", shown="--prompt", panel=EDIT
    )
    load: Path | None = option(
        None, "A saved edit of the editor in --edit, instead of --target.", panel=EDIT
    )


def check_edit(
    options: EditedOptions, *, reads_target: bool = False, row_target: bool = False
) -> None:
    """Refuse combinations that mean nothing, before anything is loaded.

    Args:
        options: The options.
        reads_target: Whether `--target` means something without an edit.
        row_target: Whether a row of data has the new answer.

    Raises:
        AttribError: An option would be ignored, or an editor lacks the new answer.
        SetupError: The edit is neither a file nor a folder.
    """
    if options.edit is None:
        given = ["edit_prompt", "load", *([] if reads_target else ["target"])]
        for name in given:
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise AttribError(f"--{flag}: it belongs to an edit; give --edit as well")
        return
    saved = options.edit.is_file()
    if saved and options.load is not None:
        raise AttribError("--load: --edit is a saved edit already; give one of them")
    if saved or options.load is not None:
        of = "--load" if options.load is not None else "--edit"
        if options.target is not None and not reads_target:
            raise AttribError(f"--target: the edit of {of} has its answer; give one of them")
        if options.edit_prompt is not None:
            raise AttribError(f"--edit-prompt: the edit of {of} has its question; leave it out")
    elif not (options.target or row_target):
        raise AttribError("--target: give the new answer that the editor installs")
    if options.edit.exists():
        return
    from editors import EDITORS

    if str(options.edit) not in EDITORS:
        raise SetupError(f"{options.edit}: no trained editor and no saved edit is there")


def edit_of(
    options: EditedOptions, vlm: "VLM", photos: Sequence[Any], prompt: str, target: str
) -> Any:
    """The edit that the options name: a saved one, or one that the editor makes now."""
    from attrib.data import EditRequest
    from editors import load_editor
    from editors.base import encode_requests
    from editors.io import load_edit

    folder = options.edit
    assert folder is not None
    if folder.is_file():
        return load_edit(folder, vlm)
    editor: Any = load_editor(folder, vlm)
    if options.load is not None:
        return load_edit(options.load, vlm, editor)
    if not target:
        raise AttribError("--target: give the new answer that the editor installs")
    request = EditRequest(list(photos) or None, options.edit_prompt or prompt, target)
    with naming_option("target"):
        encode_requests(vlm, [request])
    log(f"editing with {folder}")
    return editor.edit(vlm, request)


def without_edit(options: Some) -> Some:
    """The options of the same analysis of the unedited model."""
    none: dict[str, Any] = dict.fromkeys(EditedOptions.free)
    if getattr(options, "key", None) != "gold":
        none["target"] = None
    return options.model_copy(update=none)


def show_edited(
    analysis: "Analysis", run: "Run", before: "Result", options: Any, answer: Callable[[], str]
) -> list[Path]:
    """Run the analysis of the edited model, print both sides, write the edited one.

    Args:
        analysis: Of the unedited model.
        run: Its run.
        before: Its result.
        options: With those of the edit.
        answer: Returns a line with the model's answer.

    Returns:
        The files.
    """
    from attrib.pipeline.edited import run_edited

    vlm, request = run.vlm, run.data[0].request
    edit = edit_of(options, vlm, request.images, request.prompt, options.target or "")
    after = run_edited(analysis, vlm, run.data, edit)
    after = replace(after, provenance={**after.provenance, "edit": _record(options, vlm)})
    batch = vlm.encode([list(request.images) or None], [request.prompt])
    print(f"before the edit: {answer()}")
    with edit.applied(vlm):
        print(f"after the edit:  {answer()}")
    print(_gate(vlm, edit, batch))
    print(f"before the edit: {analysis.summarize(before)}")
    print(f"after the edit:  {analysis.summarize(after)}")
    return _write(analysis, before, after, run.out)


def _gate(vlm: "VLM", edit: Any, batch: "Batch") -> str:
    from attrib.explorer.questions import gate_decision

    decision = gate_decision(vlm, edit, batch)
    if decision is None:
        return "gate: none; the edit applies to every input"
    opens = "open, the edit applies" if decision.opens else "closed, the answer is the unedited one"
    return f"gate: {opens} (score {decision.score:.4f}, threshold {decision.threshold:.4f})"


def _write(analysis: "Analysis", before: "Result", after: "Result", out: Path) -> list[Path]:
    """Print the numbers side by side; write tables, figures and differences of the edited side."""
    from attrib import plots
    from attrib.files import write_text
    from attrib.pipeline.edited import side_by_side
    from attrib.pipeline.run import save_tables
    from attrib.report.comparison import compare

    shown = side_by_side(before, after, NUMBERS.get(analysis.name, ()))
    print(shown.to_string(float_format="{:.4g}".format))
    digest = sha256(str(after.provenance["edit"]).encode()).hexdigest()[:8]
    folder = out / f"edited-{digest}"
    files = save_tables(after, folder)
    for stem, draw in analysis.plots(after).items():
        files += plots.save(draw(), folder / stem)
    table = compare(before, after).frame.rename(columns={"one": "before", "other": "after"})
    files.append(write_text(folder / "differences.csv", table.to_csv(index=False)))
    return [*files, write_manifest(folder, analysis.name, after.provenance)]


def _record(options: EditedOptions, vlm: "VLM") -> dict[str, Any]:
    """The edit as the manifest holds it: its files with their digest, and what it installs."""
    from attrib.files import sha256 as file_digest
    from editors.io import files_digest
    from editors.registry import editor_folder

    assert options.edit is not None
    folder = options.edit if options.edit.is_file() else editor_folder(options.edit, vlm)
    folders = [] if folder is None else [folder]
    digest = file_digest(folder) if folder and folder.is_file() else files_digest(folders)
    loaded = {} if options.load is None else {"load_sha256": file_digest(options.load)}
    given = options.model_dump(mode="json", include=set(EditedOptions.model_fields))
    return {**{n: v for n, v in given.items() if v is not None}, "sha256": digest, **loaded}
