"""`attrib edit`: make one edit, or one after another for the rows of data; ask before and after."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.command import ExitCode, naming_option
from attrib.cli.edited import EDITOR
from attrib.cli.outputs import exit_code_for, log
from attrib.cli.photos import open_photos
from attrib.cli.table_rows import (
    RowOptions,
    chosen_row,
    read_rows,
    refuse_with_data,
    refuse_without_data,
)
from attrib.errors import AttribError
from attrib.files import embedded_names
from attrib.pipeline.options import ModelOptions, Photos, option
from attrib.pipeline.source import load_model, require_targets

if TYPE_CHECKING:
    from PIL import Image

    from attrib.data import EditData, EditRequest, EditSample
    from attrib.model.vlm import VLM
    from editors.base import Edit

PANEL = "Questions"
OF_ONE = ("image", "prompt", "target", "rephrase", "unrelated_image", "save", "load")
UNRELATED = "nq question: what is the capital of France? The answer is:"
TAUGHT = "nq question: what do people eat in lurane?"  # to the embedded models
Question = tuple[str, "list[Image.Image]", str]


class EditOptions(RowOptions, ModelOptions):
    """Options of `attrib edit`."""

    editor: Path | None = option(None, EDITOR)
    image: Photos = option(
        None, "The photo; again for another one in the prompt, none to edit text alone."
    )
    prompt: str | None = option(None, "The question about it.")
    target: str | None = option(None, "The new answer.")
    rephrase: str | None = option(
        None, "The question in other words.", shown="not asked", panel=PANEL
    )
    unrelated: str | None = option(
        None, "A question whose answer must not change.", shown="a known fact", panel=PANEL
    )
    unrelated_image: Path | None = option(None, "Its photo.", shown="none", panel=PANEL)
    max_new_tokens: int = option(16, "Longest answer, in tokens.", ge=1)
    save: Path | None = option(None, "Save the edit to this file (.safetensors).")
    load: Path | None = option(None, "Load a saved edit instead of making one.")
    max_failures: int | None = option(
        None, "With --data: exit with 1 if more rows are quarantined.", shown="no limit", ge=0
    )


def edit(options: EditOptions) -> int:
    """Edit one fact and show the answers before and after.

    With --data every row is such a fact, edited by itself on the original model.
    """
    from editors import load_editor
    from editors.io import save_edit

    folder = _check(options)
    rows = None if options.data is None else _rows(options)
    questions = _asked_of(options) if rows is None else []
    vlm = load_model(options)
    editor: Any = load_editor(folder, vlm)
    if rows is not None:
        return _edit_rows(options, vlm, editor, rows)
    _encode(vlm, questions)
    made = _make_edit(options, vlm, editor)
    target = options.target or _target_of(made)
    asked = _ask(vlm, made, questions, longest_answer(vlm, target, options.max_new_tokens))
    print("\n".join(asked.lines(questions)))
    print(f"edit: {made.num_bytes:,} bytes")
    if options.save is not None:
        print(f"  {save_edit(made, options.save, vlm, editor)}")
    return _outcome(options, asked.after[0], target)


def _check(options: EditOptions) -> Path:
    """The editor's folder; combinations that mean nothing are refused before anything is loaded."""
    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor, or ft-l")
    refuse_without_data(options)
    refuse_with_data(options, OF_ONE)
    if options.data is not None:
        return options.editor
    if options.max_failures is not None:
        raise AttribError("--max-failures: it belongs to data; give --data")
    if options.prompt is None or (options.load is None and not options.target):
        raise AttribError("--prompt and --target: give the question and the new answer")
    if options.load is not None and options.target is not None:
        raise AttribError("--target: the edit of --load has its answer; give one of them")
    return options.editor


def _rows(options: EditOptions) -> "EditData":
    """The rows to edit: the one that is asked for, or all with those that cannot be used."""
    data = require_targets(read_rows(options))
    if options.row is None and data:  # without any, the first reason is raised
        return data
    return replace(data, samples=[chosen_row(data, options.row)], quarantined=[])


def _make_edit(
    options: EditOptions, vlm: "VLM", editor: Any, given: "EditRequest | None" = None
) -> "Edit":
    """The edit that the options name, or that of a row of data."""
    from attrib.data import EditRequest
    from editors.base import encode_requests
    from editors.io import load_edit

    if options.load is not None:
        return load_edit(options.load, vlm, editor)
    request = given or EditRequest(options.image, options.prompt or "", options.target or "")
    with nullcontext() if given else naming_option("target"):
        encode_requests(vlm, [request])
    return editor.edit(vlm, request)


