"""`attrib.explore`: from a picture and a question to a page."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from PIL import Image

from attrib.data.image_sources import GivenImage, as_source, open_sources
from attrib.errors import AttribError
from attrib.explorer.deep import deep_data, other_picture, reliance_findings
from attrib.explorer.observe import (
    LITTLE_NOISE,
    MOST_HEATMAPS,
    MOST_LENSES,
    Observation,
    observe,
)
from attrib.explorer.page import Explorer
from attrib.explorer.payload import side_data
from attrib.explorer.questions import Asked, ask
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.report.page import visible
from attrib.vocabulary import Template

# Asked beside an edited question where no other one is given: no edit of one fact should move them.
CONTROLS = ("What is in the picture?", "How many things are in the picture?")
NAME = "explored"  # of the example: it seeds the noise


def explore(
    vlm: VLM,
    image: GivenImage | Sequence[GivenImage] | None,
    prompt: str,
    *,
    edit: Any = None,
    compare: VLM | None = None,
    deep: bool = False,
    also: Sequence[str] = (),
    other_image: GivenImage | None = None,
    template: Template | None = None,
    max_new_tokens: int = 16,
    noise: float = LITTLE_NOISE.noise,
    seed: int = 0,
    command: str = "",
) -> Explorer:
    """Make a page that shows where the answer to one question comes from.

    In a notebook the result shows itself; `save` writes it as one HTML file without network access.
    It costs one generation and one captured pass over the prompt and the answer.

    Args:
        vlm: The model.
        image: A picture or its path, several in a list, or None.
        prompt: The question.
        edit: An edit of `vlm` (`editors`): the page shows the model before and after it.
        compare: A second model, shown beside the first.
        deep: Add noise sensitivity and patching, which take some passes per layer.
        also: Other questions about the picture, answered before and after, or by both models.
        other_image: Picture whose states are patched in; by default one of the mean colour.
        template: "raw" or "chat", in place of the model's `template`.
        max_new_tokens: The longest answer.
        noise: Perturbation of the heatmaps, in standard deviations of the visual states.
        seed: Seed of the noise.
        command: The command line to show on the page.

    Raises:
        AttribError: A picture or prompt cannot be used, or `edit` and `compare` are both given.
    """
    if edit is not None and compare is not None:
        raise AttribError("edit and compare: give one of them, a page has two sides")
    images = open_sources(as_source(image))
    how = replace(LITTLE_NOISE, noise=noise, seed=seed)

    def encode(model: VLM, text: str, own: Sequence[Image.Image] = images) -> Batch:
        return model.encode([list(own) or None], [text], template=template).named([NAME])

    def look(model: VLM, applied: Any = None) -> Observation:
        most = (max_new_tokens, model.num_layers) if deep else (MOST_HEATMAPS, MOST_LENSES)
        batch = encode(model, prompt)
        return observe(
            model,
            batch,
            edit=applied,
            max_new_tokens=max_new_tokens,
            how=how,
            heatmaps=most[0],
            lenses=most[1],
        )

    sides = [(vlm.name, look(vlm))]
    if edit is not None:
        sides = [("before the edit", sides[0][1]), ("after the edit", look(vlm, edit))]
    elif compare is not None:
        sides.append((compare.name, look(compare)))
    asked: list[Asked] = []
    if len(sides) == 2:
        other = compare or vlm
        second = nullcontext if edit is None else lambda: edit.applied(vlm)
        texts = [prompt, *(also or (CONTROLS if edit is not None else ()))]
        asked = ask(encode, texts, ((vlm, nullcontext), (other, second)), edit, max_new_tokens)
    data: dict[str, Any] = {
        "prompt": visible(prompt),
        "command": visible(command),
        "template": template or vlm.template,
        "noise": noise,
        "seed": seed,
        "edited": edit is not None,
        "sides": [side_data(seen, label, images) for label, seen in sides],
        "asked": [_asked_data(one) for one in asked],
    }
    if deep:
        others = open_sources(as_source(other_image))
        fitted = [other_picture(one, *others[:1]) for one in images]
        kind = "the given one" if others else "a plain one of this picture's mean colour"
        for side, (_, seen) in zip(data["sides"], sides, strict=True):
            if edit is None or seen is sides[0][1]:
                other = encode(seen.vlm, prompt, fitted) if images else None
                side["deep"] = deep_data(seen.vlm, seen.batch, other, seed) | {"picture": kind}
                if images:
                    first = seen.first_answer
                    said = reliance_findings(seen.vlm, seen.batch, seen.answer, seed)
                    for finding, sentence in zip(side["findings"][first:], said, strict=True):
                        finding.append(sentence)
    return Explorer(data, tuple(seen for _, seen in sides), tuple(asked))


def _asked_data(one: Asked) -> dict[str, Any]:
    decision = one.decision
    return {
        "prompt": visible(one.prompt),
        "answers": [visible(text) for text in one.answers],
        "changed": one.changed,
        "divergence": None if one.divergence is None else round(one.divergence, 6),
        "gate": None if decision is None else {
            "score": _finite(decision.score), "threshold": _finite(decision.threshold),
            "open": decision.opens,
        },
        "edited": one.edited,
    }  # fmt: skip


def _finite(value: float) -> float | str:
    """A number as JSON can hold it: an open gate has the threshold -inf."""
    return round(value, 6) if abs(value) != float("inf") else str(value)
