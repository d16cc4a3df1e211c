"""`attrib edit`: one edit, tried on its request, a rephrase and an unrelated question."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field
from typer import Option

from attrib.cli.command import ExitCode, add_command
from attrib.cli.evaluate import load_editor
from attrib.cli.models import load_model
from attrib.errors import AttribError
from attrib.pipeline.options import ModelOptions

if TYPE_CHECKING:
    from PIL import Image

    from attrib.model.vlm import VLM
    from editors.base import Edit

ASKED = "Questions"
UNRELATED = "nq question: what is the capital of France? The answer is:"
Question = tuple[str, "Image.Image | None", str]


class EditOptions(ModelOptions):
    """Options of `attrib edit`."""

    editor: Annotated[
        Path | None, Option(help="Folder of a trained editor, as `attrib train` writes it.")
    ] = None
    image: Annotated[Path | None, Option(help="The photo; none for an edit of text alone.")] = None
    prompt: Annotated[str | None, Option(help="What is asked about it.")] = None
    target: Annotated[str | None, Option(help="The new answer.")] = None
    rephrase: Annotated[
        str | None,
        Option(help="The question in other words.", show_default="not asked",
               rich_help_panel=ASKED),
    ] = None  # fmt: skip
    unrelated: Annotated[
        str, Option(help="A question whose answer must stay.", rich_help_panel=ASKED)
    ] = UNRELATED
    unrelated_image: Annotated[
        Path | None, Option(help="Its photo.", show_default="none", rich_help_panel=ASKED)
    ] = None
    max_new_tokens: Annotated[int, Option(help="Longest answer.", min=1), Field(ge=1)] = 16
    save: Annotated[Path | None, Option(help="File for the edit, such as edit.safetensors.")] = None
    load: Annotated[Path | None, Option(help="File of a saved edit, in place of making one.")] = (
        None
    )


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    add_command(app, "edit", EditOptions, edit)


def edit(options: EditOptions) -> int:
    """Apply one edit and show the answers before and after."""
    if options.editor is None:
        raise AttribError("--editor: give the folder of a trained editor, see `attrib train`")
    if options.prompt is None or (options.load is None and not options.target):
        raise AttribError("--prompt and --target: give what is asked and the new answer")
    vlm = load_model(options)
    editor: Any = load_editor(options.editor, vlm)
    made = _made(options, vlm, editor)
    for line in _table(vlm, made, _questions(options), options.max_new_tokens):
        print(line)
    print(f"kept of the edit: {made.num_bytes:,} bytes")
    if options.save is not None:
        from editors.io.edit import save_edit

        print(f"  {save_edit(made, options.save, vlm, editor)}")
    return ExitCode.DONE


def _made(options: EditOptions, vlm: "VLM", editor: Any) -> "Edit":
    from attrib.data import EditRequest
    from editors.io.edit import load_edit

    if options.load is not None:
        return load_edit(options.load, vlm, editor)
    assert options.prompt is not None
    assert options.target is not None
    return editor.edit(vlm, EditRequest(options.image, options.prompt, options.target))


def _questions(options: EditOptions) -> Iterator[Question]:
    from attrib.data import open_photo

    def photo(path: Path | None) -> "Image.Image | None":
        return None if path is None else open_photo(path)

    assert options.prompt is not None
    yield "request", photo(options.image), options.prompt
    if options.rephrase is not None:
        yield "rephrase", photo(options.image), options.rephrase
    yield "unrelated", photo(options.unrelated_image), options.unrelated


def _table(vlm: "VLM", made: "Edit", questions: Iterator[Question], longest: int) -> Iterator[str]:
    """A line per question, with the answers before and after."""
    names, images, prompts = zip(*questions, strict=True)
    batch = vlm.encode(images, prompts)
    before = vlm.generate(batch, max_new_tokens=longest)
    with made.applied(vlm):
        after = vlm.generate(batch, max_new_tokens=longest)
    for name, prompt, old, new in zip(names, prompts, before, after, strict=True):
        yield f"{name}: {prompt}\n  before: {old}\n  after:  {new}"
