"""What an ActivationCache asks its model for, answered by a VLM without copying its weights."""

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attrib.errors import AttribError
from attrib.model.components import freeze_norm
from attrib.model.vlm import VLM

PROBE = 1e3  # so large that the norm's epsilon vanishes beside it


class CachedModel:
    """The model behind a cache: read-only, and only what the methods of a cache need.

    `W_U` is the model's own; the gain of the final norm is in `tokens_to_residual_directions`, so
    that `logit_attrs` gives the exact shares of a logit, without any processing of weights.

    Attributes:
        cfg: `n_layers`, `n_heads`, `d_model`, `d_head`, `d_vocab`, `normalization_type` and the
            like.
        blocks: Per layer `attn.W_O`.
        ln_final: The final norm itself.
        unembed: The output embedding itself.
    """

    def __init__(self, vlm: VLM, found: dict[str, Tensor]):
        self.ln_final, self.unembed = vlm.components.norm, vlm.components.head
        self._vlm = vlm
        device = next(self.ln_final.parameters()).device
        probe = torch.full((1, vlm.d_model), PROBE, device=device)
        probe[:, 1::2] *= -1  # mean 0 and a known root mean square
        frozen = freeze_norm(self.ln_final, probe)
        self._gain = frozen.gain[0] * PROBE
        self.cfg = _config(vlm, centred=frozen.centred)
        self.blocks = [
            SimpleNamespace(attn=Heads(layer, i, found)) for i, layer in enumerate(vlm.layers)
        ]

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self._vlm.tokenizer

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The output embedding, a view."""
        return self.unembed.weight.T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The bias of the output embedding, zeros if there is none."""
        weight, bias = self.unembed.weight, self.unembed.bias
        return weight.new_zeros(len(weight)) if bias is None else bias

    def final_scale(
        self, h: Float[Tensor, "batch query d_model"]
    ) -> Float[Tensor, "batch query 1"]:
        """What the final norm divides states by: root mean square, or standard deviation."""
        frozen = freeze_norm(self.ln_final, h.flatten(0, 1)).gain.unflatten(0, h.shape[:2])
        gain = self._gain.to(frozen.device)
        return gain.square().sum() / (frozen * gain).sum(-1, keepdim=True)

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*tokens d_model"]:
        """Directions of tokens in the residual stream, before the final norm's division."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        weight = self.unembed.weight
        rows = weight[torch.as_tensor(tokens, device=weight.device)].float()
        return rows * self._gain.to(rows.device)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            AttribError: It is several; `VLM.answer_token` gives the first of them.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise AttribError(f"{text!r} is {len(ids)} tokens, expected one; give token ids")
        return ids[0]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{name}: a cache of vlm.cache() knows of its model the residual stream and the output "
            "embedding alone; vlm.to_bridge() has all that TransformerLens knows"
        )


class Heads:
    """The output projection of one layer's attention, for `stack_head_results`."""

    def __init__(self, layer: nn.Module, index: int, found: dict[str, Tensor]):
        self._layer, self._index = layer, index
        self._found = found

    @property
    def W_O(self) -> Float[Tensor, "heads d_head d_model"]:
        """Which linear map of the layer it is, is found by what it makes of the heads' outputs.

        Raises:
            AttribError: None makes attention's write of them: the write passes a norm after the
                projection (Gemma 3), and heads have no share in it of their own.
        """
        z = self._found[f"blocks.{self._index}.attn.hook_z"]
        write = self._found[f"blocks.{self._index}.hook_attn_out"]
        known = ~write.isnan().any(-1)
        z, write = z[known], write[known]
        for module in self._layer.modules():
            if isinstance(module, nn.Linear) and module.in_features == z[0].numel():
                out = module(z.flatten(1))
                if out.shape == write.shape and _close(out, write):
                    return module.weight.T.unflatten(0, z.shape[1:])
        raise AttribError(
            f"layer {self._index}: attention's write to the residual stream is not a linear map of "
            "its heads, so they have no results to stack"
        )


def _close(out: Tensor, write: Tensor) -> bool:
    eps = 64 * torch.finfo(write.dtype).eps
    return bool((out - write).float().norm() <= eps * write.float().norm())


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
