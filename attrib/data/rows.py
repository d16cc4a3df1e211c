"""The sample that a benchmark's row makes, and the images that the row names.

The row is one that `Benchmark.validate` returned; the benchmark's prompt style makes the prompts.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from PIL import Image

from attrib.data.benchmarks import EXTRA, Benchmark
from attrib.data.easyedit import ELEVEN, HARD, IMAGES, Row, named
from attrib.data.images import BadImage
from attrib.data.prompt_styles import PromptStyle, style_named
from attrib.data.samples import EditRequest, EditSample
from attrib.errors import RowError

HARD_LOCALITY = "hard_locality"  # type of hard locality inputs where a dataset does not name it
TYPES = "hard_types"  # entry of a sample's `meta`


def to_sample(
    row: Row,
    id: str,
    *,
    benchmark: Benchmark,
    file: str,
    index: int,
    open_image: Callable[[Any], Image.Image],
    style: PromptStyle | None = None,
) -> EditSample:
    """The sample of a valid row; its images are opened on access.

    Args:
        row: what `Benchmark.validate` returned; the sample has no input for what is empty in it.
        id: name of the sample.
        benchmark: has the names of the row's fields.
        file: the file to name when an image turns out bad.
        index: the row's number in it.
        open_image: returns the RGB image of a name, or of a handle that stands for one.
        style: makes the prompts; by default the benchmark's.
    """
    style, task = style or style_named(benchmark.style), benchmark.task
    asked = partial(style.asked, task=task, source=str(row.get("source", "")))

    def image(names: Any, field: str) -> Any:
        return _opener(names, benchmark.named(field), open_image, file, index)

    def several(name: str) -> list[tuple[str, EditRequest]]:
        return [
            (
                str(item.get("type", name)),
                EditRequest(
                    image(item.get("image"), f"{name}[{i}].image"),
                    asked(item["prompt"]),
                    item["target"],
                ),
            )
            for i, item in enumerate(row.get(name, []))
        ]

    own, alt = image(row["image"], "image"), row["alt"]
    other, m_loc = image(row["image_rephrase"], "image_rephrase"), image(row["m_loc"], "m_loc")
    extra = {name: several(name) for name in (HARD, *EXTRA)}
    reliability, hops = extra["reliability"], [kind for kind, _ in extra["portability"]]
    renamed = [place for name in IMAGES if (place := benchmark.named(name)) != name]
    return EditSample(
        id=id,
        request=EditRequest(own, asked(row["src"]), alt),
        text_generality=[EditRequest(own, asked(words), alt) for words in _given(row["rephrase"])],
        visual_generality=[] if other is None else [EditRequest(other, asked(row["src"]), alt)],
        text_locality=[
            EditRequest(None, style.unrelated(words, with_image=False), row["loc_ans"])
            for words in _given(row["loc"])
        ],
        visual_locality=[
            EditRequest(m_loc, style.unrelated(words, with_image=True), row["m_loc_a"])
            for words in _given(row["m_loc_q"])
        ],
        hard_locality=[request for _, request in extra[HARD]],
        portability=[request for _, request in extra["portability"]],
        text_reliability=[request for kind, request in reliability if kind == "text"],
        picture_reliability=[request for kind, request in reliability if kind == "picture"],
        linked=[request for _, request in extra["linked"]],
        meta={
            **({"portability_types": hops} if hops else {}),
            **({"image_fields": renamed} if renamed else {}),
            "task": task,
            "row": index,
            "pred": row["pred"],
            TYPES: [kind for kind, _ in extra[HARD]],
            **{k: v for k, v in row.items() if k not in (*ELEVEN, HARD, *EXTRA, "port_new")},
        },
    )


def typed_hard_locality(sample: EditSample) -> list[tuple[str, EditRequest]]:
    """The type of each hard locality input of a sample, such as "same_image_same_kind", and it.

    Raises:
        ValueError: The sample names types of another number of inputs.
    """
    types = sample.meta.get(TYPES) or [HARD_LOCALITY] * len(sample.hard_locality)
    return list(zip(types, sample.hard_locality, strict=True))


def _given(words: str) -> list[str]:
    return [words] if words else []


def _opener(
    names: Any,
    field: str,
    open_image: Callable[[Any], Image.Image],
    file: str,
    index: int,
) -> list[partial[Image.Image]] | None:
    """How the images of a field are opened; None for no image."""
    if names is None:
        return None
    return [partial(_open, open_image, n, file, index, at) for at, n in named(field, names)]


def image_names(
    row: Mapping[str, Any], fields: Iterable[str] = (*IMAGES, HARD, *EXTRA)
) -> list[tuple[str, Any]]:
    """(field, name) of every image that the row names in `fields`."""
    fields = tuple(fields)
    plain = [(field, row.get(field)) for field in IMAGES if field in fields]
    items = [
        (f"{name}[{i}].image", item.get("image"))
        for name in (HARD, *EXTRA)
        if name in fields
        for i, item in enumerate(row.get(name, []))
    ]
    every = [pair for pair in plain + items if pair[1] is not None]
    return [pair for field, names in every for pair in named(field, names)]


def _open(
    open_image: Callable[[Any], Image.Image], name: Any, file: str, index: int, field: str
) -> Image.Image:
    try:
        return open_image(name)
    except BadImage as error:
        raise RowError(str(error), file=file, row=index, field=field) from error
