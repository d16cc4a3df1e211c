"""The same results without this package: what the benchmarks compare with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from attrib.forward.noise import base_noise
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

CHUNK = 32  # perturbed copies in one attention call


@contextmanager
def layer_calls(vlm: VLM) -> Iterator[dict[int, dict[str, Any]]]:
    """Record the arguments of every decoder layer in the forward pass inside the context."""
    calls: dict[int, dict[str, Any]] = {}

    def keep(layer: int) -> Callable:
        def hook(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[layer] = {"hidden_states": args[0], **kwargs} if args else dict(kwargs)

        return hook

    handles = [
        layer.register_forward_pre_hook(keep(i), with_kwargs=True)
        for i, layer in enumerate(vlm.layers)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def brute_heatmaps(
    vlm: VLM, batch: Batch, layers: Sequence[int], noise: float, sets: Tensor
) -> list[Tensor]:
    """VisEdit's Eqs. 6-8 literally: one attention call per perturbed set of tokens.

    Args:
        vlm: a LLaVA.
        batch: one example.
        layers: the layers to compute.
        noise: in standard deviations of the visual states.
        sets: Bool "set visual", the visual tokens that each copy perturbs.
    """
    with layer_calls(vlm) as calls:
        vlm.logits(batch)
    return [_brute_heatmap(vlm, batch, layer, calls[layer], noise, sets) for layer in layers]


def _brute_heatmap(
    vlm: VLM, batch: Batch, layer: int, call: dict[str, Any], noise: float, sets: Tensor
) -> Tensor:
    block: Any = vlm.layers[layer]
    h, at = call["hidden_states"], batch["visual"][0].nonzero()[:, 0]
    kwargs = {
        k: v
        for k, v in call.items()
        if k in ("attention_mask", "position_ids", "position_embeddings")
    }
    spread = noise * h[0, at].std() * base_noise(batch, "visual", vlm.d_model, seed=0)[0].to(h)

    def attend(states: Tensor) -> Tensor:
        return block.self_attn(hidden_states=block.input_layernorm(states), **kwargs)[0][:, -1]

    clean, found = attend(h), []
    for some in sets.split(CHUNK):
        copies = h.repeat(len(some), 1, 1)
        for copy, chosen in zip(copies, some, strict=True):
            copy[at[chosen]] += spread[at[chosen]]
        found.append(attend(copies))
    return (1 - torch.cosine_similarity(torch.cat(found), clean, dim=-1)) / 2


def single_tokens(visual: int) -> Tensor:
    """Sets of one visual token each."""
    return torch.eye(visual, dtype=torch.bool)


def neighbourhoods(side: int, radius: int) -> Tensor:
    """Sets of every visual token with its neighbours on the grid."""
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return (cells[:, None] - cells).abs().amax(-1) <= radius


def naive_sweep(
    vlm: VLM, batch: Batch, span: str, sigmas: Sequence[float], layers: Sequence[int]
) -> Tensor:
    """One whole forward pass per layer and sigma, with a hook that adds the noise."""
    spans = ("visual", "text") if span == "both" else (span,)
    clean = vlm.logits(batch)
    base = {s: base_noise(batch, s, vlm.d_model, seed=0) for s in spans}  # pyright: ignore[reportArgumentType]
    rows = []
    for layer in layers:
        for sigma in sigmas:

            def perturb(_module: object, _args: object, out: Any, sigma: float = sigma) -> Any:
                h = out[0] if isinstance(out, tuple) else out
                new = h.clone()
                for s in spans:
                    new = new + sigma * h[batch.spans[s]].std() * base[s].to(h)
                return (new, *out[1:]) if isinstance(out, tuple) else new

            handle = vlm.layers[layer].register_forward_hook(perturb)
            try:
                rows.append(kl(clean, vlm.logits(batch), batch["last"]))
            finally:
                handle.remove()
    return torch.stack(rows, 1)


def hugging_face_outputs(vlm: VLM, batch: Batch) -> object:
    """All hidden states and attention weights, with the options of transformers."""
    model: Any = vlm.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # sdpa gives no weights
    try:
        return model(
            **batch.inputs, output_attentions=True, output_hidden_states=True, use_cache=False
        )
    finally:
        model.set_attn_implementation(before)


def bridge_calls(vlm: VLM, batch: Batch) -> tuple[Callable[[], object], Callable[..., object]]:
    """TransformerLens on the same weights: a full cache, and a sweep with hooks."""
    bridge: Any = vlm.to_bridge()
    inputs = dict(batch.inputs)
    ids = inputs.pop("input_ids")
    inputs.pop("attention_mask", None)

    def cached() -> object:
        return bridge.run_with_cache(ids, **inputs)

    def swept(span: str, sigmas: Sequence[float], layers: Sequence[int]) -> Tensor:
        at, rows = batch.spans[span], []
        clean = bridge(ids, **inputs)
        noise = base_noise(batch, span, vlm.d_model, seed=0)  # pyright: ignore[reportArgumentType]
        for layer in layers:
            for sigma in sigmas:

                def perturb(h: Tensor, sigma: float = sigma, **_: object) -> Tensor:
                    return h + sigma * h[at].std() * noise.to(h)

                hooks = [(f"blocks.{layer}.hook_resid_post", perturb)]
                out = bridge.run_with_hooks(ids, fwd_hooks=hooks, **inputs)
                rows.append(kl(clean, out, batch["last"]))
        return torch.stack(rows, 1)

    return cached, swept


def nnsight_outputs(vlm: VLM, batch: Batch) -> Callable[[], object] | None:
    """A call that saves the outputs of attention and MLP with nnsight; None if not installed.

    Attention rows are not saved: nnsight has them only with eager attention.
    """
    try:
        import nnsight  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    model = nnsight.NNsight(vlm.model)

    def run() -> object:
        with model.trace(**batch.inputs, use_cache=False):
            saved = nnsight.save([])
            for layer in model.model.language_model.layers:
                saved.append((layer.self_attn.output[0], layer.mlp.output))
        return saved

    return run
