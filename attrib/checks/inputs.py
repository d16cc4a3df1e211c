"""Examples to check a model on, passes that checks share, and comparisons up to rounding.

A pass over a model of full size takes minutes on a CPU: a check runs one of its own only where it
must.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import StoppingCriteriaList

from attrib.forward.attention import AttentionCall, attention_rows, capture_attention
from attrib.forward.hooks import gather_positions, on_output, read, write
from attrib.forward.replay import Captured, capture
from attrib.forward.residual import ResidualWrites, residual_writes
from attrib.model.adapters import linears
from attrib.model.batch import Batch
from attrib.model.precision import ONE_STEP, QUANTISED_PASS, WHOLE_PASS
from attrib.model.vlm import VLM
from attrib.model.wrapped import is_packed
from attrib.vocabulary import Span

Pairs = Iterable[tuple[Tensor, Tensor]]
NEW_TOKENS = 4


class CheckFailed(Exception):
    """A check failed; the message says what was measured."""


# Errors that an unknown model or processor may raise: a failed check, not a crash.
FAILURES = (
    CheckFailed,
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
)


class LastAttention(NamedTuple):
    """One layer's attention from the last prompt token, "batch heads keys" and "batch heads d".

    Attributes:
        row: The attention row.
        ours: The values weighted by it.
        exact: The output of its attention in float32.
        out: The output of the model.
    """

    row: Tensor
    ours: Tensor
    exact: Tensor
    out: Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """What the reading contexts kept of one forward pass."""

    hidden: dict[int, Tensor]
    captured: Captured
    writes: dict[Span, ResidualWrites] = field(default_factory=dict)
    attention: dict[int, LastAttention] = field(default_factory=dict)
    logits: list[Float[Tensor, "batch pos d_vocab"]] = field(default_factory=list)


@contextmanager
def all_readings(vlm: VLM, batch: Batch) -> Iterator[Pass]:
    """All reading contexts together; the residual writes are those at "last" and "visual"."""
    with ExitStack() as stack:
        found = Pass(stack.enter_context(read(vlm)), stack.enter_context(capture(vlm)))
        for span in ("last", "visual"):
            position = batch[span].int().argmax(1)  # 0 in rows without the span
            found.writes[span] = stack.enter_context(residual_writes(vlm, position))
        stack.enter_context(attention_rows(vlm, batch["last"]))
        queries = batch["last"].int().argmax(1)

        def listen(layer: int, call: AttentionCall) -> None:
            row, exact = call.row(queries), _float32_attention(call, queries)
            out = gather_positions(call.out, queries)
            found.attention[layer] = LastAttention(row, call.weighted_values(row), exact, out)

        stack.enter_context(capture_attention(vlm, listen))
        yield found


def _float32_attention(call: AttentionCall, queries: Tensor) -> Tensor:
    q = gather_positions(call.q.transpose(1, 2), queries).float()[:, :, None]
    k, v = (x.float().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (call.k, call.v))
    mask = call.bias(queries[:, None].to(q.device), torch.float32)
    if (cap := call.softcap) is not None:
        return ((cap * torch.tanh(q @ k.mT * call.scaling / cap) + mask).softmax(-1) @ v)[:, :, 0]
    return scaled_dot_product_attention(q, k, v, mask, scale=call.scaling)[:, :, 0]


class Generated(NamedTuple):
    """A greedy continuation of a batch by `NEW_TOKENS` tokens, and what was seen on the way.

    Attributes:
        tokens: The new tokens.
        logits: The logits that each was chosen from.
        prompt: The last layer's output in the pass over the prompts.
        written: The shapes of the hidden states that a `write` was given.
    """

    tokens: Int[Tensor, "batch step"]
    logits: Float[Tensor, "batch step d_vocab"]
    prompt: Float[Tensor, "batch pos d_model"]
    written: list[tuple[int, ...]]


def generated(vlm: VLM, batch: Batch, *, writing: bool = True) -> Generated:
    """Generate under a `write` that changes nothing; no token ends the text."""
    kept: dict[str, Any] = {}
    prompt: list[Tensor] = []
    written: list[tuple[int, ...]] = []

    def keep(ids: Tensor, scores: tuple[Tensor, ...], **_: object) -> Tensor:
        kept.update(ids=ids, scores=scores)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def same(h: Tensor) -> Tensor:
        written.append(tuple(h.shape))
        return h

    settings: dict[str, Any] = {
        "stopping_criteria": StoppingCriteriaList([keep]),
        "eos_token_id": vlm.components.head.out_features,  # no logit is that of this token
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    first = on_output(vlm.layers[-1], lambda h: None if prompt else prompt.append(h))
    with ExitStack() as stack:
        stack.enter_context(first)
        if writing:
            stack.enter_context(write(vlm, 0, same, batch["text"]))
        vlm.generate(batch, NEW_TOKENS, **settings)
    logits = torch.stack(kept["scores"], 1)
    return Generated(kept["ids"][:, -logits.shape[1] :], logits, prompt[0], written)


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
        """Logits of a forward pass without hooks, "batch pos d_vocab".

        Raises:
            CheckFailed: They are not finite, or say nothing.
        """
        logits = self.vlm.logits(self.batch)
        if not logits[self.real].isfinite().all():
            raise CheckFailed("the logits are not finite")
        if not (logits[self.real].amax(-1) > logits[self.real].amin(-1)).all():
            raise CheckFailed("all logits of a position are equal")
        return logits

    @cached_property
    def hooked(self) -> Pass:
        """A pass inside all reading contexts."""
        with all_readings(self.vlm, self.batch) as found:
            found.logits.append(self.vlm.logits(self.batch))
        return found

    @cached_property
    def replayable(self) -> Pass:
        """A pass with every layer's output and arguments; the hooked one if no context fails."""
        try:
            return self.hooked
        except FAILURES:  # it fails the checks that need the context
            with read(self.vlm) as hidden, capture(self.vlm) as captured:
                return Pass(hidden, captured, logits=[self.vlm.logits(self.batch)])

    @property
    def hidden(self) -> dict[int, Tensor]:
        """Every layer's output in a forward pass."""
        return self.replayable.hidden

    @cached_property
    def generated(self) -> Generated:
        """The continuation of `batch`."""
        return generated(self.vlm, self.batch)

    @cached_property
    def generated_alone(self) -> list[Generated]:
        """The continuation of each example on its own."""
        each = zip(self.images, self.prompts, strict=True)
        return [generated(self.vlm, self.vlm.encode([image], [text])) for image, text in each]

    @cached_property
    def is_quantised(self) -> bool:
        """Whether a linear layer of the decoder has packed weights."""
        return any(is_packed(one) for _, _, one in linears(self.vlm.components.decoder))

    def compare(
        self, pairs: Pairs, what: str, limits: Mapping[torch.dtype, float] = ONE_STEP
    ) -> str:
        """Return the largest difference within pairs, as text.

        Raises:
            CheckFailed: One exceeds the limit of the decoder's dtype, relative to the largest
                value (`QUANTISED_PASS` for a whole pass of a quantised model);
                for logits also half their largest distance from their mean.
        """
        limit, worst = limits[self.vlm.dtype], 0.0
        if limits is WHOLE_PASS and self.is_quantised:
            limit = max(limit, QUANTISED_PASS)
        for a, b in ((a.float(), b.float()) for a, b in pairs):
            allowed = limit * float(b.abs().max())
            if what.startswith("logits") and b.ndim > 1:
                allowed = min(allowed, float((b - b.mean(-1, keepdim=True)).abs().max()) / 2)
            error = float((a - b).abs().max())
            if not error <= allowed:
                raise CheckFailed(f"{what} differ by {error:.1e}, more than {allowed:.1e}")
            worst = max(worst, error)
        return f"{what} differ by {worst:.1e}"
