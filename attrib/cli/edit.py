"""`attrib edit`: make one edit, and ask the model before and after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.command import ExitCode, naming_option
from attrib.cli.outputs import log
from attrib.errors import AttribError
from attrib.pipeline.options import ModelOptions, Photos, option
from attrib.pipeline.source import load_model

if TYPE_CHECKING:
    from PIL import Image

    from attrib.model.vlm import VLM
    from editors.base import Edit

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
    target = options.target or _target_of(made)
    asked = _ask(vlm, made, questions, _longest(options, vlm, target))
    print("\n".join(asked.lines(questions)))
    print(f"edit: {made.num_bytes:,} bytes")
    if options.save is not None:
        print(f"  {save_edit(made, options.save, vlm, editor)}")
    return _outcome(options, asked.after[0], target)


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


def _longest(options: EditOptions, vlm: "VLM", target: str | None) -> int:
    """Tokens to generate: as asked for, and enough to tell whether the answer is the target."""
    from editors.evaluation.protocols import SPARE

    ids = vlm.tokenizer(target or "", add_special_tokens=False)["input_ids"]
    return max(options.max_new_tokens, len(ids) + SPARE)


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
