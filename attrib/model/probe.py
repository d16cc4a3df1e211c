"""One short pass over a new model: what it does to its logits, and what no analysis could handle.

The head's output is replaced by planted values of many sizes. What the model makes of them shows a
factor, a soft-cap and masked tokens, whatever its class calls them.
"""

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from attrib.errors import SetupError
from attrib.model.components import Components, check_stream
from attrib.model.devices import execution_device, wide
from attrib.model.encoding import positions
from attrib.model.logits import Factor, LogitMap, Unembedding
from attrib.model.wrapped import on_input, on_output

logger = logging.getLogger("attrib")
# Errors that an unknown model may raise.
FAILURES = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError)
NUM_POS, PADDING = 8, 2
SMALLEST, LARGEST = -2.0, 3.0  # exponents of 10: of planted values at the first and last position
LARGEST_HALF = 2.5  # float16 overflows at 65,504, and factors come after
# Relative to the values; a wrong form is off by more.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(eq=False)
class Probe:
    """What was seen in one pass.

    Attributes:
        states: The output of each layer, in the order of their calls.
        positions: What the first layer was told about positions, if anything.
        head_input: What entered the output embedding.
        planted: What was put in place of its output.
        logits: What the model returned.
    """

    states: list[Tensor] = field(default_factory=list)
    positions: Tensor | None = None
    head_input: Tensor | None = None
    planted: Tensor | None = None
    logits: Tensor | None = None


def examine(model: PreTrainedModel, parts: Components) -> tuple[Unembedding, bool]:
    """Run a new model on a few tokens: how it makes its logits, whether it must be told positions.

    A model that cannot run without a picture is taken for a plain one.

    Raises:
        SetupError: It has several residual streams, or logits of another form.
    """
    name = type(model).__name__
    if parts.needs_pixels:
        return Unembedding(parts, LogitMap()), False
    inputs = text_inputs(model, parts)
    try:
        seen = probe(model, parts, inputs)
    except FAILURES as error:
        told = " ".join(str(error).split())
        logger.warning(
            "%s does not run on text alone (%s), so its logits are unchecked: run attrib.check",
            name, told,
        )  # fmt: skip
        return Unembedding(parts, LogitMap()), False
    check_stream(seen.states, parts, name)
    unembedding = Unembedding(parts, fit_logits(seen, parts, model.config, name))
    # Positions of several axes are the model's own: pictures have rows and columns.
    if seen.positions is None or seen.positions.ndim != 2 or not counts_padding(seen):
        return unembedding, False
    again = probe(model, parts, inputs | positions(inputs["attention_mask"]))
    return unembedding, not counts_padding(again)


def counts_padding(seen: Probe) -> bool:
    """Whether the states of a prompt change with padding before it."""
    whole, padded = seen.states[-1].unbind(0)
    return _error(padded[PADDING:], whole[:-PADDING]) > CLOSE[whole.dtype]


def plain_tokens(config: PreTrainedConfig, vocabulary: int) -> list[int]:
    """Ids that no field of a config names, so that none stands for a picture or padding."""
    named: set[int] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                collect(one)
        elif isinstance(value, int):
            named.add(value)

    collect(config.to_dict())
    return [token for token in range(vocabulary) if token not in named][:NUM_POS]


