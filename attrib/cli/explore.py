"""`attrib explore`: one page about one photo and one question."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib.cli.command import ExitCode, invocation, naming_option
from attrib.cli.outputs import log
from attrib.cli.table_rows import (
    RowOptions,
    chosen_row,
    read_rows,
    refuse_with_data,
    refuse_without_data,
)
from attrib.errors import AttribError
from attrib.pipeline.options import ModelOptions, Photos, option
from attrib.pipeline.source import load_model
from attrib.vocabulary import Template

if TYPE_CHECKING:
    from attrib.model.vlm import VLM

EDIT, MORE = "An edit", "More to see"


class ExploreOptions(RowOptions, ModelOptions):
    """Options of `attrib explore`."""

    image: Photos = option(None, "The photo; again for another one in the prompt.")
    prompt: str | None = option(None, "The question about it.")
    template: Template = option(
        "raw", "raw: the prompt as it is; chat: in the model's chat template."
    )
    max_new_tokens: int = option(16, "Longest answer, in tokens.", ge=1)
    out: Path = option(Path("explore.html"), "The page.")
    edit: Path | None = option(
        None,
        "Folder of an editor, with --target; or a saved edit of weights. Shows before and after.",
        panel=EDIT,
    )
    target: str | None = option(None, "The new answer that --edit installs.", panel=EDIT)
    edit_prompt: str | None = option(
        None, "The question that is edited.", shown="--prompt", panel=EDIT
    )
    load: Path | None = option(
        None, "A saved edit of the editor in --edit, instead of --target.", panel=EDIT
    )
    also: list[str] | None = option(
        None,
        "Another question about the photo, answered on both sides; again for more.",
        shown="two general questions with --edit",
        panel=MORE,
    )
    compare: str | None = option(None, "A second model, beside the first.", panel=MORE)
    deep: bool = option(False, "Add noise sensitivity and patching.", panel=MORE, flags=("--deep",))
    other_image: Path | None = option(
        None, "Photo whose states --deep patches in.", shown="its mean colour", panel=MORE
    )
    noise: float = option(
        0.1, "Perturbation of the heatmaps, in standard deviations.", panel=MORE, gt=0
    )
    seed: int = option(0, "Seed of the noise.", panel=MORE)


def explore(options: ExploreOptions) -> int:
    """Explore one answer: a page with contributions, logit lens, attention and heatmaps."""
    from attrib.explorer.explore import explore as explore_prompt

    began = time.monotonic()
    _check(options)
    photos, prompt, target = _asked(options)
    vlm = load_model(options)
    with naming_option("prompt"):
        vlm.encode([photos or None], [prompt], template=options.template)
    other = None
    if options.compare is not None:
        other = load_model(options.model_copy(update={"model": options.compare, "revision": None}))
    page = explore_prompt(
        vlm,
        photos or None,
        prompt,
        edit=None if options.edit is None else _edit(options, vlm, photos, prompt, target),
        compare=other,
        deep=options.deep,
        also=options.also or (),
        other_image=options.other_image,
        template=options.template,
        max_new_tokens=options.max_new_tokens,
        noise=options.noise,
        seed=options.seed,
        command=invocation(),
    )
    path = page.save(options.out)
    for side, seen in zip(page.data["sides"], page.sides, strict=True):
        print(f"{side['label']}: {seen.text!r}")
        print("\n".join(f"  {line}" for line in side["findings"][seen.first_answer]))
    size = path.stat().st_size / 1e6
    print(f"{path} ({size:.1f} MB, {time.monotonic() - began:.0f} s; open it in a browser)")
    return ExitCode.DONE


def _asked(options: ExploreOptions) -> tuple[list[Any], str, str]:
    """The photos, the prompt and the new answer: those of the options, or of a row of data."""
    if options.data is None:
        photos = [_open_photo(path) for path in options.image or ()]
        return photos, options.prompt or "", options.target or ""
    sample = chosen_row(read_rows(options), options.row)
    request = sample.request
    log(f"explore: row {sample.meta['row']} of {options.data}: {request.prompt}")
    return request.images, request.prompt, options.target or request.target


def _open_photo(path: Path) -> Any:
    """The photo at a path, refused before the model is loaded."""
    from attrib.data import open_photo

    with naming_option("image"):
        return open_photo(path)


def _check(options: ExploreOptions) -> None:
    """Refuse combinations that mean nothing, before anything is loaded."""
    refuse_with_data(options, ("image", "prompt"))
    refuse_without_data(options)
    if not options.prompt and options.data is None:
        raise AttribError("--prompt: give a question, such as 'What animal is this?'")
    if options.edit is None:
        for name in ("target", "edit_prompt", "load"):
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise AttribError(f"--{flag}: it belongs to an edit; give --edit as well")
    elif options.compare is not None:
        raise AttribError("--compare: a page has two sides; give --edit or --compare")
    elif options.target is not None and options.load is not None:
        raise AttribError("--target: the edit of --load has its answer; give one of them")
    if options.other_image is not None and not options.deep:
        raise AttribError("--other-image: it is for patching; give --deep as well")


def _edit(
    options: ExploreOptions, vlm: "VLM", photos: Sequence[Any], prompt: str, target: str
) -> Any:
    """The edit that the options name, or that a row of data has."""
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
    log(f"explore: editing with {folder}")
    return editor.edit(vlm, request)
