"""What every model must satisfy for the numbers of this package to mean something.

A claim is a function of a given, a model with a small batch; it returns what it measured, or raises
`CheckFailed`. `attrib.checks.run` runs them.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attrib.forward.attention import AttentionCall, tap_attention
from attrib.forward.hooks import attention_rows, capture, read, resume, write
from attrib.forward.residual_writes import residual_writes
from attrib.model.batch import Batch, Span
from attrib.model.vlm import VLM


class CheckFailed(Exception):
    """A claim does not hold; the message says what was measured."""


def _picture(width: int, height: int) -> Image.Image:
    """A picture in which every place looks different."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    channels = torch.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 13) % 256], -1)
    return Image.fromarray(channels.to(torch.uint8).numpy())


@dataclass(frozen=True, eq=False)
class CheckInputs:
    """A model and the examples it is checked on: two images of different shape, one text alone."""

    vlm: VLM
    images: Sequence[Image.Image | None] = (_picture(96, 64), None, _picture(60, 90))
    prompts: Sequence[str] = ("What is in the picture?", "nq question: who?", "Two words:")

    @cached_property
    def batch(self) -> Batch:
        """All examples, padded on the left."""
        return self.vlm.encode(self.images, self.prompts, padding_side="left")

    @cached_property
    def real(self) -> Tensor:
        """Where `batch` is not padding."""
        return self.batch.inputs["attention_mask"].bool()

    @cached_property
    def plain(self) -> Tensor:
        """Logits of a forward pass without hooks, "batch pos d_vocab"."""
        return self.vlm.logits(self.batch)

    @cached_property
    def hidden(self) -> dict[int, Tensor]:
        """Every layer's output in a plain forward pass."""
        with read(self.vlm) as hidden:
            self.vlm.logits(self.batch)
        return hidden

    def equal(self, pairs: Iterable[tuple[Tensor, Tensor]], limit: float, what: str) -> str:
        """How far pairs are apart at most, in words; CheckFailed where it is more than `limit`.

        The limit is meant for float32 and values around 1: it grows with both.
        """
        rounding = torch.finfo(self.vlm.model.dtype).eps / torch.finfo(torch.float32).eps
        worst = 0.0
        for a, b in pairs:
            allowed = limit * rounding * max(1.0, float(b.abs().max()))
            error = float((a.float() - b.float()).abs().max())
            if not error <= allowed:
                raise CheckFailed(f"{what} differ by {error:.1e}, more than {allowed:.1e}")
            worst = max(worst, error)
        return f"{what} differ by {worst:.1e}"


def spans_partition_the_prompt(given: CheckInputs) -> str:
    """Visual, text and BOS are disjoint and cover what is not padding; one last position each."""
    spans = given.batch.spans
    parts = torch.stack([spans[name] for name in ("visual", "text", "bos") if name in spans])
    if not torch.equal(parts.sum(0), given.real.long()):
        raise CheckFailed("spans overlap or leave tokens out")
    if not (spans["last"].sum(1) == 1).all() or (spans["last"] & ~given.real).any():
        raise CheckFailed("an example has no last position, or it is padding")
    counts = spans["visual"].sum(1).tolist()
    if [count > 0 for count in counts] != [image is not None for image in given.images]:
        raise CheckFailed(f"visual tokens: {counts}, with images in the 1st and 3rd example")
    return f"visual tokens per example: {counts}"


def hooked_logits_equal_plain_ones(given: CheckInputs) -> str:
    """Reading everything at once leaves the logits as they are (limit 5e-5)."""
    vlm, last = given.vlm, given.batch["last"]
    with read(vlm), residual_writes(vlm, last), attention_rows(vlm, last), capture(vlm):
        hooked = vlm.logits(given.batch)
    return given.equal([(hooked[given.real], given.plain[given.real])], 5e-5, "logits")


def unembedded_last_output_is_the_logits(given: CheckInputs) -> str:
    """Final norm and output embedding turn the last layer's output into the logits."""
    ours = given.vlm.unembed(given.hidden[given.vlm.num_layers - 1])
    return given.equal([(ours[given.real], given.plain[given.real])], 5e-5, "logits")


def residual_writes_add_up(given: CheckInputs) -> str:
    """Embedding, attention, MLP and what is written between layers make the last state."""

    def sums(span: Span) -> tuple[Tensor, Tensor]:
        position = given.batch[span].int().argmax(1)  # of rows without the span, the first
        with residual_writes(given.vlm, position) as writes:
            given.vlm.logits(given.batch)
        return writes.embed + (writes.attn + writes.mlp + writes.between_layers).sum(
            1
        ), writes.final

    return given.equal(map(sums, ("last", "visual")), 1e-5, "sums")


def frozen_contributions_add_up_to_the_logit(given: CheckInputs) -> str:
    """Shares under the final norm, its statistics frozen, sum to the top logit (limit 1e-4)."""
    with residual_writes(given.vlm, given.batch["last"]) as writes:
        given.vlm.logits(given.batch)
    frozen, head = given.vlm.freeze_norm(writes.final), given.vlm.components.head
    shares = frozen(writes.attn) + frozen(writes.mlp) + frozen(writes.between_layers)
    normed = frozen(writes.embed) + shares.sum(1) + frozen.constant
    logits = given.plain[given.batch["last"]].float()
    key = logits.argmax(-1)
    ours = (normed * head.weight[key].float()).sum(-1)
    if head.bias is not None:
        ours = ours + head.bias[key].float()
    return given.equal([(ours, logits.gather(-1, key[:, None])[:, 0])], 1e-4, "logits")


