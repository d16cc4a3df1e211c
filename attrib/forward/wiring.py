"""How a decoder layer's output is made of its input and its submodules' outputs, found numerically.

    after = scale * before + sum_i factor_i * output_i,   one to three outputs

Plain layers have two outputs and no factors. Others scale the stream (Gemma 4's layer scalar), or
what is added to it (Granite's residual multiplier), add per-layer embeddings, or have one output.
Factors are found by least squares over positions and channels; what they leave must be rounding.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from attrib.errors import AttribError
from attrib.model.devices import wide

MOST = 3  # outputs
# A layer rounds the stream with each output it adds, each time by at most half an eps of its value.
# Wrong outputs do not stay within 4 eps of the summands in every element.
SLACK = 4


@dataclass(frozen=True)
class Wiring:
    """The submodules that write to the stream, in the order of their calls, and their factors."""

    names: tuple[str, ...]
    factors: tuple[float, ...]
    scale: float = 1.0

    def writes(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What each submodule adds to the stream."""
        pairs = zip(self.names, self.factors, strict=True)
        return [outputs[name] if k == 1 else outputs[name] * k for name, k in pairs]

    def miss(self, before: Tensor, after: Tensor, outputs: Mapping[str, Tensor]) -> float | None:
        """What is left of the layer's output, summed; None if some of it is more than rounding."""
        if any(name not in outputs for name in self.names):
            return None
        parts = [wide(before) * self.scale]
        parts += [wide(outputs[n]) * k for n, k in zip(self.names, self.factors, strict=True)]
        summands = torch.stack([*(part.abs() for part in parts), wide(after).abs()]).sum(0)
        left = (wide(after) - torch.stack(parts).sum(0)).abs()
        bound = SLACK * torch.finfo(after.dtype).eps * summands
        return float(left.sum()) if bool((left <= bound).all()) else None


@dataclass(frozen=True)
class LayerPass:
    """What a layer did in one pass, at the chosen positions.

    Attributes:
        before: Its input, "batch d_model" or "batch several d_model".
        outputs: The output of each submodule, in the order of their calls.
        after: Its output.
    """

    before: Tensor
    outputs: Mapping[str, Tensor]
    after: Tensor


@torch.no_grad()
def holding(wirings: Mapping[int, Wiring], passes: Mapping[int, LayerPass]) -> set[int]:
    """The layers whose wiring accounts for their pass, all layers in one comparison.

    A comparison of each layer would wait for the GPU as often, and cost more than the pass.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for layer, wiring in wirings.items():
        after, outputs = passes[layer].after, passes[layer].outputs
        if all(name in outputs for name in wiring.names):
            alike[len(wiring.names), after.shape, after.dtype].append(layer)
    return {layer for layers in alike.values() for layer in _holding(layers, wirings, passes)}


def _holding(
    layers: list[int], wirings: Mapping[int, Wiring], passes: Mapping[int, LayerPass]
) -> Iterator[int]:
    device = passes[layers[0]].after.device
    each = [wirings[layer] for layer in layers]

    def stacked(tensors: Iterable[Tensor]) -> Tensor:
        return wide(torch.stack([tensor.to(device) for tensor in tensors]))

    after = stacked(passes[layer].after for layer in layers)
    columns = [[1.0 * w.scale for w in each], *zip(*(w.factors for w in each), strict=True)]
    names = zip(*(w.names for w in each), strict=True)
    summands = [stacked(passes[layer].before for layer in layers)]
    summands += [
        stacked(passes[layer].outputs[name] for layer, name in zip(layers, of, strict=True))
        for of in names
    ]
    left, size = after, after.abs()
    for factors, summand in zip(columns, summands, strict=True):
        shape = (-1, *[1] * (after.ndim - 1))
        part = summand * after.new_tensor(factors).view(shape)
        left, size = left - part, size + part.abs()
    eps = torch.finfo(passes[layers[0]].after.dtype).eps
    holds = (left.abs() <= SLACK * eps * size).flatten(1).all(1).tolist()
    return (layer for layer, one in zip(layers, holds, strict=True) if one)


def find_wiring(before: Tensor, after: Tensor, outputs: Mapping[str, Tensor], layer: int) -> Wiring:
    """The wiring of a layer, from one pass: without factors and of few outputs if possible.

    Args:
        before: The layer's input, "batch d_model" or "batch several d_model".
        after: Its output.
        outputs: The output of each submodule, in the order of their calls.
        layer: Index for the error message.

    Raises:
        AttribError: No outputs account for the layer's output, or it is not finite.
    """
    if not after.isfinite().all():
        raise AttribError(
            f"layer {layer}: its output is not finite: a weight is damaged, or the values overflow "
            "this dtype; try float32"
        )
    # A plain layer has two writes, of which one may be as small as rounding.
    plain, fitted = _plain(outputs), _fitted(before, after, outputs)
    for candidates, sizes in ((plain, (2, 1, 3)), (fitted, (1, 2, 3))):
        found = [(w, m) for w in candidates if (m := w.miss(before, after, outputs)) is not None]
        if found:
            return _best(found, sizes)
    raise AttribError(
        f"layer {layer}: no one to {MOST} of its submodules {sorted(outputs)} add up to its change "
        "of the residual stream, also with factors; this architecture's wiring (gates, several "
        "streams) is not supported"
    )


def _best(found: list[tuple[Wiring, float]], sizes: tuple[int, ...]) -> Wiring:
    """The wiring of the first of `sizes` that leaves little; one more output always leaves less."""
    enough = 2 * min(miss for _, miss in found)
    close = [(sizes.index(len(wiring.names)), miss, wiring) for wiring, miss in found]
    return min((one for one in close if one[1] <= enough), key=lambda one: one[:2])[2]


def _subsets(outputs: Mapping[str, Tensor]) -> Iterator[tuple[str, ...]]:
    for size in range(1, MOST + 1):
        yield from combinations(outputs, size)


def _plain(outputs: Mapping[str, Tensor]) -> Iterator[Wiring]:
    for names in _subsets(outputs):
        yield Wiring(names, (1.0,) * len(names))


def _fitted(before: Tensor, after: Tensor, outputs: Mapping[str, Tensor]) -> Iterator[Wiring]:
    columns = {name: wide(output).cpu().flatten() for name, output in outputs.items()}
    stream, goal = wide(before).cpu().flatten(), wide(after).cpu().flatten()[:, None]
    for names in _subsets(outputs):
        summands = torch.stack([stream, *(columns[name] for name in names)], 1)
        scale, *factors = torch.linalg.lstsq(summands, goal, driver="gelsd").solution[:, 0].tolist()
        yield Wiring(names, tuple(factors), scale)
