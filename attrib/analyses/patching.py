"""Whose answer comes out when states of another image are put into one layer (modality patching).

Two runs share a prompt and differ in the image. At the output of layer l the states at one span
(the visual tokens, say) are replaced by those of the other run; the layers after l are run again.
If the other image's answer comes out, what the answer needs still stood at that span after layer l.
For the visual tokens the curve falls with depth, for the last prompt token it rises; between the
two, what was seen has passed from the image's tokens to the place where the answer is read.

Answers are argmax tokens behind the prompt: the first token of what would be said. Patching here is
activation patching of the residual stream, also known as interchange intervention.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from attrib.analyses.patching_pairs import check_pairs, partner_image, prompt_positions
from attrib.data import EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import gather_positions, position_index, read
from attrib.forward.replay import Captured, capture, forward_from
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collect import Tables

PatchSpan = Literal["visual", "text", "last", "all"]
SPANS: tuple[PatchSpan, ...] = get_args(PatchSpan)
BROKEN = -1  # the answer of a run without finite numbers


@dataclass(frozen=True, eq=False)
class Patching:
    """What comes out of the patched runs.

    The three shares sum to 1 for each pair and layer. They and `difference` are NaN for a pair
    whose clean runs give the same answer: there is nothing to follow.

    Attributes:
        own: answer of the clean run of the batch itself; -1 where numbers broke down.
        other: answer of the clean run of the other image.
        answer: answer with the other's states put into each layer.
        difference: normalised logit difference, see `patching_difference`.
    """

    own: Int[Tensor, " batch"]
    other: Int[Tensor, " batch"]
    answer: Int[Tensor, "batch layer"]
    difference: Float[Tensor, "batch layer"]

    @property
    def same_answer(self) -> Bool[Tensor, " batch"]:
        """Pairs that say nothing: both clean runs give the same answer."""
        return self.own == self.other

    @property
    def follows(self) -> Float[Tensor, "batch layer"]:
        """1 where the other image's answer comes out, else 0."""
        return self._where(self.answer == self.other[:, None])

    @property
    def stays(self) -> Float[Tensor, "batch layer"]:
        """1 where the own image's answer comes out, else 0."""
        return self._where(self.answer == self.own[:, None])

    @property
    def neither(self) -> Float[Tensor, "batch layer"]:
        """1 where a third answer comes out, else 0."""
        return 1 - self.follows - self.stays

    def _where(self, here: Bool[Tensor, "batch layer"]) -> Float[Tensor, "batch layer"]:
        told = (self.own != self.other) & (self.own != BROKEN) & (self.other != BROKEN)
        told = told[:, None] & (self.answer != BROKEN)
        return torch.where(told, here.float(), torch.nan)


@dataclass(frozen=True, eq=False)
class CleanRuns:
    """Two runs without a patch: every layer's output, and how the first called its layers."""

    captured: Captured
    own: dict[int, Tensor]
    other: dict[int, Tensor]


@torch.no_grad()
def patching(
    vlm: VLM, batch: Batch, other: Batch, span: PatchSpan = "visual"
) -> Float[Tensor, "batch layer"]:
    """Whether the other image's answer comes out with its states put into layer l's output.

    1: the other's answer comes out. 0: it does not; the own answer stays, or a third one comes out
    (`patching_parts` tells these two apart). NaN: both images get the same answer. The mean over
    examples is the share that follows the other image.

    Args:
        vlm: The model.
        batch: Prompts with images.
        other: The same prompts with other images, row by row.
        span: Where states are replaced: "visual", "text" (the words, the last one included), "last"
            (the last prompt token) or "all" (the whole prompt: a control, which follows always,
            save in models that feed the own image in again after layer l, as Qwen3-VL does).

    Raises:
        AttribError: The two batches do not have the same tokens; the message names the row.
    """
    return patching_parts(vlm, batch, other, span).follows


