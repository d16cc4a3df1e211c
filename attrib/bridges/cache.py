"""One forward pass as a TransformerLens ActivationCache.

Hook names are those of TransformerLens. Values are captured on the unmodified model, whether or not
TransformerLens can boot it, and only at the requested positions. `decompose_resid`,
`accumulated_resid`, `logit_attrs`, `stack_head_results` and `logit_lens` work on the cache.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache

from attrib.errors import AttribError
from attrib.forward.attention import AttentionCall, capture_calls
from attrib.forward.hooks import gather_positions, on_modules, position_index
from attrib.forward.residual import ResidualWrites, residual_writes
from attrib.model.batch import Batch
from attrib.model.devices import loaded, loaded_weight
from attrib.model.logits import freeze_norm, probe_norm
from attrib.model.vlm import VLM


@torch.no_grad()
def cache(
    vlm: VLM, batch: Batch, positions: str = "last", *, attention: bool = True
) -> ActivationCache:
    """Return the activations of a forward pass at some positions, under TransformerLens names.

    Per layer l: `blocks.{l}.hook_resid_pre`, `hook_attn_out`, `hook_resid_mid`, `hook_mlp_out` and
    `hook_resid_post`, "batch query d_model"; of its attention `attn.hook_pattern`, "batch heads
    query pos", and `attn.hook_z`, "batch query heads d_head". Also `hook_embed`, the complete input
    of layer 0 including visual features and learned positions, and `ln_final.hook_scale`. Writes
    between layers (Qwen3-VL, at visual positions) are `blocks.{l}.hook_between`, which
    `decompose_resid` does not include.

    Args:
        vlm: The model.
        batch: The inputs of the pass.
        positions: "last", "all", or the name of another span. Query i is the i-th position of the
            span, or of the batch for "all"; NaN where an example has no such position.
        attention: Whether to keep attention; patterns of "all" positions are large.

    Raises:
        AttribError: The batch has no such span, or attention rows of the model are not supported.
    """
    at, present = _queries(batch, positions)
    found: dict[str, Tensor] = {}
    layer_of = {id(part): i for i, layer in enumerate(vlm.layers) for part in layer.modules()}
    attending: dict[int, str] = {}

    def listen(module: nn.Module, call: AttentionCall) -> None:
        if (layer := layer_of.get(id(module))) is not None:
            found[f"blocks.{layer}.attn.hook_pattern"] = call.row(at)
            found[name := f"blocks.{layer}.attn.hook_z"] = gather_positions(call.out, at)
            attending.update({id(part): name for part in module.modules()})

    def project(part: nn.Module, h: Tensor, *_: Any) -> None:
        """Take what the last projection of attention gets: in some models (Qwen3.5) gated."""
        z = found.get(attending.get(id(part), ""))
        if z is not None and h.ndim == 3 and h.shape[-1] == z.shape[-2:].numel():
            found[attending[id(part)]] = gather_positions(h, at).reshape(z.shape)

    linears = (part for part in vlm.layers.modules() if isinstance(part, nn.Linear))
    hooks = [(part, partial(project, part)) for part in linears if part.out_features == vlm.d_model]
    with residual_writes(vlm, at) as writes:
        if attention:
            with capture_calls(vlm.components.decoder, listen), on_modules(hooks, []):
                vlm.last_logits(batch)
        else:
            vlm.last_logits(batch)
    found = _residual_stream(writes) | found
    cached: dict[str, Tensor] = {}
    model = CachedModel(vlm, cached)
    final = found[f"blocks.{vlm.num_layers - 1}.hook_resid_post"]
    found["ln_final.hook_scale"] = model.final_scale(final)
    cached.update({name: _mask(name, value, present) for name, value in found.items()})
    return ActivationCache(cached, model)


def _queries(
    batch: Batch, positions: str
) -> tuple[Int[Tensor, "batch query"], Bool[Tensor, "batch query"]]:
    """Return positions, and which of them exist; missing ones are replaced by the last position."""
    if positions == "all":
        present = batch.inputs["attention_mask"].bool()
        at = torch.arange(present.shape[1], device=present.device).expand(present.shape)
    else:
        span = batch.spans.get(positions)
        if span is None or not span.any():
            have = [name for name, mask in batch.spans.items() if mask.any()]
            raise AttribError(f'positions: no {positions!r} here, expected "all" or one of {have}')
        at = span.int().argsort(dim=1, descending=True, stable=True)[:, : int(span.sum(1).max())]
        present = span.gather(1, at)
    return at.where(present, position_index(batch["last"])[:, None]), present


def _residual_stream(writes: ResidualWrites) -> dict[str, Tensor]:
    found = {"hook_embed": writes.steps[0][0]}
    for layer, (before, *written, after) in sorted(writes.steps.items()):
        # What modules write before the layer scales the stream, as `hook_resid_mid` is.
        attn, mlp, other = (write / writes.scales[layer] for write in written)
        values = {"resid_pre": before, "attn_out": attn, "resid_mid": before + attn, "mlp_out": mlp}
        values["resid_post"] = after
        if other.any():
            values["other_out"] = other
        if layer + 1 in writes.steps and not torch.equal(writes.steps[layer + 1][0], after):
            values["between"] = writes.steps[layer + 1][0] - after
        found |= {f"blocks.{layer}.hook_{name}": value for name, value in values.items()}
    return found


def _mask(name: str, value: Tensor, present: Bool[Tensor, "batch query"]) -> Tensor:
    """Return the value with NaN at missing positions."""
    if present.all():
        return value
    shape = [1] * value.ndim
    shape[0], shape[2 if name.endswith("hook_pattern") else 1] = present.shape
    return value.masked_fill(~present.reshape(shape).to(value.device), torch.nan)


class CachedModel:
    """The model interface that an ActivationCache needs, read-only, around the weights of a VLM.

    `W_U` is the model's own. The weight of the final norm is part of
    `tokens_to_residual_directions`, so `logit_attrs` gives the exact shares of a logit.

    Attributes:
        cfg: `n_layers`, `n_heads`, `d_model`, `d_head`, `d_vocab`, `normalization_type` and others.
        blocks: `attn.W_O` per layer.
        ln_final: The final norm.
        unembed: The output embedding.
    """

    def __init__(self, vlm: VLM, cached: dict[str, Tensor]):
        self.ln_final, self.unembed = vlm.components.norm, vlm.components.head
        self._vlm, self._map = vlm, vlm.unembedding.map
        like = torch.empty(vlm.d_model)
        self._norm_weight, _, centred = probe_norm(self.ln_final, like)
        self.cfg = _config(vlm, centred)
        self.blocks = [
            SimpleNamespace(attn=Heads(layer, i, cached)) for i, layer in enumerate(vlm.layers)
        ]

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self._vlm.tokenizer

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The output embedding times the factor of the model's logits, if there is one.

        A view without a factor, and a copy where it is offloaded.
        """
        return self._scaled(loaded_weight(self.unembed)).T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The bias of the output embedding, zeros if there is none."""
        with loaded(self.unembed):
            weight, bias = self.unembed.weight, self.unembed.bias
            return weight.new_zeros(len(weight)) if bias is None else self._map.after(bias)

    def _scaled(self, weight: Tensor) -> Tensor:
        return weight if self._map.factor == 1 else weight * self._map.factor

    def final_scale(
        self, h: Float[Tensor, "batch query d_model"]
    ) -> Float[Tensor, "batch query 1"]:
        """Divisor of the final norm: root mean square, or standard deviation for a LayerNorm."""
        gain = freeze_norm(self.ln_final, h.flatten(0, 1)).gain.unflatten(0, h.shape[:2])
        weight = self._norm_weight.to(gain.device)
        return weight.square().sum() / (gain * weight).sum(-1, keepdim=True)

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """Directions of tokens in the residual stream, before the final norm's division."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        weight = loaded_weight(self.unembed)
        rows = self._scaled(weight[torch.as_tensor(tokens, device=weight.device)].float())
        return rows * self._norm_weight.to(rows.device)

    def to_single_token(self, text: str) -> int:
        """Return the id of a text that is a single token.

        Raises:
            AttribError: It is several tokens; `VLM.answer_token` gives the first of them.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise AttribError(f"{text!r} is {len(ids)} tokens, expected one; give token ids")
        return ids[0]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{name}: caches of vlm.cache() only have the residual stream and the output embedding "
            "of their model; vlm.to_bridge() has everything that TransformerLens offers"
        )


class Heads:
    """The output projection of one layer's attention, for `stack_head_results`."""

    def __init__(self, layer: nn.Module, index: int, cached: dict[str, Tensor]):
        self._layer, self._index, self._cached = layer, index, cached

    @property
    def W_O(self) -> Float[Tensor, "heads d_head d_model"]:
        """The linear module of the layer that maps head outputs to attention's write.

        Raises:
            AttribError: There is none, because the write passes a norm after the projection
                (Gemma 3), so that heads have no separate shares in it.
        """
        z = self._cached[f"blocks.{self._index}.attn.hook_z"]
        write = self._cached[f"blocks.{self._index}.hook_attn_out"]
        present = ~write.isnan().any(-1)
        z, write = z[present], write[present]
        allowed = 64 * torch.finfo(write.dtype).eps * write.float().norm()
        for module in self._layer.modules():
            if isinstance(module, nn.Linear) and module.in_features == z[0].numel():
                out = module(z.flatten(1))
                if out.shape == write.shape and (out - write).float().norm() <= allowed:
                    return loaded_weight(module).T.unflatten(0, z.shape[1:])
        raise AttribError(
            f"layer {self._index}: attention's write to the residual stream is not a linear map of "
            "its heads, so there are no head results to stack"
        )


def _config(vlm: VLM, centred: bool) -> SimpleNamespace:
    text, head = vlm.model.config.get_text_config(), vlm.components.head
    heads = text.num_attention_heads
    return SimpleNamespace(
        model_name=vlm.name,
        n_layers=vlm.num_layers,
        n_heads=heads,
        d_model=vlm.d_model,
        d_head=getattr(text, "head_dim", None) or vlm.d_model // heads,
        d_vocab=head.out_features,
        normalization_type="LN" if centred else "RMS",
        final_rms=not centred,
        attn_only=False,
        device=str(vlm.device),
        dtype=head.weight.dtype,
    )
