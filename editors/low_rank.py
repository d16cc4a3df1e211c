"""What is trained of a decoder: low-rank additions to its attention, or all of its layers.

Low rank: Hu et al. 2021 ("LoRA"), y + alpha / rank * up(down(x)) in place of the output y of a
linear map, with `up` zero at first, so that an untrained one changes nothing.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attrib.errors import CannotStart
from attrib.hooks import on_input, on_output
from attrib.vlm import VLM
from editors.edit import WeightEdit
from editors.inner_weights_passes import with_weights

# What families call the maps from hidden states to queries, keys and values, alone or fused.
ATTENDING = re.compile(
    r"[qkv]_proj|qkv_proj|qkv|Wqkv|W_pack|c_attn|query|key|value|query_key_value"
)

Done = TypeVar("Done")


class LowRank(nn.Module):
    """Low-rank additions to the maps to queries, keys and values of some layers, in float32."""

    def __init__(self, vlm: VLM, layers: Sequence[int], rank: int, alpha: float, seed: int):
        super().__init__()
        self.layers, self.scale = list(layers), alpha / rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.parts = nn.ModuleDict(
                {key: _Part(linear, rank) for key, linear in attending(vlm, layers).items()}
            )

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The additions are made; the model's own weights are not touched."""
        with ExitStack() as stack:
            for key, linear in attending(vlm, self.layers).items():
                stack.enter_context(self._added(linear, self.parts[key]))
            yield

    def run(self, vlm: VLM, do: Callable[[], Done]) -> Done:
        """What `do` returns while the additions are made; gradients reach them."""
        with self.applied(vlm):
            return do()

    @contextmanager
    def _added(self, linear: nn.Module, part: nn.Module) -> Iterator[None]:
        seen: list[Tensor] = []

        def keep(x: Tensor, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
            seen[:] = [x]

        def add(y: Tensor) -> Tensor:
            return y + (self.scale * part(seen.pop())).to(y.dtype)

        with on_input(linear, keep), on_output(linear, add):
            yield


class AllLayers(nn.Module):
    """Copies of all parameters of some decoder layers, in float32; embeddings stay as they are."""

    def __init__(self, vlm: VLM, layers: Sequence[int]):
        super().__init__()
        whose = {id(p) for layer in layers for p in vlm.layers[layer].parameters()}
        own = {name: p for name, p in vlm.model.named_parameters() if id(p) in whose}
        self.names = {name.replace(".", "/"): name for name in own}
        self.copies = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(p.detach().float().clone())
             for name, p in own.items()}
        )  # fmt: skip

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The model has the copies' values; its own tensors come back."""
        values = {self.names[key]: value.detach() for key, value in self.copies.items()}
        with WeightEdit(values).applied(vlm):
            yield

    def run(self, vlm: VLM, do: Callable[[], Done]) -> Done:
        """What `do` returns while the model has the copies' values; gradients reach them."""
        dtype = vlm.model.dtype
        values = {self.names[key]: value.to(dtype) for key, value in self.copies.items()}
        return with_weights(vlm, values, do)


class _Part(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        device = linear.weight.device
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ self.down.T @ self.up.T


def attending(vlm: VLM, layers: Sequence[int]) -> dict[str, nn.Linear]:
    """The linear maps to queries, keys and values of some layers, each with a name for it.

    Raises:
        CannotStart: A layer has none under a known name.
    """
    found = {}
    for layer in layers:
        linears = {
            name: module
            for name, module in vlm.layers[layer].named_modules()
            if isinstance(module, nn.Linear) and ATTENDING.fullmatch(name.rpartition(".")[2])
        }
        if not linears:
            raise CannotStart(
                f"{vlm.name}: layer {layer} has no linear maps to queries, keys and values; "
                "parameters='all' trains whole layers"
            )
        found |= {f"{layer}/{name.replace('.', '/')}": one for name, one in linears.items()}
    return found
