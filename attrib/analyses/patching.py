"""Patch the states of another image into one layer and see which answer follows.

Two runs share a prompt and differ in the image. At the output of layer l the states of one span
(such as the visual tokens) are replaced by those of the other run, and the later layers run again.
If the answer becomes the other image's, the information that it needs is still at that span after
layer l. For the visual tokens the curve falls with depth, for the last prompt token it rises; in
between, visual information moves from the image's tokens to the last token.

Answers are argmax tokens after the prompt: the first token of the answer. This is activation
patching of the residual stream, also known as interchange intervention.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from attrib.analyses import prompts
from attrib.data import EditSample
from attrib.forward.hooks import gather_positions, position_index, read
from attrib.forward.replay import Captured, capture, forward_from
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.results import tidy
from attrib.runs.collected import Tables
from attrib.vocabulary import PatchSpan

STATISTICS = ("follows", "stays", "neither", "difference", "same_answer")
BROKEN = -1  # the answer of a run with NaN logits


class Patching(Tensor):
    """Float "batch layer": 1 where the answer follows the other image, else 0; and all statistics.

    Operations on it return plain tensors; its mean is the share of answers that follow. `follows`,
    `stays` and `neither` sum to 1. All are NaN for a pair with the same answer in both clean runs.

    Attributes:
        own: Int " batch", answer of the batch's clean run; -1 where its logits are NaN.
        other: Int " batch", answer of the other image's clean run.
        answer: Int "batch layer", answer with the other's states patched into each layer.
        difference: Float "batch layer", normalised logit difference. With d the logit of the
            other's answer minus that of the own answer, (d patched - d own) / (d other - d own): 0
            in the clean run, 1 in the other's. It varies widely, also beyond [0, 1], for pairs
            whose runs hardly differ: prefer its median.
    """

    own: Tensor
    other: Tensor
    answer: Tensor
    difference: Tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Return plain tensors from operations."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def of(
        cls,
        own: Int[Tensor, " batch"],
        other: Int[Tensor, " batch"],
        answer: Int[Tensor, "batch layer"],
        difference: Float[Tensor, "batch layer"],
    ) -> "Patching":
        """Derive the shares from the answers."""
        valid = (own != other) & (own != BROKEN) & (other != BROKEN)
        valid = valid[:, None] & (answer != BROKEN)
        follows = torch.where(valid, (answer == other[:, None]).float(), torch.nan)
        result = follows.as_subclass(cls)
        result.own, result.other = own, other
        result.answer, result.difference = answer, difference
        return result

    @property
    def follows(self) -> Float[Tensor, "batch layer"]:
        """1 where the answer is the other image's, else 0."""
        return self.as_subclass(Tensor)

    @property
    def stays(self) -> Float[Tensor, "batch layer"]:
        """1 where the answer is the own image's, else 0."""
        stays = (self.answer == self.own[:, None]).float()
        return torch.where(self.follows.isnan(), torch.nan, stays)

    @property
    def neither(self) -> Float[Tensor, "batch layer"]:
        """1 where the answer is a third one, else 0."""
        return 1 - self.follows - self.stays

    @property
    def same_answer(self) -> Bool[Tensor, " batch"]:
        """Pairs without information: both clean runs give the same answer."""
        return self.own == self.other


@dataclass(frozen=True, eq=False)
class CleanRuns:
    """Two unpatched runs: every layer's output, and the layer calls of the first."""

    captured: Captured
    own: dict[int, Tensor]
    other: dict[int, Tensor]


@torch.no_grad()
def patching(vlm: VLM, batch: Batch, other: Batch, span: PatchSpan = "visual") -> Patching:
    """Whether the answer follows the other image when its states are patched into layer l's output.

    1: the answer is the other image's. 0: it is the own or a third one (`Patching.stays`). NaN:
    both images have the same answer. Takes two forward passes, and half a pass per layer.

    Args:
        vlm: The model.
        batch: Prompts with images.
        other: The same prompts with other images, row by row.
        span: Where states are replaced: "visual", "text" (with the last token), "last" (the last
            prompt token) or "all" (the whole prompt: a control that always follows, except in
            models that add visual features after layer l, such as Qwen3-VL).

    Returns:
        A Float "batch layer" tensor that also holds the logit difference and the other statistics.

    Raises:
        AttribError: The two batches do not have the same tokens; the message names the row.
    """
    return patching_of(vlm, batch, clean_runs(vlm, batch, other), span)


