"""What a model must satisfy: each check returns what it measured, or raises CheckFailed."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attrib.checks.inputs import FAILURES, CheckFailed, CheckInputs, all_readings
from attrib.errors import AttribError
from attrib.forward.hooks import gather_positions, on_input, read, write
from attrib.forward.layer_call import NoCacheError, keys_values
from attrib.forward.residual import ResidualWrites
from attrib.model.batch import Batch
from attrib.model.precision import ONE_STEP, WHOLE_PASS
from attrib.model.vlm import VLM
from attrib.vocabulary import Span

# A fault of no context of ours: no hook is in these passes.
OWN = "without any hook the model's logits depend on the {}: use --batch-size 1"

# Of `ONE_STEP`: the limit of a head's error. Honest ones are 2e-7 in float32, 4e-4 in float16 and
# 3e-3 in bfloat16 (14 architectures, smol-llava), those of a query one position too early 1e-2.
HEAD_SHARE = 0.2


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
    """All reading contexts together leave the logits unchanged."""
    hooked = inputs.hooked.logits[0]
    return inputs.compare([(hooked[inputs.real], inputs.plain[inputs.real])], "logits")


def unembedded_last_output_is_the_logits(inputs: CheckInputs) -> str:
    """Final norm and output embedding turn the last output into the logits, also in float32."""
    vlm, plain = inputs.vlm, inputs.plain[inputs.real]
    final = inputs.hidden[vlm.num_layers - 1][inputs.real]
    return inputs.compare(((f(final), plain) for f in (vlm.unembed, vlm.unembed_float32)), "logits")


def residual_writes_add_up(inputs: CheckInputs) -> str:
    """Embedding, attention, MLP and writes between layers sum to the last state, where it is."""
    final = inputs.hidden[inputs.vlm.num_layers - 1]

    def sums(span: Span, writes: ResidualWrites) -> tuple[Tensor, Tensor]:
        position = inputs.batch[span].int().argmax(1)  # 0 in rows without the span
        if not torch.equal(writes.final, gather_positions(final, position).to(writes.final)):
            raise CheckFailed(f"the writes at {span} are those of another position")
        layers = writes.attn + writes.mlp + writes.between_layers
        return writes.embed + layers.sum(1), writes.final

    pairs = [sums(span, writes) for span, writes in inputs.hooked.writes.items()]
    return inputs.compare(pairs, "sums", WHOLE_PASS)


def frozen_contributions_add_up_to_the_logit(inputs: CheckInputs) -> str:
    """Contributions under the frozen final norm sum to the top logit, before a soft-cap."""
    writes = inputs.hooked.writes["last"]
    frozen = inputs.vlm.unembedding.freeze_norm(writes.final)
    shares = frozen(writes.attn) + frozen(writes.mlp) + frozen(writes.between_layers)
    normed = frozen(writes.embed) + shares.sum(1) + frozen.constant
    logits = inputs.plain[inputs.batch["last"]].float()
    key = logits.argmax(-1)
    direction, bias = inputs.vlm.unembedding.directions(key)
    ours = inputs.vlm.unembedding.map.capped((normed * direction).sum(-1) + bias)
    return inputs.compare([(ours, logits.gather(-1, key[:, None])[:, 0])], "logits")


def write_is_confined_to_its_span(inputs: CheckInputs) -> str:
    """Zeros written to one span are there, and every other position is bit-identical.

    One pass for all spans: visual of the first example, last of the second, text of the third.
    """
    spans: tuple[Span, ...] = ("visual", "last", "text")
    vlm = inputs.vlm
    layer = vlm.num_layers // 2
    at = torch.stack([inputs.batch[span][row] for row, span in enumerate(spans)])
    with write(vlm, layer, torch.zeros_like, at), read(vlm, [layer]) as hidden:
        changed = vlm.logits(inputs.batch)
    written, clean = hidden[layer], inputs.hidden[layer]
    for row, (span, inside) in enumerate(zip(spans, at.to(written.device), strict=True)):
        site = f"writing at {span} of layer {layer}"
        if not torch.equal(written[row][~inside], clean[row][~inside]):
            raise CheckFailed(f"{site} changed other positions")
        if written[row][inside].any():
            raise CheckFailed(f"{site} had no effect there")
        if torch.equal(changed[row], inputs.plain[row]):
            raise CheckFailed(f"{site} does not reach the logits")
    return f"layer {layer}, bit-identical outside visual, text and last"


def hooks_are_gone_after_an_error(inputs: CheckInputs) -> str:
    """An error inside all contexts leaves no hook and restores the attention function."""
    vlm = inputs.vlm

    def state() -> tuple[int, set[str]]:
        modules: list[Any] = list(vlm.model.modules())
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        names = {m.config._attn_implementation for m in modules if hasattr(m, "config")}
        return hooks, {f"{name}: {ALL_ATTENTION_FUNCTIONS.get(name)}" for name in names}

    before = entered = state()
    with (
        suppress(InterruptedError),
        all_readings(vlm, inputs.batch),
        write(vlm, 0, torch.zeros_like, inputs.batch["last"]),
    ):
        entered = state()
        raise InterruptedError
    if state() != before:
        raise CheckFailed(f"(hooks, attention functions) were {before} and are now {state()}")
    return f"{entered[0] - before[0]} hooks registered, all removed"


def attention_rows_are_the_models(inputs: CheckInputs) -> str:
    """Attention rows sum to 1 and, applied to the values, reproduce the output of attention.

    Also that in float32, where a wrong row cannot hide in the rounding of the model. Each
    head's output is compared by its own size: queries rotated by one position too few, also those
    of one head, change it by 1 % or more.
    """
    found = inputs.hooked.attention
    total = inputs.vlm.num_layers
    if not found or _attends_unseen(inputs, [i for i in range(total) if i not in found]):
        raise CheckFailed(f"attention was captured in layers {sorted(found)} only")
    what, layers = "attention outputs", found.values()
    rows = (one.row.sum(-1) for one in layers)
    inputs.compare(((total, torch.ones_like(total)) for total in rows), "sums")
    exact = {inputs.vlm.dtype: ONE_STEP[torch.float32]}
    inputs.compare(((one.ours, one.exact) for one in layers), what, exact)
    worst = max(_error_of_heads(one.ours, one.out) for one in layers)
    if not worst <= (limit := HEAD_SHARE * ONE_STEP[inputs.vlm.dtype]):
        told = f"the {what} of a head differ by {worst:.1e} of their size"
        raise CheckFailed(f"{told}, more than {limit:.1e}")
    measured = inputs.compare(((one.ours, one.out) for one in layers), what)
    some = f"; layers {sorted(found)} of {total} attend" if len(found) < total else ""
    return measured + some


def _error_of_heads(ours: Tensor, out: Tensor) -> float:
    """The largest root mean square of a head's error, relative to that of its output."""
    error, size = (x.float().square().mean((0, -1)).sqrt() for x in (ours - out, out))
    # Below its smallest normal number a dtype rounds by a fixed amount.
    return float((error / size.clamp(min=torch.finfo(out.dtype).tiny)).max())