@torch.no_grad()
def patching_difference(
    vlm: VLM, batch: Batch, other: Batch, span: PatchSpan = "visual"
) -> Float[Tensor, "batch layer"]:
    """How far the logits go over to the other image's answer: 0 the clean run, 1 the other's.

    With d the logit of the other's answer minus that of the own answer,
    (d patched - d own) / (d other - d own). It may leave [0, 1], and swings widely for pairs whose
    two runs hardly differ: the median is the better summary. NaN where both answers are the same.
    """
    return patching_parts(vlm, batch, other, span).difference


@torch.no_grad()
def patching_parts(vlm: VLM, batch: Batch, other: Batch, span: PatchSpan = "visual") -> Patching:
    """Answers and logit differences of all patched runs; see `patching`.

    Two forward passes, then the layers after l for each l: half a pass per layer.
    """
    return patching_of(vlm, batch, clean_runs(vlm, batch, other), span)


def clean_runs(vlm: VLM, batch: Batch, other: Batch) -> CleanRuns:
    """Both runs; they serve any number of spans.

    Raises:
        AttribError: The two batches do not have the same tokens at the same places.
    """
    check_pairs(batch, other)
    with capture(vlm) as captured, read(vlm) as own:
        vlm.logits(batch)
    with read(vlm) as theirs:
        vlm.logits(other)
    return CleanRuns(captured, own, theirs)


def patching_of(vlm: VLM, batch: Batch, runs: CleanRuns, span: PatchSpan) -> Patching:
    """Patching of runs that are there already."""
    last = vlm.num_layers - 1
    own, other = (last_logits(vlm, batch, run[last]) for run in (runs.own, runs.other))
    first, second = _answer(own), _answer(other)

    def gap(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        row = torch.arange(batch.size, device=logits.device)
        return logits[row, second] - logits[row, first]

    answers, gaps = [], []
    for logits in patched_logits(vlm, batch, runs, span):
        answers.append(_answer(logits))
        gaps.append(gap(logits))
    moved = torch.stack(gaps, dim=1) - gap(own)[:, None]
    whole = (gap(other) - gap(own)).where(first != second, torch.nan)
    return Patching(first, second, torch.stack(answers, dim=1), moved / whole[:, None])


@torch.no_grad()
def patched_logits(
    vlm: VLM, batch: Batch, runs: CleanRuns, span: PatchSpan
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Logits behind the prompt with the other run's states at `span` put into layer 0, 1, ..."""
    at = span_positions(batch, span)[..., None]
    for layer in range(vlm.num_layers):
        own, other = runs.own[layer], runs.other[layer]
        hidden = torch.where(at.to(own.device), other, own)
        yield last_logits(vlm, batch, forward_from(vlm, runs.captured, layer, hidden))


def last_logits(
    vlm: VLM, batch: Batch, hidden: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch d_vocab"]:
    """Logits behind the prompt, from the last layer's output; float32 or better."""
    logits = vlm.unembed(gather_positions(hidden, position_index(batch["last"])))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def span_positions(batch: Batch, span: PatchSpan) -> Bool[Tensor, "batch pos"]:
    """The positions where states are replaced."""
    if span == "all":
        return prompt_positions(batch)
    if span not in SPANS:
        raise AttribError(f"span: expected one of {', '.join(SPANS)}, got {span!r}")
    return batch[span]


def _answer(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), BROKEN)


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
    pictures, names = zip(*(partner_image(s, other, fit) for s in samples), strict=True)
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


def _statistics(parts: Patching) -> Float[Tensor, "batch layer statistic"]:
    same = parts.same_answer[:, None].float().expand_as(parts.difference)
    same = same.where((parts.answer != BROKEN) & (parts.own != BROKEN)[:, None], torch.nan)
    columns = [parts.follows, parts.stays, parts.neither, parts.difference, same]
    return torch.stack([column.float() for column in columns], dim=-1)


def _decoded(vlm: VLM, tokens: Int[Tensor, " batch"]) -> list[str]:
    return vlm.tokenizer.batch_decode(tokens.clamp(min=0)[:, None].tolist())