def write_is_confined_to_its_span(given: CheckInputs) -> str:
    """Zeros written at one span are there, and every other position is bit-identical."""
    layer = given.vlm.num_layers // 2
    for span in ("visual", "text", "last"):
        at = given.batch[span]
        with write(given.vlm, layer, torch.zeros_like, at), read(given.vlm, [layer]) as written:
            changed = given.vlm.logits(given.batch)
        if not torch.equal(written[layer][~at], given.hidden[layer][~at]):
            raise CheckFailed(f"writing at {span} of layer {layer} changed other positions")
        if written[layer][at].any():
            raise CheckFailed(f"what was written at {span} of layer {layer} is not there")
        if torch.equal(changed, given.plain):
            raise CheckFailed(f"writing at {span} of layer {layer} does not reach the logits")
    return f"layer {layer}, bit-identical outside visual, text and last"


def hooks_are_gone_after_an_error(given: CheckInputs) -> str:
    """An error inside all contexts leaves no hook, and the attention function as it was."""
    vlm, last = given.vlm, given.batch["last"]

    def state() -> tuple[int, set[str]]:
        parts: list[Any] = list(vlm.model.modules())
        hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)
        names = {part.config._attn_implementation for part in parts if hasattr(part, "config")}
        return hooks, names

    before = entered = state()
    with (
        suppress(InterruptedError), read(vlm), write(vlm, 0, torch.zeros_like, last),
        residual_writes(vlm, last), attention_rows(vlm, last), capture(vlm),
    ):  # fmt: skip
        entered = state()
        raise InterruptedError
    if state() != before:
        raise CheckFailed(f"(hooks, attention functions) were {before} and are now {state()}")
    return f"{entered[0] - before[0]} hooks registered, all removed"


def attention_rows_are_the_models(given: CheckInputs) -> str:
    """Rows sum to 1, and applied to the values they give what sdpa gave."""
    calls: dict[int, AttentionCall] = {}
    with tap_attention(given.vlm, calls.__setitem__):
        given.vlm.logits(given.batch)
    if sorted(calls) != list(range(given.vlm.num_layers)):
        raise CheckFailed(f"attention was seen in layers {sorted(calls)} of {given.vlm.num_layers}")
    queries = given.batch["last"].int().argmax(1)
    rows = [(call, call.row(queries)) for call in calls.values()]
    given.equal(((row.sum(-1), torch.ones_like(row.sum(-1))) for _, row in rows), 1e-5, "sums")
    outputs = ((call.mixed(row), call.output_at(queries)) for call, row in rows)
    return given.equal(outputs, 1e-5, "attention outputs")


def resume_is_bit_equal(given: CheckInputs) -> str:
    """Re-running the later layers on the pass's own states gives its logits to the last bit."""
    with capture(given.vlm) as captured:
        logits = given.vlm.logits(given.batch)
    for layer in range(-1, given.vlm.num_layers):
        hidden = captured.embed if layer < 0 else given.hidden[layer]
        if not torch.equal(resume(given.vlm, captured, layer, hidden), logits):
            raise CheckFailed(f"resuming after layer {layer} gives other logits")
    return f"after each of {given.vlm.num_layers} layers and the embedding"


def one_example_equals_a_batch(given: CheckInputs) -> str:
    """An example has the same logits alone and beside longer ones (limit 1e-5)."""

    def logits(row: int) -> tuple[Tensor, Tensor]:
        alone = given.vlm.encode([given.images[row]], [given.prompts[row]])
        return given.vlm.logits(alone)[0], given.plain[row, given.real[row]]

    return given.equal(map(logits, range(given.batch.size)), 1e-5, "logits")


def padding_side_does_not_matter(given: CheckInputs) -> str:
    """Padding on the left and on the right give the same logits (limit 1e-5)."""
    right = given.vlm.encode(given.images, given.prompts, padding_side="right")
    ours = given.vlm.logits(right)[right.inputs["attention_mask"].bool()]
    return given.equal([(ours, given.plain[given.real])], 1e-5, "logits")


def generation_does_not_depend_on_the_batch(given: CheckInputs) -> str:
    """Greedy text is the same alone, in a batch, and padded on the right."""
    alone = [
        given.vlm.generate(given.vlm.encode([image], [prompt]), max_new_tokens=4)[0]
        for image, prompt in zip(given.images, given.prompts, strict=True)
    ]
    for side in ("left", "right"):
        batch = given.vlm.encode(given.images, given.prompts, padding_side=side)
        if (texts := given.vlm.generate(batch, max_new_tokens=4)) != alone:
            raise CheckFailed(f"padded on the {side}: {texts}, alone: {alone}")
    return "4 tokens, alone and padded on either side"


def generation_writes_the_prompt_once(given: CheckInputs) -> str:
    """With a cache, a write sees the prompt and no later position, and changes what comes after."""
    seen = []
    with write(given.vlm, 0, lambda h: seen.append(h.shape) or h * 0, given.batch["text"]):
        given.vlm.generate(given.batch, max_new_tokens=4, min_new_tokens=4)
    if seen != [given.hidden[0].shape]:
        raise CheckFailed(f"a write saw {[tuple(shape) for shape in seen]}")
    return f"one write of {tuple(seen[0])} in 4 tokens"


def grids_fit_the_visual_tokens(given: CheckInputs) -> str:
    """Grids have as many cells as the image has tokens for them, or are honestly absent."""
    counts = given.batch["visual"].sum(1).tolist()
    for image, grid, count in zip(given.images, given.batch.grids, counts, strict=True):
        if grid is not None:
            left, top, right, bottom = grid.box
            fits = grid.first + grid.rows * grid.cols <= count and left < right and top < bottom
            if image is None or not fits:
                raise CheckFailed(f"{grid} for {count} visual tokens")
    grids = (grid and f"{grid.rows}x{grid.cols}" for grid in given.batch.grids)
    return f"{', '.join(map(str, grids))} for {counts} visual tokens"