def _attends_unseen(inputs: CheckInputs, layers: Sequence[int]) -> bool:
    """Whether one of `layers` keeps keys and values, as layers that attend do."""
    captured = inputs.replayable.captured
    for i in layers:
        h = inputs.hidden[i - 1] if i else captured.embed
        # Linear attention and state-space layers want another cache, and raise as they like.
        with suppress(NoCacheError, *FAILURES):
            keys_values(inputs.vlm.layers[i], captured.entering(i, h), captured.calls[i])
            return True
    return False


def one_example_equals_a_batch(inputs: CheckInputs) -> str:
    """An example has the same logits alone and in a batch."""
    vlm = inputs.vlm

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for row, alone in enumerate(inputs.generated_alone):
            batch = inputs.plain[row, inputs.real[row]]
            yield vlm.unembed(alone.prompt)[0], batch
            if inputs.images[row] is None:  # few tokens, most padding: also without a cache
                yield vlm.logits(vlm.encode([None], [inputs.prompts[row]]))[0], batch

    try:
        return inputs.compare(pairs(), "logits", WHOLE_PASS)
    except CheckFailed as failure:
        each = zip(inputs.images, inputs.prompts, inputs.plain, inputs.real, strict=True)
        plain = ((vlm.logits(vlm.encode([i], [p]))[0], rows[at]) for i, p, rows, at in each)
        if all(torch.allclose(*pair, 1e-3, 1e-3) for pair in plain):
            raise
        raise CheckFailed(f"{failure}; {OWN.format('batch')}") from failure


def padding_side_does_not_matter(inputs: CheckInputs) -> str:
    """Left and right padding give the same logits."""
    right = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side="right")
    ours = inputs.vlm.logits(right)[right.inputs["attention_mask"].bool()]
    try:
        return inputs.compare([(ours, inputs.plain[inputs.real])], "logits", WHOLE_PASS)
    except CheckFailed as failure:
        raise CheckFailed(f"{failure}; {OWN.format('padding')}") from failure


def grids_fit_the_visual_tokens(inputs: CheckInputs) -> str:
    """Every grid has at most as many cells as its image has visual tokens, or there is none."""
    counts = inputs.batch["visual"].sum(1).tolist()
    grids = [own[0].grid if own else None for own in inputs.batch.pictures]
    for image, grid, count in zip(inputs.images, grids, counts, strict=True):
        if grid is not None:
            left, top, right, bottom = grid.box
            fits = grid.first + grid.rows * grid.cols <= count and left < right and top < bottom
            if image is None or not fits:
                raise CheckFailed(f"{grid} for {count} visual tokens")
    shapes = (grid and f"{grid.rows}x{grid.cols}" for grid in grids)
    return f"{', '.join(map(str, shapes))} for {counts} visual tokens"


def each_picture_has_its_own_tokens(inputs: CheckInputs) -> str:
    """Of two images in a prompt, a change of the second reaches its own tokens and no others."""
    alone = inputs.batch["visual"].sum(1).tolist()
    first, second = (image for image in inputs.images if image is not None)
    pairs = [[first, second], [first, second.rotate(180)]]
    try:
        batch, changed = (inputs.vlm.encode([pair], inputs.prompts[:1]) for pair in pairs)
    except AttribError as error:
        return f"several are refused: {error}"
    own, total = batch.picture(1)[0], int(batch["visual"].sum())
    before, after = (_embedded(inputs.vlm, one) for one in (batch, changed))
    own = own.to(before.device)
    # Not bit for bit: quantised towers round all images by one scale.
    others = [(after[..., ~own, :], before[..., ~own, :])]
    inputs.compare(others, "states outside the second image", WHOLE_PASS)
    moved = int((after != before).any(-1)[..., own].sum())
    if 2 * moved < own.sum():  # all but those that end rows, or show its margin
        raise CheckFailed(f"{moved} of the second image's {int(own.sum())} tokens change")
    return f"{int(own.sum())} of {total} are of the second image, {alone[-1]} where it is alone"


def _embedded(vlm: VLM, batch: Batch) -> Tensor:
    """The states that enter the first layer; no layer runs."""
    found: list[Tensor] = []

    def keep(h: Tensor, *_: object) -> None:
        found.append(h)
        raise InterruptedError

    with suppress(InterruptedError), on_input(vlm.layers[0], keep):
        vlm.last_logits(batch)
    return found[0]
