"""`attrib explore`: one page about one photo and one question."""

import time
from pathlib import Path
from typing import Any

from attrib.cli.command import ExitCode, invocation, naming_option
from attrib.cli.edited import EditedOptions, check_edit, edit_of
from attrib.cli.outputs import log
from attrib.cli.photos import open_photos
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

MORE = "More to see"


class ExploreOptions(RowOptions, EditedOptions, ModelOptions):
    """Options of `attrib explore`."""

    image: Photos = option(None, "The photo; again for another one in the prompt.")
    prompt: str | None = option(None, "The question about it.")
    max_new_tokens: int = option(16, "Longest answer, in tokens.", ge=1)
    out: Path = option(Path("explore.html"), "The page.")
    also: list[str] | None = option(
        None,
        "Another question about the photo, answered on both sides; again for more.",
        shown="two general questions with --edit",
        panel=MORE,
    )
    compare: str | None = option(None, "A second model, beside the first.", panel=MORE)
    deep: bool = option(
        False,
        "Add noise sensitivity, patching, and how much each token of the answer relies on the "
        "picture and on the words.",
        panel=MORE,
        flags=("--deep",),
    )
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
        vlm.encode([photos or None], [prompt])
    other = None
    if options.compare is not None:
        own = {"model": options.compare, "revision": None, "processor": None}
        other = load_model(options.model_copy(update=own))
    edit = None
    if options.edit is not None:
        edit = edit_of(options, vlm, photos, prompt, target)
    page = explore_prompt(
        vlm,
        photos or None,
        prompt,
        edit=edit,
        compare=other,
        deep=options.deep,
        also=options.also or (),
        other_image=options.other_image,
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
        return open_photos(options.image), options.prompt or "", options.target or ""
    sample = chosen_row(read_rows(options), options.row)
    request = sample.request
    log(f"explore: row {sample.meta['row']} of {options.data}: {request.prompt}")
    return request.images, request.prompt, options.target or request.target


def _check(options: ExploreOptions) -> None:
    """Refuse combinations that mean nothing, before anything is loaded."""
    refuse_with_data(options, ("image", "prompt"))
    refuse_without_data(options)
    if not options.prompt and options.data is None:
        raise AttribError("--prompt: give a question, such as 'What animal is this?'")
    if options.edit is not None and options.compare is not None:
        raise AttribError("--compare: a page has two sides; give --edit or --compare")
    check_edit(options, row_target=options.data is not None)
    if options.other_image is not None and not options.deep:
        raise AttribError("--other-image: it is for patching; give --deep as well")