def patching_difference(
    vlm: VLM, batch: Batch, other: Batch, span: PatchSpan = "visual"
) -> Float[Tensor, "batch layer"]:
    """`patching(...).difference`."""
    return patching(vlm, batch, other, span).difference


def patching_parts(vlm: VLM, batch: Batch, other: Batch, span: PatchSpan = "visual") -> Patching:
    """`patching`, under its former name."""
    return patching(vlm, batch, other, span)


def clean_runs(vlm: VLM, batch: Batch, other: Batch) -> CleanRuns:
    """Both unpatched runs, which serve any number of spans.

    Raises:
        AttribError: The two batches do not have the same tokens at the same places.
    """
    prompts.check_pairs(batch, other)
    with capture(vlm) as captured, read(vlm) as own:
        vlm.last_logits(batch)
    with read(vlm) as theirs:
        vlm.last_logits(other)
    return CleanRuns(captured, own, theirs)


def patching_of(vlm: VLM, batch: Batch, runs: CleanRuns, span: PatchSpan) -> Patching:
    """`patching` on the states of clean runs."""
    last = vlm.num_layers - 1
    own, other = (_last_logits(vlm, batch, run[last]) for run in (runs.own, runs.other))
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
    return Patching.of(first, second, torch.stack(answers, dim=1), moved / whole[:, None])


@torch.no_grad()
def patched_logits(
    vlm: VLM, batch: Batch, runs: CleanRuns, span: PatchSpan
) -> Iterator[Float[Tensor, "batch d_vocab"]]:
    """Logits after the prompt, with the other's states at `span` patched into layer 0, 1, ..."""
    at = prompts.span_positions(batch, span)[..., None]
    for layer in range(vlm.num_layers):
        own, other = runs.own[layer], runs.other[layer]
        hidden = torch.where(at.to(own.device), other, own)
        yield _last_logits(vlm, batch, forward_from(vlm, runs.captured, layer, hidden))


def _last_logits(
    vlm: VLM, batch: Batch, hidden: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch d_vocab"]:
    return vlm.unembed_float32(gather_positions(hidden, position_index(batch["last"])))


def _answer(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), BROKEN)


def measure_patching(
    vlm: VLM,
    batch: Batch,
    samples: Sequence[EditSample],
    *,
    spans: Sequence[PatchSpan] = ("visual", "last"),
    other: Image.Image | None = None,
    fit: bool = False,
    skip_blank: bool = False,
) -> Tables:
    """Table "patching": example, layer, span, statistic, value, own, other, partner.

    Statistics are those of `Patching`; `same_answer` is 1 for pairs without information. `own` and
    `other` are the first tokens of the two answers.

    Args:
        vlm: The model.
        batch: The samples' requests.
        samples: Source of the other images, see `partner`.
        spans: Where states are replaced.
        other: The other image for all samples, instead.
        fit: Crop and scale the other image to the size of the request's.
        skip_blank: Compare the first tokens with content, after blank tokens of the target.

    Raises:
        AttribError: A sample has no image, no partner, or one with other visual tokens.
    """
    answers = [s.request.target for s in samples] if skip_blank else None
    batch = prompts.after_space(vlm, batch, samples, answers) if answers else batch
    pictures, partners = zip(*(prompts.partner_image(s, other, fit) for s in samples), strict=True)
    others = vlm.encode(pictures, [s.request.prompt for s in samples], answers=answers)
    runs = clean_runs(vlm, batch, others)
    parts = [patching_of(vlm, batch, runs, span) for span in spans]
    values = torch.stack([_statistics(part) for part in parts], dim=2).cpu().numpy()
    ids, layers = [sample.id for sample in samples], range(vlm.num_layers)
    table = tidy(values, example=ids, layer=layers, span=spans, statistic=STATISTICS)
    said = {k: getattr(parts[0], k).clamp(min=0)[:, None].tolist() for k in ("own", "other")}
    columns = {k: vlm.tokenizer.batch_decode(v) for k, v in said.items()} | {"partner": partners}
    objects = {k: np.array(v, dtype=object) for k, v in columns.items()}
    repeated = {k: np.repeat(v, len(table) // len(ids)) for k, v in objects.items()}
    return {"patching": table.assign(**repeated)}


def _statistics(parts: Patching) -> Float[Tensor, "batch layer statistic"]:
    same = parts.same_answer[:, None].float().expand_as(parts.difference)
    same = same.where((parts.answer != BROKEN) & (parts.own != BROKEN)[:, None], torch.nan)
    columns = [parts.follows, parts.stays, parts.neither, parts.difference, same]
    return torch.stack([column.float() for column in columns], dim=-1)
