"""Whether a model is what it was: every bit of its weights, and what hangs on its modules."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attrib.errors import SetupError

CHUNK = 1 << 24  # elements that are weighed at once on a GPU
# Odd constants of well-mixed bits: the 64-bit golden ratio, and a multiplier of splitmix64
# (Steele, Lea & Flood 2014), both as signed numbers.
GOLDEN, MIXING = -7046029254386353131, -4658895280553007687
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NotRestored(SetupError):
    """An editor left the model changed: every later score would be another model's."""


@dataclass(frozen=True)
class Checksum:
    """What a model was at one moment.

    Attributes:
        parts: By the name of a parameter or buffer a digest of its bits, by the name of a module
            its class, its mode and its number of hooks.
    """

    parts: Mapping[str, object] = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, weighed: Callable[[str], bool] = bool) -> "Checksum":
        """The model as it is now.

        Args:
            model: The model.
            weighed: Tells by a tensor's name whether its bits are looked at; all by default.
        """
        modules = dict(_modules(model))
        tensors = {name: digest(value) for name, value in _tensors(model) if weighed(name)}
        return cls(modules | tensors)

    def changes(self, now: "Checksum") -> list[str]:
        """The names of what is not the same any more, of what is new and of what is gone."""
        names = [*self.parts, *(name for name in now.parts if name not in self.parts)]
        return [name for name in names if self.parts.get(name) != now.parts.get(name)]

    def require(self, now: "Checksum", editor: str, sample: str) -> None:
        """Nothing, if nothing changed.

        Raises:
            NotRestored: naming the editor and the first thing that changed.
        """
        if changed := self.changes(now):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise NotRestored(
                f"editor {editor} did not leave the model as it was: after the edit of {sample}, "
                f"{changed[0]}{more} differs; restore it when the context of `applied` is left"
            )


def digest(tensor: Tensor) -> str:
    """A digest of a tensor's shape, type and bits, computed on its own device.

    On a CPU it is SHA-256. Elsewhere it is the sum of the elements' bits, each times a fixed odd
    number that depends on its place, modulo 2^64: no change of one element goes unnoticed, and of
    several only by a chance of about 2^-64.
    """
    head = f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device}"
    if tensor.is_meta or not tensor.numel():
        return head
    bits = tensor.detach().contiguous().flatten().view(_WIDTHS[tensor.element_size()])
    if tensor.device.type == "cpu":
        return f"{head} {hashlib.sha256(bits.numpy().data).hexdigest()}"
    return f"{head} {weighed_sum(bits):x}"


def weighed_sum(bits: Tensor) -> int:
    """The sum of whole numbers times odd numbers that depend on their place, modulo 2^64."""
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
    """Hooks on a module, without those that transformers puts there itself at a first pass."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    makers = [getattr(hook, "__module__", "") or "" for kind in kinds for hook in kind.values()]
    return sum(not maker.startswith("transformers.") for maker in makers)
