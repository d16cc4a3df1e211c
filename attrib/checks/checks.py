"""What a model must satisfy: each check returns what it measured, or raises CheckFailed."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attrib.forward.attention import AttentionCall, attention_rows, capture_attention
from attrib.forward.hooks import gather_positions, read, write
from attrib.forward.replay import capture, logits_from
from attrib.forward.residual import residual_writes
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.vocabulary import Span


class CheckFailed(Exception):
    """A check failed; the message says what was measured."""


def _gradient(width: int, height: int) -> Image.Image:
    """Return an image without repeated patches."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    channels = torch.stack([x * 255 // width, y * 255 // height, (x * 7 + y * 13) % 256], -1)
    return Image.fromarray(channels.to(torch.uint8).numpy())


@dataclass(frozen=True, eq=False)
class CheckInputs:
    """A model and its examples: two images of different shape, and one text without image."""

    vlm: VLM
    images: Sequence[Image.Image | None] = (_gradient(96, 64), None, _gradient(60, 90))
    prompts: Sequence[str] = ("What is in the picture?", "nq question: who?", "Two words:")

    @cached_property
    def batch(self) -> Batch:
        """All examples, padded on the left."""
        return self.vlm.encode(self.images, self.prompts, padding_side="left")

    @cached_property
    def real(self) -> Tensor:
        """True where `batch` is not padding."""
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

    def compare(self, pairs: Iterable[tuple[Tensor, Tensor]], limit: float, what: str) -> str:
        """Return the largest difference within pairs, as text.

        Raises:
            CheckFailed: One exceeds the limit, which scales with dtype eps and values above 1.
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


def spans_partition_the_prompt(inputs: CheckInputs) -> str:
    """Visual, text and BOS are disjoint and cover all real tokens; one last position each."""
    spans = inputs.batch.spans
    parts = torch.stack([spans[name] for name in ("visual", "text", "bos") if name in spans])
    if not torch.equal(parts.sum(0), inputs.real.long()):
        raise CheckFailed("spans overlap or leave tokens out")
    if not (spans["last"].sum(1) == 1).all() or (spans["last"] & ~inputs.real).any():
        raise CheckFailed("an example has no last position, or it is padding")
    counts = spans["visual"].sum(1).tolist()
    if [count > 0 for count in counts] != [image is not None for image in inputs.images]:
        raise CheckFailed(f"visual tokens: {counts}, with images in the 1st and 3rd example")
    return f"visual tokens per example: {counts}"


def hooked_logits_equal_plain_ones(inputs: CheckInputs) -> str:
    """All reading contexts together leave the logits unchanged (limit 5e-5)."""
    vlm, last = inputs.vlm, inputs.batch["last"]
    with read(vlm), residual_writes(vlm, last), attention_rows(vlm, last), capture(vlm):
        hooked = vlm.logits(inputs.batch)
    return inputs.compare([(hooked[inputs.real], inputs.plain[inputs.real])], 5e-5, "logits")


def unembedded_last_output_is_the_logits(inputs: CheckInputs) -> str:
    """Final norm and output embedding turn the last layer's output into the logits."""
    ours = inputs.vlm.unembed(inputs.hidden[inputs.vlm.num_layers - 1])
    return inputs.compare([(ours[inputs.real], inputs.plain[inputs.real])], 5e-5, "logits")


def residual_writes_add_up(inputs: CheckInputs) -> str:
    """Embedding, attention, MLP and writes between layers sum to the last state."""

    def sums(span: Span) -> tuple[Tensor, Tensor]:
        position = inputs.batch[span].int().argmax(1)  # 0 in rows without the span
        with residual_writes(inputs.vlm, position) as writes:
            inputs.vlm.logits(inputs.batch)
        layers = writes.attn + writes.mlp + writes.between_layers
        return writes.embed + layers.sum(1), writes.final

    return inputs.compare(map(sums, ("last", "visual")), 1e-5, "sums")


def frozen_contributions_add_up_to_the_logit(inputs: CheckInputs) -> str:
    """Contributions under the frozen final norm sum to the top logit (limit 1e-4)."""
    with residual_writes(inputs.vlm, inputs.batch["last"]) as writes:
        inputs.vlm.logits(inputs.batch)
    frozen, head = inputs.vlm.freeze_norm(writes.final), inputs.vlm.components.head
    shares = frozen(writes.attn) + frozen(writes.mlp) + frozen(writes.between_layers)
    normed = frozen(writes.embed) + shares.sum(1) + frozen.constant
    logits = inputs.plain[inputs.batch["last"]].float()
    key = logits.argmax(-1)
    ours = (normed * head.weight[key].float()).sum(-1)
    if head.bias is not None:
        ours = ours + head.bias[key].float()
    return inputs.compare([(ours, logits.gather(-1, key[:, None])[:, 0])], 1e-4, "logits")


