"""The first report on a model: contributions, their control, attention, and examples to look at."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from attrib.analyses.contributions import measure_first_report
from attrib.data import EditData, EditSample, Quarantined
from attrib.data.loading import SCENES
from attrib.model.vlm import VLM
from attrib.results import Result
from attrib.runs.collect import collect
from attrib.runs.provenance import provenance_of

CARDS = 8
CARD_PIXELS = 320  # the longer side; larger pictures are made smaller


@dataclass(frozen=True)
class Card:
    """One example to look at."""

    image: bytes | None  # PNG
    prompt: str
    truth: str
    answer: str
    right: bool
    kind: str


@dataclass(frozen=True)
class Study:
    """Everything the page shows.

    Attributes:
        results: "contributions", "wrong_key", "attention" and "answers".
        cards: examples, the first of each kind first.
        quarantined: rows that were set aside.
        provenance: of the results.
        commands: what to type to get the same again.
    """

    results: Mapping[str, Result]
    cards: Sequence[Card]
    quarantined: Sequence[Quarantined]
    provenance: Mapping[str, Any]
    commands: Sequence[str]


def study(
    vlm: VLM,
    data: EditData,
    *,
    batch_size: int = 16,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    commands: Sequence[str] = (),
) -> Study:
    """Measure a model on `data`, one forward pass per sample, and let it answer.

    Args:
        vlm: the model.
        data: samples with images.
        batch_size: samples per pass.
        seed: of the bootstrap intervals.
        options: what the user chose, for the provenance.
        commands: how to get the same again.
    """
    # What scenes ask about is as their `pred` says: their target is what an edit would make of it.
    truth = _pred if data.name in SCENES else _target
    measure = partial(measure_first_report, norm="none", truth=truth)
    done = collect(vlm, data, measure, batch_size=batch_size, what="report")
    made = provenance_of(vlm, data, options or {}, seed, done)
    results = {name: Result(name, table, made) for name, table in done.tables.items()}
    answers = results["answers"].frame.set_index("example")
    chosen = _one_of_each_kind(done.used)[:CARDS]
    cards = [_card(sample, answers.loc[sample.id]) for sample in chosen]
    return Study(results, cards, [*data.quarantined, *done.quarantined], made, commands)


def _one_of_each_kind(samples: Sequence[EditSample]) -> list[EditSample]:
    """The samples, reordered: the first of each kind, then the second of each, ..."""
    seen: dict[str, int] = {}
    rank = []
    for sample in samples:
        kind = _kind(sample)
        seen[kind] = seen.get(kind, -1) + 1
        rank.append(seen[kind])
    order = sorted(range(len(samples)), key=rank.__getitem__)
    return [samples[i] for i in order]


def _card(sample: EditSample, said: Any) -> Card:
    image = sample.request.image
    return Card(
        image=None if image is None else small_png(image),
        prompt=sample.request.prompt,
        truth=said["truth"],
        answer=said["answer"],
        right=bool(said["value"]),
        kind=_kind(sample),
    )


def _pred(sample: EditSample) -> str:
    return sample.meta["pred"]


def _target(sample: EditSample) -> str:
    return sample.request.target


def _kind(sample: EditSample) -> str:
    return str(sample.meta.get("kind", ""))


def small_png(image: Image.Image) -> bytes:
    """The image as PNG, made smaller where it is large."""
    small = image.copy()
    small.thumbnail((CARD_PIXELS, CARD_PIXELS))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return file.getvalue()
