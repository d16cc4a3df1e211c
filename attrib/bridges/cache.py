"""One forward pass of ours as an ActivationCache of TransformerLens.

The names are those of TransformerLens; the numbers are captured on the untouched model, whether
TransformerLens can boot it or not, and at the wanted positions alone. `decompose_resid`,
`accumulated_resid`, `logit_attrs`, `stack_head_results` and `logit_lens` work on the cache.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens import ActivationCache

from attrib.bridges.cached_model import CachedModel
from attrib.errors import AttribError
from attrib.forward.attention import AttentionCall, capture_attention
from attrib.forward.hooks import gather_positions, position_index
from attrib.forward.residual import ResidualWrites, residual_writes
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


@torch.no_grad()
def cache(
    vlm: VLM, batch: Batch, positions: str = "last", *, attention: bool = True
) -> ActivationCache:
    """What a forward pass computed at some positions, under the names of TransformerLens.

    Per layer l: `blocks.{l}.hook_resid_pre`, `hook_attn_out`, `hook_resid_mid`, `hook_mlp_out`,
    `hook_resid_post`, "batch query d_model", and of its attention `attn.hook_pattern`, "batch heads
    query pos", and `attn.hook_z`, "batch query heads d_head". Besides, `hook_embed`: all that
    enters layer 0, so visual features and learned positions are in it; and `ln_final.hook_scale`.
    What is written between layers (Qwen3-VL, at visual positions) is `blocks.{l}.hook_between`,
    which `decompose_resid` does not know.

    Args:
        vlm: The model.
        batch: What to run.
        positions: "last", "all", or the name of another span. Query i is the i-th position of the
            span, with "all" that of the batch; where an example has none, there is NaN.
        attention: Whether to keep attention; patterns of "all" positions are large.

    Raises:
        AttribError: The batch has no such span, or attention that rows cannot be had of.
    """
    at, there = _chosen(batch, positions)
    found: dict[str, Tensor] = {}

    def listen(layer: int, call: AttentionCall) -> None:
        found[f"blocks.{layer}.attn.hook_pattern"] = call.row(at)
        found[f"blocks.{layer}.attn.hook_z"] = gather_positions(call.out, at)

    with residual_writes(vlm, at) as writes:
        if attention:
            with capture_attention(vlm, listen):
                vlm.logits(batch)
        else:
            vlm.logits(batch)
    found = _stream(writes) | found
    cached: dict[str, Tensor] = {}
    model = CachedModel(vlm, cached)
    final = found[f"blocks.{vlm.num_layers - 1}.hook_resid_post"]
    found["ln_final.hook_scale"] = model.final_scale(final)
    cached.update({name: _blank(name, value, there) for name, value in found.items()})
    return ActivationCache(cached, model)


def _chosen(
    batch: Batch, positions: str
) -> tuple[Int[Tensor, "batch query"], Bool[Tensor, "batch query"]]:
    """Which positions, and which of them an example does have; for others its last stands in."""
    if positions == "all":
        there = batch.inputs["attention_mask"].bool()
        at = torch.arange(there.shape[1], device=there.device).expand(there.shape)
    else:
        span = batch.spans.get(positions)
        if span is None or not span.any():
            have = [name for name, mask in batch.spans.items() if mask.any()]
            raise AttribError(f'positions: no {positions!r} here, expected "all" or one of {have}')
        at = span.int().argsort(dim=1, descending=True, stable=True)[:, : int(span.sum(1).max())]
        there = span.gather(1, at)
    return at.where(there, position_index(batch["last"])[:, None]), there


def _stream(writes: ResidualWrites) -> dict[str, Tensor]:
    found = {"hook_embed": writes.steps[0][0]}
    for layer, (before, attn, mlp, after) in sorted(writes.steps.items()):
        values = {"resid_pre": before, "attn_out": attn, "resid_mid": before + attn, "mlp_out": mlp}
        values["resid_post"] = after
        if layer + 1 in writes.steps and not torch.equal(writes.steps[layer + 1][0], after):
            values["between"] = writes.steps[layer + 1][0] - after
        found |= {f"blocks.{layer}.hook_{name}": value for name, value in values.items()}
    return found


def _blank(name: str, value: Tensor, there: Bool[Tensor, "batch query"]) -> Tensor:
    """NaN where an example has no such position."""
    if there.all():
        return value
    axis = 2 if name.endswith("hook_pattern") else 1
    shape = [1] * value.ndim
    shape[0], shape[axis] = there.shape
    return value.masked_fill(~there.reshape(shape).to(value.device), torch.nan)