def write_is_confined_to_its_span(inputs: CheckInputs) -> str:
    """Zeros written to one span are there, and every other position is bit-identical."""
    layer = inputs.vlm.num_layers // 2
    for span in ("visual", "text", "last"):
        at, site = inputs.batch[span], f"writing at {span} of layer {layer}"
        with write(inputs.vlm, layer, torch.zeros_like, at), read(inputs.vlm, [layer]) as written:
            changed = inputs.vlm.logits(inputs.batch)
        if not torch.equal(written[layer][~at], inputs.hidden[layer][~at]):
            raise CheckFailed(f"{site} changed other positions")
        if written[layer][at].any():
            raise CheckFailed(f"{site} had no effect there")
        if torch.equal(changed, inputs.plain):
            raise CheckFailed(f"{site} does not reach the logits")
    return f"layer {layer}, bit-identical outside visual, text and last"


def hooks_are_gone_after_an_error(inputs: CheckInputs) -> str:
    """An error inside all contexts leaves no hook and restores the attention function."""
    vlm, last = inputs.vlm, inputs.batch["last"]

    def state() -> tuple[int, set[str]]:
        modules: list[Any] = list(vlm.model.modules())
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        names = {m.config._attn_implementation for m in modules if hasattr(m, "config")}
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


def attention_rows_are_the_models(inputs: CheckInputs) -> str:
    """Attention rows sum to 1 and, applied to the values, reproduce the output of sdpa."""
    calls: dict[int, AttentionCall] = {}
    with capture_attention(inputs.vlm, calls.__setitem__):
        inputs.vlm.logits(inputs.batch)
    if sorted(calls) != list(range(inputs.vlm.num_layers)):
        raise CheckFailed(f"attention was captured in layers {sorted(calls)} only")
    queries = inputs.batch["last"].int().argmax(1)
    rows = [(call, call.row(queries)) for call in calls.values()]
    inputs.compare(((row.sum(-1), torch.ones_like(row.sum(-1))) for _, row in rows), 1e-5, "sums")
    outputs = ((c.weighted_values(row), gather_positions(c.out, queries)) for c, row in rows)
    return inputs.compare(outputs, 1e-5, "attention outputs")


def resume_is_bit_equal(inputs: CheckInputs) -> str:
    """Replaying the later layers on a pass's own states reproduces its logits bit for bit."""
    with capture(inputs.vlm) as captured:
        logits = inputs.vlm.logits(inputs.batch)
    for layer in range(-1, inputs.vlm.num_layers):
        hidden = captured.embed if layer < 0 else inputs.hidden[layer]
        if not torch.equal(logits_from(inputs.vlm, captured, layer, hidden), logits):
            raise CheckFailed(f"replaying after layer {layer} gives other logits")
    return f"after each of {inputs.vlm.num_layers} layers and the embedding"


def one_example_equals_a_batch(inputs: CheckInputs) -> str:
    """An example has the same logits alone and in a batch (limit 1e-5)."""

    def logits(row: int) -> tuple[Tensor, Tensor]:
        alone = inputs.vlm.encode([inputs.images[row]], [inputs.prompts[row]])
        return inputs.vlm.logits(alone)[0], inputs.plain[row, inputs.real[row]]

    return inputs.compare(map(logits, range(inputs.batch.size)), 1e-5, "logits")


def padding_side_does_not_matter(inputs: CheckInputs) -> str:
    """Left and right padding give the same logits (limit 1e-5)."""
    right = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side="right")
    ours = inputs.vlm.logits(right)[right.inputs["attention_mask"].bool()]
    return inputs.compare([(ours, inputs.plain[inputs.real])], 1e-5, "logits")


def grids_fit_the_visual_tokens(inputs: CheckInputs) -> str:
    """Every grid has at most as many cells as its image has visual tokens, or there is none."""
    counts = inputs.batch["visual"].sum(1).tolist()
    for image, grid, count in zip(inputs.images, inputs.batch.grids, counts, strict=True):
        if grid is not None:
            left, top, right, bottom = grid.box
            fits = grid.first + grid.rows * grid.cols <= count and left < right and top < bottom
            if image is None or not fits:
                raise CheckFailed(f"{grid} for {count} visual tokens")
    grids = (grid and f"{grid.rows}x{grid.cols}" for grid in inputs.batch.grids)
    return f"{', '.join(map(str, grids))} for {counts} visual tokens"
