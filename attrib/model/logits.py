"""From the last layer's output to the model's logits, whatever the model does to its head's output.

    logits = cap(factor * head(norm(h))),   cap(x) = c tanh(x / c)

Some models scale their logits, soft-cap them, or mask tokens that they never generate. What they
do is found once, by structure (`attrib.model.probe`). A logit is linear in the normed state up to
the cap: decompositions are of the logit before the cap.
"""

import inspect
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from attrib.errors import AttribError
from attrib.model import precision
from attrib.model.batch import Batch
from attrib.model.components import Components
from attrib.model.devices import execution_device, float_copy


@dataclass(frozen=True)
class Factor:
    """Multiplication by a number, or division by it: the two round differently."""

    value: float = 1.0
    divides: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` times the factor."""
        if self.value == 1:
            return x
        return x / self.value if self.divides else x * self.value

    @property
    def size(self) -> float:
        """What it multiplies by."""
        return 1 / self.value if self.divides else self.value


@dataclass(frozen=True, eq=False)
class LogitMap:
    """What a model does before and after its output embedding.

    Attributes:
        before: Factor of the normed state.
        after: Factor of the head's output.
        cap: Largest size of a logit, approached as c tanh(x / c); None without a soft-cap.
        masked: Tokens whose logit is always `fill`; None if there are none.
        fill: The logit of masked tokens.
    """

    before: Factor = Factor()
    after: Factor = Factor()
    cap: float | None = None
    masked: Bool[Tensor, " d_vocab"] | None = None
    fill: float = -torch.inf

    @property
    def factor(self) -> float:
        """How much larger the logit before the cap is than the head's output for the plain norm."""
        return self.before.size * self.after.size

    def __call__(self, outputs: Float[Tensor, "*rest d_vocab"]) -> Float[Tensor, "*rest d_vocab"]:
        """The model's logits for outputs of its head."""
        logits = self.capped(self.after(outputs))
        if self.masked is None:
            return logits
        return logits.masked_fill(self.masked.to(logits.device), self.fill)

    def capped(self, logits: Tensor) -> Tensor:
        """Logits after the soft-cap."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """The final norm with fixed statistics: a linear map of writes to the residual stream.

    If `h` is the sum of writes, `norm(h) == sum(frozen(write)) + frozen.constant`. The constant is
    the bias of a LayerNorm, which belongs to no write.

    Attributes:
        gain: Weight of the norm divided by the scale of each example.
        constant: Bias of the norm; zeros for an RMSNorm.
        centred: Whether the norm subtracts the mean over d_model.
    """

    gain: Float[Tensor, "batch d_model"]
    constant: Float[Tensor, " d_model"]
    centred: bool

    def __call__(
        self, write: Float[Tensor, "batch *between d_model"]
    ) -> Float[Tensor, "batch *between d_model"]:
        """Return the share of `write` in the normed state, in float32, on the norm's device."""
        write = write.float().to(self.gain.device)
        if self.centred:
            write = write - write.mean(-1, keepdim=True)
        return write * self.gain.reshape(len(write), *[1] * (write.ndim - 2), -1)


def freeze_norm(norm: nn.Module, h: Float[Tensor, "batch d_model"]) -> FrozenNorm:
    """Return `norm` as a linear map with its statistics at `h`, in float32.

    Raises:
        AttribError: The norm is neither an RMSNorm nor a LayerNorm.
    """
    h = h.float().to(execution_device(norm))
    weight, bias, centred = probe_norm(norm, h[0])
    normed = float_copy(norm)(h)
    direction = (h - h.mean(-1, keepdim=True) if centred else h) * weight
    size = direction.square().sum(-1, keepdim=True)
    inverse_scale = ((normed - bias) * direction).sum(-1, keepdim=True) / size
    frozen = FrozenNorm(weight * inverse_scale, bias, centred)
    slack = 1e-4 * float(normed.abs().max())
    if not torch.allclose(frozen(h) + bias, normed, rtol=1e-4, atol=slack):
        raise AttribError(
            f"{type(norm).__name__} is neither an RMSNorm nor a LayerNorm; use norm='none'"
        )
    return frozen


@torch.no_grad()
def probe_norm(
    norm: nn.Module, like: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"], bool]:
    """Return weight and bias of a norm, and whether it subtracts the mean, in float32.

    They are read from the outputs for probe vectors, so RMSNorm, LayerNorm and norms that store
    `weight - 1` need no list of classes.

    Args:
        norm: The norm.
        like: A vector whose size the probes take.
    """
    sign = torch.ones_like(like, dtype=torch.float32, device=execution_device(norm))
    sign[1::2] = -1  # mean 0 and root mean square 1, so norm(sign) is weight * sign + bias
    big = 1e3  # makes the epsilon of the norm negligible
    probes = torch.stack([sign, -sign, sign + 0.5]) * big
    plus, minus, shifted = float_copy(norm)(probes)
    centred = torch.allclose(shifted, plus, rtol=1e-3, atol=1e-3)
    return (plus - minus) / 2 * sign, (plus + minus) / 2, centred


@dataclass(frozen=True, eq=False)
class Unembedding:
    """Final norm, output embedding, and what the model does to its logits.

    Attributes:
        parts: The components of the model, with the norm after the last layer and the head.
        map: What happens before and after the head.
    """

    parts: Components
    map: LogitMap

    def __call__(self, h: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_vocab"]:
        """The model's logits for a last layer's output, on its device."""
        return self.map(self.parts.head(self.map.before(self.parts.norm(h)))).to(h.device)

    def float32(self, h: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_vocab"]:
        """The logits in float32 or wider, whatever the model runs in."""
        return self.map(precision.unembed(self.parts.norm, self.parts.head, h, self.map.before))

    def freeze_norm(self, h: Float[Tensor, "batch d_model"]) -> FrozenNorm:
        """The final norm as a linear map with its statistics at `h`."""
        return freeze_norm(self.parts.norm, h)

    def directions(
        self, tokens: Int[Tensor, "*rest"]
    ) -> tuple[Float[Tensor, "*rest d_model"], Float[Tensor, "*rest"]]:
        """What a normed state is multiplied with for the logit of a token before the cap, and bias.

        In float32 or wider.
        """
        rows, bias = precision.token_directions(self.parts.head, tokens)
        return rows * self.map.factor, bias * self.map.after.size

    def log_normalizer(
        self, normed: Float[Tensor, "*rest d_model"], *, bias: bool = True
    ) -> Float[Tensor, "*rest"]:
        """Logarithm of the sum of exp(logit before the cap) over the vocabulary.

        Masked tokens count: nothing is known about them but that they are never generated.
        """
        scaled = self.map.before.size * normed
        return precision.log_normalizer(
            self.parts.head, scaled, bias=bias, scale=self.map.after.size
        )


def logits_to_keep(model: PreTrainedModel, decoder: nn.Module, batch: Batch) -> dict[str, int]:
    """Arguments of a forward pass that unembeds the last prompt tokens and few other positions."""
    num_pos = batch["last"].shape[1]
    kept = kept_positions(model, decoder, batch["last"].int().argmax(1), num_pos)
    # A number, not a tensor: some models hand it down to their layers.
    return {} if kept == num_pos else {"logits_to_keep": kept}


def gather_last(
    logits: Float[Tensor, "batch kept d_vocab"], batch: Batch
) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last prompt token, from those of the last positions or of all."""
    last, num_pos = batch["last"].int().argmax(1).to(logits.device), batch["last"].shape[1]
    row = torch.arange(len(last), device=logits.device)
    return logits[row, last - num_pos + logits.shape[1]]


def kept_positions(
    model: PreTrainedModel, decoder: nn.Module, last: Int[Tensor, " batch"], num_pos: int
) -> int:
    """How many positions, counted from the end, a model unembeds to have those of `last`.

    Most models of transformers can leave out the others. The BLIP family cannot. A decoder that is
    told too (Gemma 4) leaves them out of its last layers, whose states analyses need.
    """
    told = [_takes_it(one) for one in (model, decoder)]
    return num_pos - int(last.min()) if told[0] and not told[1] else num_pos


def keep_all(decoder: nn.Module) -> dict[str, int]:
    """Arguments of `generate` with which the decoder's last layers run on the whole prompt."""
    return {"logits_to_keep": 0} if _takes_it(decoder) else {}


def _takes_it(module: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(type(module).forward).parameters
