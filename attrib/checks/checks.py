"""What a model must satisfy: each check returns what it measured, or raises CheckFailed."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attrib.checks.inputs import CheckFailed, CheckInputs
from attrib.forward.attention import AttentionCall, attention_rows, capture_attention
from attrib.forward.hooks import gather_positions, read, write
from attrib.forward.replay import capture, logits_from
from attrib.forward.residual import residual_writes
from attrib.model.precision import ONE_STEP, WHOLE_PASS, token_directions
from attrib.vocabulary import Span


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
    vlm, last = inputs.vlm, inputs.batch["last"]
    with read(vlm), residual_writes(vlm, last), attention_rows(vlm, last), capture(vlm):
        hooked = vlm.logits(inputs.batch)
    return inputs.compare([(hooked[inputs.real], inputs.plain[inputs.real])], "logits")


def unembedded_last_output_is_the_logits(inputs: CheckInputs) -> str:
    """Final norm and output embedding turn the last output into the logits, also in float32."""
    vlm, plain = inputs.vlm, inputs.plain[inputs.real]
    final = inputs.hidden[vlm.num_layers - 1][inputs.real]
    return inputs.compare(((f(final), plain) for f in (vlm.unembed, vlm.unembed_float32)), "logits")


def residual_writes_add_up(inputs: CheckInputs) -> str:
    """Embedding, attention, MLP and writes between layers sum to the last state, where it is."""
    final = inputs.hidden[inputs.vlm.num_layers - 1]

    def sums(span: Span) -> tuple[Tensor, Tensor]:
        position = inputs.batch[span].int().argmax(1)  # 0 in rows without the span
        with residual_writes(inputs.vlm, position) as writes:
            inputs.vlm.logits(inputs.batch)
        if not torch.equal(writes.final, gather_positions(final, position).to(writes.final)):
            raise CheckFailed(f"the writes at {span} are those of another position")
        layers = writes.attn + writes.mlp + writes.between_layers
        return writes.embed + layers.sum(1), writes.final

    return inputs.compare(map(sums, ("last", "visual")), "sums", WHOLE_PASS)


def frozen_contributions_add_up_to_the_logit(inputs: CheckInputs) -> str:
    """Contributions under the frozen final norm sum to the top logit."""
    with residual_writes(inputs.vlm, inputs.batch["last"]) as writes:
        inputs.vlm.logits(inputs.batch)
    frozen = inputs.vlm.freeze_norm(writes.final)
    shares = frozen(writes.attn) + frozen(writes.mlp) + frozen(writes.between_layers)
    normed = frozen(writes.embed) + shares.sum(1) + frozen.constant
    logits = inputs.plain[inputs.batch["last"]].float()
    key = logits.argmax(-1)
    direction, bias = token_directions(inputs.vlm.components.head, key)
    ours = (normed * direction).sum(-1) + bias
    return inputs.compare([(ours, logits.gather(-1, key[:, None])[:, 0])], "logits")


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
    """Attention rows sum to 1 and, applied to the values, reproduce the output of sdpa.

    Also that of sdpa in float32, where a wrong row cannot hide in the rounding of the model.
    """
    calls: dict[int, AttentionCall] = {}
    with capture_attention(inputs.vlm, calls.__setitem__):
        inputs.vlm.logits(inputs.batch)
    if sorted(calls) != list(range(inputs.vlm.num_layers)):
        raise CheckFailed(f"attention was captured in layers {sorted(calls)} only")
    queries = inputs.batch["last"].int().argmax(1)
    rows = [(call, call.row(queries)) for call in calls.values()]
    what, outputs = "attention outputs", [(call, call.weighted_values(row)) for call, row in rows]
    inputs.compare(((row.sum(-1), torch.ones_like(row.sum(-1))) for _, row in rows), "sums")
    exact = {inputs.vlm.dtype: ONE_STEP[torch.float32]}
    inputs.compare(((ours, _float32_attention(c, queries)) for c, ours in outputs), what, exact)
    pairs = ((ours, gather_positions(call.out, queries)) for call, ours in outputs)
    return inputs.compare(pairs, what)


def _float32_attention(call: AttentionCall, queries: Tensor) -> Tensor:
    q = gather_positions(call.q.transpose(1, 2), queries).float()[:, :, None]
    k, v = (x.float().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (call.k, call.v))
    mask = call.bias(queries[:, None].to(q.device), torch.float32)
    return scaled_dot_product_attention(q, k, v, mask, scale=call.scaling)[:, :, 0]


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
    """An example has the same logits alone and in a batch."""

    def logits(row: int) -> tuple[Tensor, Tensor]:
        alone = inputs.vlm.encode([inputs.images[row]], [inputs.prompts[row]])
        return inputs.vlm.logits(alone)[0], inputs.plain[row, inputs.real[row]]

    return inputs.compare(map(logits, range(inputs.batch.size)), "logits", WHOLE_PASS)


def padding_side_does_not_matter(inputs: CheckInputs) -> str:
    """Left and right padding give the same logits."""
    right = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side="right")
    ours = inputs.vlm.logits(right)[right.inputs["attention_mask"].bool()]
    return inputs.compare([(ours, inputs.plain[inputs.real])], "logits", WHOLE_PASS)


def generation_does_not_depend_on_the_batch(inputs: CheckInputs) -> str:
    """Greedy text is the same alone, in a batch, and with right padding."""
    alone = [
        inputs.vlm.generate(inputs.vlm.encode([image], [prompt]), max_new_tokens=4)[0]
        for image, prompt in zip(inputs.images, inputs.prompts, strict=True)
    ]
    for side in ("left", "right"):
        batch = inputs.vlm.encode(inputs.images, inputs.prompts, padding_side=side)
        if (texts := inputs.vlm.generate(batch, max_new_tokens=4)) != alone:
            raise CheckFailed(f"padded on the {side}: {texts}, alone: {alone}")
    return "4 tokens, alone and padded on either side"


def generation_writes_the_prompt_once(inputs: CheckInputs) -> str:
    """During cached generation, `write` acts on the prompt and on no later position."""
    seen = []
    with write(inputs.vlm, 0, lambda h: seen.append(h.shape) or h * 0, inputs.batch["text"]):
        inputs.vlm.generate(inputs.batch, max_new_tokens=4, min_new_tokens=4)
    if seen != [inputs.hidden[0].shape]:
        raise CheckFailed(f"a write saw {[tuple(shape) for shape in seen]}")
    return f"one write of {tuple(seen[0])} in 4 tokens"


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