def text_inputs(model: PreTrainedModel, parts: Components) -> dict[str, Tensor]:
    """A prompt of a few plain tokens, and its start after padding, on the model's device."""
    tokens = plain_tokens(model.config, model.config.get_text_config().vocab_size)
    rows = [tokens, tokens[:PADDING] + tokens[:-PADDING]]
    ids = torch.tensor(rows, device=execution_device(parts.layers[0]))
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def probe(model: PreTrainedModel, parts: Components, inputs: dict[str, Any]) -> Probe:
    """Run the model once, with planted outputs of its head."""
    seen = Probe()

    def keep_positions(_h: Tensor, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.positions = kwargs.get("position_ids")

    def keep_input(h: Tensor, _args: Any, _kwargs: Any) -> None:
        seen.head_input = h

    def plant(output: Tensor) -> Tensor:
        seen.planted = _planted(output)
        return seen.planted.clone()  # the model may change it in place

    with ExitStack() as stack:
        for layer in parts.layers:
            stack.enter_context(on_output(layer, seen.states.append))
        stack.enter_context(on_input(parts.layers[0], keep_positions))
        stack.enter_context(on_input(parts.head, keep_input))
        stack.enter_context(on_output(parts.head, plant))
        seen.logits = model(**inputs, use_cache=False).logits
    return seen


def _planted(output: Tensor) -> Tensor:
    """Values of both signs, small at the first position and large at the last."""
    num_pos, d_vocab = output.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    signed = torch.randint(0, 2, (num_pos, d_vocab), generator=generator) * 2 - 1
    values = signed * (0.5 + torch.rand(num_pos, d_vocab, generator=generator))
    largest = LARGEST_HALF if output.dtype == torch.float16 else LARGEST
    sizes = torch.logspace(SMALLEST, largest, num_pos)[:, None]
    return (values * sizes).expand(output.shape).to(output)


def fit_logits(seen: Probe, parts: Components, config: PreTrainedConfig, name: str) -> LogitMap:
    """What the model does before and after its output embedding.

    Numbers are those of the config where they fit, so that no digit is lost.

    Raises:
        SetupError: It is not a factor, a soft-cap and a mask.
    """
    if seen.head_input is None or seen.planted is None or seen.logits is None:
        raise SetupError(f"{name}: its logits do not come from its output embedding")
    known = _numbers(config.get_text_config()) | _numbers(config)
    with torch.no_grad():
        normed = parts.norm(seen.states[-1]).to(seen.head_input.device)
    # Checks name damaged weights better.
    damaged = not (normed.isfinite().all() and seen.head_input.isfinite().all())
    before = Factor() if damaged else _fit_factor(normed, seen.head_input, known)
    if before is None:
        raise SetupError(
            f"{name}: what enters its output embedding is not the final norm of the last layer's "
            "output; models with one decoder stack and one final norm are supported"
        )
    if seen.logits.shape != seen.planted.shape:
        raise SetupError(
            f"{name}: its logits are {tuple(seen.logits.shape)}, the outputs of its output "
            f"embedding {tuple(seen.planted.shape)}"
        )
    fitted = _fit_outputs(seen.planted, seen.logits, known, before)
    if fitted is None:
        raise SetupError(
            f"{name}: its logits are neither the outputs of its output embedding nor a factor, a "
            "soft-cap or a mask of them"
        )
    return fitted


def _fit_outputs(
    planted: Tensor, logits: Tensor, known: set[float], before: Factor
) -> LogitMap | None:
    flat = logits.flatten(0, -2)
    masked = (flat == flat[0]).all(0)
    fill, mask = -torch.inf, None
    if masked.any():
        fill, mask = float(flat[0][masked][0]), masked
        if (flat[:, masked] != fill).any() or fill >= 0 or masked.all():
            return None
    x, y = planted.flatten(0, -2)[:, ~masked], flat[:, ~masked]
    linear = _fit_factor(x, y, known)
    if linear is not None:
        return LogitMap(before, linear, None, mask, fill)
    cap = float(y.abs().max())
    slope = float((wide(y[0]) / wide(x[0])).median())
    if not (math.isfinite(cap) and cap > 0 and slope > 0):
        return None
    caps = [*_near(known, cap), _rounded(cap)]
    maps = [LogitMap(before, f, c, mask, fill) for c, f in product(caps, _factors(known, slope))]
    chosen = min(maps, key=lambda one: _error(one.capped(one.after(x)), y))
    close = _error(chosen.capped(chosen.after(x)), y) <= CLOSE[y.dtype]
    return chosen if close else None


def _fit_factor(x: Tensor, y: Tensor, known: set[float]) -> Factor | None:
    """The factor from `x` to `y`, or None if there is none."""
    if x.shape != y.shape:
        return None
    a, b = wide(x), wide(y)
    slope = float((a * b).sum() / (a * a).sum())
    if not math.isfinite(slope) or slope <= 0:
        return None
    chosen = min(_factors(known, slope), key=lambda one: _error(one(x), y))
    return chosen if _error(chosen(x), y) <= CLOSE[y.dtype] else None


def _factors(known: set[float], size: float) -> list[Factor]:
    """Candidates for a factor of about this size, the simplest first."""
    candidates = [Factor(value) for value in _near({1.0} | known, size)]
    candidates += [Factor(value, divides=True) for value in _near(known, 1 / size)]
    rounded = Factor(_rounded(size)), Factor(_rounded(1 / size), divides=True)
    return [*candidates, *rounded]


def _near(known: set[float], value: float) -> list[float]:
    return sorted(one for one in known if abs(one - value) <= 0.05 * abs(value))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _error(ours: Float[Tensor, "*shape"], theirs: Float[Tensor, "*shape"]) -> float:
    """Largest error of an element, relative to the largest value of its position."""
    a, b = wide(ours), wide(theirs)
    return float(((a - b).abs() / b.abs().amax(-1, keepdim=True).clamp(min=1e-30)).max())


def _numbers(config: PreTrainedConfig) -> set[float]:
    """The positive numbers of a config."""
    values = config.to_dict().values()
    return {float(v) for v in values if isinstance(v, int | float) and 0 < v < math.inf}