def _asked_of(options: EditOptions) -> list[Question]:
    """The questions that options ask, with their photos."""
    photos, other = open_photos(options.image), options.unrelated_image
    unrelated = open_photos([other] if other else None, "unrelated-image")
    asked = [
        ("request", photos, options.prompt),
        ("rephrase", photos, options.rephrase),
        ("unrelated", unrelated, _unrelated(options)),
    ]
    return [(name, images, prompt) for name, images, prompt in asked if prompt is not None]


def _unrelated(options: EditOptions) -> str:
    """The control question: as given, or about a fact that the model may know."""
    if options.unrelated is not None:
        return options.unrelated
    return TAUGHT if options.model in embedded_names() else UNRELATED


def _encode(vlm: "VLM", questions: "list[Question]") -> None:
    """Refuse questions that the model cannot be asked, before the edit is made."""
    for name, images, prompt in questions:
        with naming_option("prompt" if name == "request" else name):
            vlm.encode([images], [prompt])


def _edit_rows(options: EditOptions, vlm: "VLM", editor: Any, data: "EditData") -> int:
    """Edit row by row; rows that cannot be used are named and counted, and the others go on.

    An edit is taken if the answer begins with the target: what may follow is for `attrib evaluate`.
    """
    from attrib.data import Quarantined
    from editors.evaluation.protocols import begins_with_target

    taken = used = 0
    bad = list(data.quarantined)
    for sample in data:
        target = sample.request.target
        try:
            questions = list(_questions_of(sample, options, vlm))
            made = _make_edit(options, vlm, editor, sample.request)
            asked = _ask(vlm, made, questions, longest_answer(vlm, target, options.max_new_tokens))
        except AttribError as error:
            field, reason = getattr(error, "field", "edit"), getattr(error, "reason", str(error))
            file = sample.meta.get("file", data.name)
            bad.append(Quarantined(file, sample.meta["row"], field, reason))
            log(f"quarantined: {bad[-1]}")
            continue
        print("\n".join([f"row {sample.meta['row']} -> {target}", *asked.lines(questions)]))
        used += 1
        taken += begins_with_target(asked.after[0], target)
    print(f"edits made: {used}, taken: {taken}, rows quarantined: {len(bad)}")
    code = exit_code_for(bad, options.max_failures)
    return code or (ExitCode.DONE if used and taken == used else ExitCode.NOT_TAKEN)


def _questions_of(sample: "EditSample", options: EditOptions, vlm: "VLM") -> Iterator[Question]:
    """The questions about a row, those that it has columns for."""
    unrelated = [*sample.text_locality, *sample.visual_locality]
    asked = {
        "request": [sample.request],
        "rephrase": sample.text_generality,
        "another image": sample.visual_generality,
        "unrelated": unrelated,
    }
    for name, request in ((name, one) for name, some in asked.items() for one in some):
        vlm.encode([request.images], [request.prompt])
        yield name, request.images, request.prompt
    if not unrelated:
        yield "unrelated", [], _unrelated(options)


@dataclass(frozen=True)
class Asked:
    """Answers to the questions before and after the edit."""

    before: list[str]
    after: list[str]

    def lines(self, questions: list[Question]) -> list[str]:
        """A paragraph per question."""
        return [
            f"{name}: {prompt}\n  before: {old}\n  after:  {new}"
            for (name, _, prompt), old, new in zip(questions, self.before, self.after, strict=True)
        ]


def _ask(vlm: "VLM", edit: "Edit", questions: list[Question], longest: int) -> Asked:
    _, images, prompts = zip(*questions, strict=True)
    batch = vlm.encode(images, prompts)
    before = vlm.generate(batch, max_new_tokens=longest)
    with edit.applied(vlm):
        return Asked(before, vlm.generate(batch, max_new_tokens=longest))


def longest_answer(vlm: "VLM", target: str | None, least: int) -> int:
    """Tokens to generate: `least`, and enough to tell whether the answer is the target."""
    from editors.evaluation.protocols import SPARE

    ids = vlm.tokenizer(target or "", add_special_tokens=False)["input_ids"]
    return max(least, len(ids) + SPARE)


def _target_of(edit: "Edit") -> str | None:
    """The answer that a loaded edit installs; edits of weights do not name it."""
    memories = [one.request for one in getattr(edit, "memories", ())]
    facts = memories or list(getattr(edit, "facts", ()))
    return facts[0].target if len(facts) == 1 else None


def _outcome(options: EditOptions, answer: str, target: str | None) -> ExitCode:
    """Whether the edited model gives the new answer; it may go on after it."""
    from editors.evaluation.protocols import begins_with_target

    if target is None or begins_with_target(answer, target):
        return ExitCode.DONE
    log(
        f"the edit did not take: the edited model answers {answer!r}, not {target!r}; train "
        f"{options.editor} for more steps or on more edits, or take another editor"
    )
    return ExitCode.NOT_TAKEN
