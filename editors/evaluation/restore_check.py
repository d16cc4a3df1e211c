"""Checks that an edit left the model unchanged: the bits of its weights, modes and hooks."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attrib.errors import SetupError

CHUNK = 1 << 24  # elements that are weighted at once on a GPU
# Odd constants with well-mixed bits: the 64-bit golden ratio, and a multiplier of splitmix64
# (Steele, Lea & Flood 2014), both as signed numbers.
GOLDEN, MIXING = -7046029254386353131, -4658895280553007687
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NotRestored(SetupError):
    """An edit left the model changed, so that later scores would be of another model."""


@dataclass(frozen=True)
class Checksum:
    """The state of a model at one moment.

    Attributes:
        parts: A digest of the bits of each parameter and buffer by name; the class, mode and number
            of hooks of each module by name.
    """

    parts: Mapping[str, object] = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, include: Callable[[str], bool] = bool) -> "Checksum":
        """Return the model's current state.

        Args:
            model: The model.
            include: Selects tensors by name; all by default.
        """
        modules = dict(_modules(model))
        tensors = {name: digest(value) for name, value in _tensors(model) if include(name)}
        return cls(modules | tensors)

    def changes(self, now: "Checksum") -> list[str]:
        """Return the names of what changed, was added or was removed."""
        names = [*self.parts, *(name for name in now.parts if name not in self.parts)]
        return [name for name in names if self.parts.get(name) != now.parts.get(name)]

    def require(self, now: "Checksum", editor: str, sample: str) -> None:
        """Raise NotRestored, naming the editor and the first change, unless nothing changed."""
        if changed := self.changes(now):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise NotRestored(
                f"editor {editor} did not leave the model as it was: after the edit of {sample}, "
                f"{changed[0]}{more} differs; restore it when the context of `applied` is left"
            )


def digest(tensor: Tensor) -> str:
    """Return a digest of a tensor's shape, dtype and bits, computed on its own device.

    On a CPU it is SHA-256. Elsewhere it is the sum of the elements' bits, each times a fixed odd
    number that depends on its position, modulo 2^64: it detects every change of one element, and
    misses changes of several with a probability of about 2^-64.
    """
    head = f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device}"
    if tensor.is_meta or not tensor.numel():
        return head
    bits = tensor.detach().contiguous().flatten().view(_WIDTHS[tensor.element_size()])
    if tensor.device.type == "cpu":
        return f"{head} {hashlib.sha256(bits.numpy().data).hexdigest()}"
    return f"{head} {weighted_sum(bits):x}"


def weighted_sum(bits: Tensor) -> int:
    """Sum integers times odd numbers that depend on their position, modulo 2^64."""
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK].long()
        place = torch.arange(start, start + len(part), device=bits.device) * GOLDEN
        weights = ((place ^ (place >> 29)) * MIXING) | 1
        total += (part * weights).sum()
    return int(total) % 2**64


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _modules(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        kind = type(module).__qualname__
        yield f"module {name or 'model'}", (kind, module.training, _num_hooks(module))


def _num_hooks(module: nn.Module) -> int:
    """Count a module's hooks, without those that transformers registers at the first pass."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    makers = [getattr(hook, "__module__", "") or "" for kind in kinds for hook in kind.values()]
    return sum(not maker.startswith("transformers.") for maker in makers)
