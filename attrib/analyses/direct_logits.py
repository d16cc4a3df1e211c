"""Direct logit attribution: the logit of the key token as a sum of writes (VisEdit, Eq. 2)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.residual import ResidualWrites, residual_writes
from attrib.model.answers import without_blank
from attrib.model.batch import Batch
from attrib.model.logits import LogitMap
from attrib.model.vlm import VLM

MODULES = ("attn", "mlp")
Key = Literal["argmax", "gold"] | Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class DirectLogits:
    """The key token's logit as a sum of the shares of all writes, with the final norm frozen.

    A soft-cap (Gemma 4) is no sum of shares: where a model has one, the shares are of the logit
    before it.

    Attributes:
        modules: Shares of attention and MLP of each layer.
        embed: Share of the embedding that enters layer 0.
        between_layers: Shares of other writes (visual features, per-layer embeddings).
        constant: Biases of the final norm and of the output embedding.
        key: The key token of each example.
        cap: The model's soft-cap of its logits, None without one.
    """

    modules: Float[Tensor, "batch layer module"]
    embed: Float[Tensor, " batch"]
    between_layers: Float[Tensor, "batch layer"]
    constant: Float[Tensor, " batch"]
    key: Int[Tensor, " batch"]
    cap: float | None = None

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The sum of all shares: the model's logit of the key token, before a soft-cap."""
        return self.modules.sum((1, 2)) + self.between_layers.sum(1) + self.embed + self.constant

    @property
    def logit(self) -> Float[Tensor, " batch"]:
        """The model's logit of the key token."""
        return LogitMap(cap=self.cap).capped(self.total)


@torch.no_grad()
def direct_logits(vlm: VLM, batch: Batch, key: Key = "argmax") -> DirectLogits:
    """Decompose the key token's logit at the last prompt token into the shares of all writes."""
    writes = last_writes(vlm, batch)
    return direct_logits_of(vlm, writes, key_tokens(vlm, batch, writes, key))


def direct_logits_of(vlm: VLM, writes: ResidualWrites, key: Int[Tensor, " batch"]) -> DirectLogits:
    """`direct_logits` of captured writes, without a forward pass."""
    frozen = vlm.unembedding.freeze_norm(writes.final)
    rows = vlm.unembedding.directions(key)
    direction, bias = (row.float().to(frozen.gain.device) for row in rows)

    def share(write: Tensor) -> Tensor:
        shape = (len(direction), *[1] * (write.ndim - 2), -1)
        return (frozen(write) * direction.reshape(shape)).sum(-1)

    constant = direction @ frozen.constant + bias
    modules = share(module_writes(writes))
    others = share(writes.embed), share(writes.between_layers)
    return DirectLogits(modules, *others, constant, key, vlm.unembedding.map.cap)


def last_writes(vlm: VLM, batch: Batch) -> ResidualWrites:
    """All writes to the residual stream at the last prompt token, from one forward pass."""
    with residual_writes(vlm, batch["last"]) as writes:
        vlm.last_logits(batch)
    return writes


def module_writes(writes: ResidualWrites) -> Float[Tensor, "batch layer module d_model"]:
    """The writes of attention and MLP, in the order of `MODULES`."""
    return torch.stack([writes.attn, writes.mlp], dim=2)


def key_tokens(vlm: VLM, batch: Batch, writes: ResidualWrites, key: Key) -> Int[Tensor, " batch"]:
    """The key token id of each example; see `contributions` for valid values of `key`."""
    logits = vlm.unembed_float32(writes.final)
    if isinstance(key, Tensor):
        d_vocab = logits.shape[-1]
        if key.shape != (batch.size,) or not bool(((key >= 0) & (key < d_vocab)).all()):
            raise AttribError(
                f"key: expected {batch.size} token ids below {d_vocab}, one per example, got "
                f"{tuple(key.shape)} with values {key.flatten()[:8].tolist()}"
            )
        return key.to(writes.final.device)
    if key == "argmax":
        return logits.argmax(-1)
    if key != "gold":
        raise AttribError(
            f'key: expected "argmax", "gold" or one token id per example, got {key!r}'
        )
    if batch.labels is None:
        raise AttribError('key "gold" needs targets: vlm.encode(images, prompts, targets)')
    if vlm.processor is None:
        return batch.labels[batch["last"]].to(writes.final.device)
    targets = zip(batch.inputs["input_ids"], batch["target"], strict=True)
    content = [without_blank(vlm.tokenizer, ids[at].tolist())[0] for ids, at in targets]
    return torch.tensor(content, device=writes.final.device)
