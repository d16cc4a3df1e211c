"""`attrib edit`: make one edit and show the answers before and after it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attrib.cli.command import ExitCode, add_command
from attrib.errors import AttribError
from attrib.pipeline.options import ModelOptions, option
from attrib.pipeline.source import load_model

if TYPE_CHECKING:
    from PIL import Image

    from attrib.model.vlm import VLM
    from editors.base import Edit

PANEL = "Questions"
UNRELATED = "nq question: what is the capital of France? The answer is:"
Question = tuple[str, "Image.Image | None", str]


class EditOptions(ModelOptions):
    """Options of `attrib edit`."""

    editor: Path | None = option(None, "Folder of an editor that `attrib train` wrote.")
    image: Path | None = option(None, "The photo; none to edit text alone.")
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


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "edit", EditOptions, edit)


def edit(options: EditOptions) -> int:
    """Edit one fact and show the answers before and after."""
    from editors import load_editor
    from editors.io import save_edit

    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor, see `attrib train`")
    if options.prompt is None or (options.load is None and not options.target):
        raise AttribError("--prompt and --target: give the question and the new answer")
    vlm = load_model(options)
    editor: Any = load_editor(options.editor, vlm)
    made = _make_edit(options, vlm, editor)
    print("\n".join(_answers(vlm, made, _questions(options), options.max_new_tokens)))
    print(f"edit: {made.num_bytes:,} bytes")
    if options.save is not None:
        print(f"  {save_edit(made, options.save, vlm, editor)}")
    return ExitCode.DONE


def _make_edit(options: EditOptions, vlm: "VLM", editor: Any) -> "Edit":
    from attrib.data import EditRequest
    from editors.io import load_edit

    if options.load is not None:
        return load_edit(options.load, vlm, editor)
    request = EditRequest(options.image, options.prompt or "", options.target or "")
    return editor.edit(vlm, request)


def _questions(options: EditOptions) -> Iterator[Question]:
    from attrib.data import open_photo

    asked = [
        ("request", options.image, options.prompt),
        ("rephrase", options.image, options.rephrase),
        ("unrelated", options.unrelated_image, options.unrelated),
    ]
    for name, path, prompt in asked:
        if prompt is not None:
            yield name, None if path is None else open_photo(path), prompt


def _answers(vlm: "VLM", edit: "Edit", questions: Iterator[Question], longest: int) -> list[str]:
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
