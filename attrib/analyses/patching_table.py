"""Whose answer comes out, sample by sample: the request, and its prompt with another image."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from attrib.analyses.first_table import Tables
from attrib.analyses.patching import BROKEN, Patching, PatchSpan, clean_runs, patching_of
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy

STATISTICS = ("follows", "stays", "neither", "difference", "same_answer")


def measure_patching(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    spans: Sequence[PatchSpan] = ("visual", "last"),
    other: Image.Image | None = None,
    fit: bool = False,
) -> Tables:
    """The table "patching": example, layer, span, statistic, value, own, other, partner.

    Statistics are `follows`, `stays`, `neither` (0 or 1, together 1), `difference` (the normalised
    logit difference), all NaN where both images get the same answer; and `same_answer`, which marks
    such pairs with 1. `own` and `other` are the first tokens of the two answers.

    Args:
        vlm: The model.
        batch: The samples' requests.
        samples: Where the other images come from, see `partner`.
        spans: Where states are replaced.
        other: The other image of all samples, instead.
        fit: Crop and scale the other image to the size of the request's, so that models whose
            number of visual tokens depends on it can be patched.

    Raises:
        AttribError: A sample has no image, no partner, or one with other visual tokens.
    """
    pictures, names = zip(*(_partner_image(s, other, fit) for s in samples), strict=True)
    others = vlm.encode(list(pictures), [sample.request.prompt for sample in samples])
    runs = clean_runs(vlm, batch, others)
    parts = [patching_of(vlm, batch, runs, span) for span in spans]
    values = torch.stack([_statistics(part) for part in parts], dim=2).cpu().numpy()
    ids, layers = [sample.id for sample in samples], range(vlm.num_layers)
    table = tidy(values, example=ids, layer=layers, span=spans, statistic=STATISTICS)
    each = len(table) // len(samples)
    labels = {
        "own": _decoded(vlm, parts[0].own),
        "other": _decoded(vlm, parts[0].other),
        "partner": names,
    }
    columns = {name: np.repeat(np.array(v, dtype=object), each) for name, v in labels.items()}
    return {"patching": table.assign(**columns)}


def partner(sample: EditSample) -> tuple[str, Image.Image]:
    """The other image for a sample's question, and what it is.

    "same_question": the image of a hard locality input that asks the same. Else "unrelated": the
    image of its visual locality, which real data files have.

    Raises:
        AttribError: The sample has neither.
    """
    same = [r for r in sample.hard_locality if r.prompt == sample.request.prompt]
    for name, requests in (("same_question", same), ("unrelated", sample.visual_locality)):
        for request in requests:
            if (image := request.image) is not None:
                return name, image
    raise AttribError(
        "patching needs another image for the same question: a hard locality input that asks the "
        "same, an image for visual locality, or --other-image"
    )


def _partner_image(
    sample: EditSample, other: Image.Image | None, fit: bool
) -> tuple[Image.Image, str]:
    own = sample.request.image
    if own is None:
        raise AttribError("this request is text alone: patching needs an image, give one")
    name, image = partner(sample) if other is None else ("given", other)
    return (ImageOps.fit(image, own.size) if fit else image), name


def _statistics(parts: Patching) -> Float[Tensor, "batch layer statistic"]:
    same = parts.same_answer[:, None].float().expand_as(parts.difference)
    same = same.where((parts.answer != BROKEN) & (parts.own != BROKEN)[:, None], torch.nan)
    columns = [parts.follows, parts.stays, parts.neither, parts.difference, same]
    return torch.stack([column.float() for column in columns], dim=-1)


def _decoded(vlm: VLM, tokens: Int[Tensor, " batch"]) -> list[str]:
    return vlm.tokenizer.batch_decode(tokens.clamp(min=0)[:, None].tolist())
