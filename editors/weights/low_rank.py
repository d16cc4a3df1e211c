"""Edits that add low-rank updates to matrices, kept as factors and applied beside the weights.

A gradient of one request has one term per token, so that factors are far smaller than the matrix.
The update is added to the matrix's output in float32: in half precision a sum with the weights
would round most of it away.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import on_input, on_output
from attrib.model.devices import wide
from attrib.model.vlm import VLM
from editors.weights.components import Matrix
from editors.weights.passes import LowRankUpdate

TOLERANCE = 1e-7  # of an update, in the Frobenius norm, that fewer terms may leave out
LEFT, RIGHT = ".left", ".right"  # end the names of tensors in files


@dataclass(frozen=True, eq=False)
class LowRankEdit:
    """Updates of some matrices.

    Attributes:
        updates: One update of each, by the name of its weight in `vlm.model`.
        causal: See `editors.base.is_causal`.
    """

    causal: ClassVar[bool] = True

    updates: Mapping[str, LowRankUpdate]

    @classmethod
    def of(cls, matrices: Sequence[Matrix], updates: Mapping[str, LowRankUpdate]) -> "LowRankEdit":
        """The edit of the updates' first request, with as few terms as they need."""
        return cls({m.name: shortened(updates[m.name].rows(torch.tensor([0]))) for m in matrices})

    @property
    def num_bytes(self) -> int:
        """Bytes of the factors."""
        return sum(update.left.nbytes + update.right.nbytes for update in self.updates.values())

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Add the updates to passes inside; no weight of the model changes."""
        modules = dict(vlm.model.named_modules())
        with ExitStack() as stack:
            for name, update in self.updates.items():
                module: Any = modules.get(name.rpartition(".")[0])
                shape = (update.left.shape[-1], update.right.shape[-1])
                if getattr(module, "weight", None) is None or module.weight.shape != shape:
                    raise AttribError(
                        f"{vlm.name} has no matrix {name} of shape {shape}: the edit is of another "
                        "model"
                    )
                inputs: dict[str, Tensor] = {}
                stack.enter_context(on_input(module, _keep(inputs)))
                stack.enter_context(on_output(module, _add(inputs, update)))
            yield

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The factors by name, for a file."""
        parts = [(LEFT, "left"), (RIGHT, "right")]
        return {n + end: getattr(u, part) for n, u in self.updates.items() for end, part in parts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "LowRankEdit":
        """The edit with these `tensors`."""
        names = [name.removesuffix(LEFT) for name in tensors if name.endswith(LEFT)]
        return cls({n: LowRankUpdate(tensors[n + LEFT], tensors[n + RIGHT]) for n in names})

    def __repr__(self) -> str:
        ranks = [update.left.shape[1] for update in self.updates.values()]
        return f"LowRankEdit({len(ranks)} matrices, ranks {ranks}, {self.num_bytes:,} bytes)"


@torch.no_grad()
def shortened(update: LowRankUpdate) -> LowRankUpdate:
    """The same update by fewer terms: at most its rank, up to rounding."""
    left, right = update.left[0], update.right[0]
    used = left.any(1) & right.any(1)
    left, right = left[used], right[used]
    # The singular values of a product of tall factors are those of a small matrix.
    bases, cores = zip(*(torch.linalg.qr(wide(part).mT) for part in (left, right)), strict=True)
    u, s, v = torch.linalg.svd(cores[0] @ cores[1].mT, full_matrices=False)
    rest = s.square().flip(0).cumsum(0).flip(0).sqrt()  # norm of what is left out from here on
    num = int((rest > TOLERANCE * rest[:1]).sum())
    if num < len(left):
        root = s[:num].sqrt()
        left = (bases[0] @ u[:, :num] * root).mT.to(left)
        right = (bases[1] @ v[:num].mT * root).mT.to(right)
    return LowRankUpdate(left[None].contiguous(), right[None].contiguous())


def merged(edits: Sequence[LowRankEdit]) -> LowRankEdit:
    """One edit with the summed updates, each made of the unedited model.

    Its size does not grow beyond the rank of the matrices.
    """
    found: dict[str, list[LowRankUpdate]] = {}
    for name, update in (pair for edit in edits for pair in edit.updates.items()):
        found.setdefault(name, []).append(update)
    return LowRankEdit({name: _summed(some) for name, some in found.items()})


def _summed(updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
    parts = ([getattr(u, side) for u in updates] for side in ("left", "right"))
    total = LowRankUpdate(*(torch.cat(part, 1) for part in parts))
    full = min(total.left.shape[-1], total.right.shape[-1])
    return shortened(total) if total.left.shape[1] > full else total


def _keep(inputs: dict[str, Tensor]) -> Callable[..., None]:
    return lambda x, _args, _kwargs: inputs.update(x=x)


def _add(inputs: dict[str, Tensor], update: LowRankUpdate) -> Callable[[Tensor], Tensor]:
    def add(h: Tensor) -> Tensor:
        left, right = (part[0].to(h.device) for part in (update.left, update.right))
        more = (inputs["x"].to(right) @ right.mT) @ left
        return (h.to(more.dtype) + more).to(h.dtype)

    return add
