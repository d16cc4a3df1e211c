"""How far each layer's attention and MLP push the key token (VisEdit, Eqs. 1-5, Figs. 1, 5 and 6).

The hidden state of the last prompt token is a sum of writes: the embedding, then the output of
each layer's attention and MLP. A write r speaks for the key token o* through its logit v and its
probability p,

    v = (r W_U)[o*],   p = softmax(r W_U)[o*],   M = the largest |v| of an example (Eq. 5)
    contribution = sign(v) sqrt(p |v| / M)                                         (Eq. 3)

The paper takes the root of v / M as it is, which a negative v does not have; like the authors'
program we keep the sign outside. That program also puts the final norm before W_U (`norm="final"`):
every write then speaks at full volume, and logits no longer add up over layers. With the norm's
statistics frozen at the true last state they do add up (`norm="frozen"`, direct logit attribution).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from attrib.errors import AttribError
from attrib.forward.residual import ResidualWrites
from attrib.forward.residual_writes import residual_writes
from attrib.model.batch import Batch
from attrib.model.vlm import VLM

MODULES = ("attn", "mlp")
Norm = Literal["none", "final", "frozen"]
Key = Literal["argmax", "gold"] | Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions and what they are made of.

    Attributes:
        value: the contribution, as `contributions` returns it.
        logit: v, the key token's logit read from the module's output alone.
        probability: p, its probability; one for `norm="frozen"`, where no share has a softmax.
        key: the key token of each example.
    """

    value: Float[Tensor, "batch layer module"]
    logit: Float[Tensor, "batch layer module"]
    probability: Float[Tensor, "batch layer module"]
    key: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class DirectLogits:
    """The key token's logit as a sum: every write's share, under the final norm frozen.

    Attributes:
        modules: shares of attention and MLP of each layer.
        embed: share of the embedding that enters layer 0.
        between_layers: shares of writes between layers (visual features of some models).
        constant: what no write causes: biases of the final norm and of the output embedding.
        key: the key token of each example.
    """

    modules: Float[Tensor, "batch layer module"]
    embed: Float[Tensor, " batch"]
    between_layers: Float[Tensor, "batch layer"]
    constant: Float[Tensor, " batch"]
    key: Int[Tensor, " batch"]

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The sum of all shares: the logit the model gives the key token."""
        return self.modules.sum((1, 2)) + self.between_layers.sum(1) + self.embed + self.constant


@torch.no_grad()
def contributions(
    vlm: VLM, batch: Batch, key: Key = "argmax", norm: Norm = "none"
) -> Float[Tensor, "batch layer module"]:
    """Contribution of each layer's (attention, MLP) at the last prompt token to the key token.

    Args:
        vlm: the model.
        batch: prompts with their images.
        key: "argmax", the token the model predicts; "gold", the first token of the batch's target;
            or one token id per example (a wrong one is the control of VisEdit, Fig. 6).
        norm: "none", the paper: within [-1, 1]. "final", the authors' program: the final norm
            first, likewise within [-1, 1]. "frozen": shares of the key token's logit, in logits;
            together with the rest of `direct_logits` they sum to it.
    """
    return contribution_parts(vlm, batch, key, norm).value


@torch.no_grad()
def contribution_parts(
    vlm: VLM, batch: Batch, key: Key = "argmax", norm: Norm = "none"
) -> Contributions:
    """What `contributions` returns, with the logits, probabilities and keys it is made of."""
    writes = last_writes(vlm, batch)
    return contributions_of(vlm, writes, key_tokens(vlm, batch, writes, key), norm)


@torch.no_grad()
def direct_logits(vlm: VLM, batch: Batch, key: Key = "argmax") -> DirectLogits:
    """The key token's logit at the last prompt token, taken apart into the share of every write."""
    writes = last_writes(vlm, batch)
    return direct_logits_of(vlm, writes, key_tokens(vlm, batch, writes, key))


def last_writes(vlm: VLM, batch: Batch) -> ResidualWrites:
    """All writes to the residual stream at the last prompt token, from one forward pass."""
    with residual_writes(vlm, batch["last"]) as writes:
        vlm.logits(batch)
    return writes


def key_tokens(vlm: VLM, batch: Batch, writes: ResidualWrites, key: Key) -> Int[Tensor, " batch"]:
    """The key token id of each example; see `contributions` for what `key` may be."""
    logits = vlm.unembed(writes.final)
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
    return batch.labels[batch["last"]].to(writes.final.device)


def contributions_of(
    vlm: VLM, writes: ResidualWrites, key: Int[Tensor, " batch"], norm: Norm
) -> Contributions:
    """Contributions of captured writes; no forward pass."""
    if norm == "frozen":
        shares = direct_logits_of(vlm, writes, key).modules
        return Contributions(shares, shares, torch.ones_like(shares), key)
    if norm not in ("none", "final"):
        raise AttribError(f'norm: expected "none", "final" or "frozen", got {norm!r}')
    modules, weight = _modules(writes), _weight(vlm)
    logit, logp = [], []
    for layer in range(vlm.num_layers):  # layer by layer: a vocabulary is wide
        write = modules[:, layer]
        # The paper's r W_V has neither norm nor bias.
        logits = vlm.unembed(write).float() if norm == "final" else linear(write.float(), weight)
        logit.append(_at(logits, key))
        logp.append(logit[-1] - logits.logsumexp(-1))
    v, p = torch.stack(logit, 1), torch.stack(logp, 1).exp()
    largest = v.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return Contributions(v.sign() * (p * v.abs() / largest).sqrt(), v, p, key)


def direct_logits_of(vlm: VLM, writes: ResidualWrites, key: Int[Tensor, " batch"]) -> DirectLogits:
    """Shares of captured writes in the key token's logit; no forward pass."""
    frozen = vlm.freeze_norm(writes.final)
    direction = _weight(vlm)[key]

    def share(write: Tensor) -> Tensor:
        across = direction.reshape(len(direction), *[1] * (write.ndim - 2), -1)
        return (frozen(write) * across).sum(-1)

    bias = getattr(vlm.components.head, "bias", None)
    constant = direction @ frozen.constant
    if isinstance(bias, Tensor):
        constant = constant + bias.float()[key]
    modules = share(_modules(writes))
    return DirectLogits(modules, share(writes.embed), share(writes.between_layers), constant, key)


def _modules(writes: ResidualWrites) -> Float[Tensor, "batch layer module d_model"]:
    return torch.stack([writes.attn, writes.mlp], dim=2)


def _weight(vlm: VLM) -> Float[Tensor, "d_vocab d_model"]:
    weight = vlm.components.head.weight
    assert isinstance(weight, Tensor)
    return weight.float()


def _at(
    logits: Float[Tensor, "batch module d_vocab"], key: Int[Tensor, " batch"]
) -> Float[Tensor, "batch module"]:
    return logits.gather(-1, key[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
