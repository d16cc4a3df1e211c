"""The unedited model as reference: its answers, and the bits that an edit must leave unchanged."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from attrib.data.samples import EditSample
from attrib.errors import AttribError, SetupError
from attrib.files import versions, write_text
from attrib.model.continuation import end_tokens
from attrib.model.devices import each_weight
from attrib.model.vlm import VLM
from attrib.model.wrapped import plain_parts
from editors.evaluation.probes import EncodedProbes
from editors.evaluation.protocols import PROTOCOLS, Answer

CHUNK = 1 << 24  # elements that are weighted at once on a GPU
# Odd constants with well-mixed bits: the 64-bit golden ratio, and a multiplier of splitmix64
# (Steele, Lea & Flood 2014), both as signed numbers.
GOLDEN, MIXING = -7046029254386353131, -4658895280553007687
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FORMAT = 1  # of kept answers
PROGRAMS = ("attrib", "torch", "transformers")  # whose versions may change answers
DEFAULT_PROTOCOLS = ("paper", "exact", "generate")


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
        modules = {
            f"module {name or 'model'}": (type(m).__qualname__, m.training, _num_hooks(m))
            for name, m in model.named_modules()
        }
        named = chain(each_weight(model), model.named_buffers())
        return cls(modules | {name: digest(value) for name, value in named if include(name)})

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
    if len(parts := plain_parts(tensor)) > 1:  # quantised
        return " ".join(map(digest, parts))
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


def _num_hooks(module: nn.Module) -> int:
    """Count a module's hooks, without those that transformers registers at the first pass."""
    if not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks):
        return 0
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    makers = [getattr(hook, "__module__", "") or "" for kind in kinds for hook in kind.values()]
    return sum(not maker.startswith("transformers.") for maker in makers)


@dataclass(eq=False)
class ReferenceModel:
    """A model before any edit, and its answers to the probes of samples.

        reference = ReferenceModel(vlm)
        for editor in editors:
            evaluate(vlm, editor, samples, reference=reference)  # answers are computed once

    Attributes:
        vlm: The model.
        protocols: Protocols by which answers will be scored.
        batch_size: Inputs per pass. It is fixed here, because the last bits of logits depend on
            what else is in a batch, and unedited and edited answers are compared.
        folder: Where answers are kept for later evaluations, of any editor; None for memory alone.
            Any number of processes may share it.
        checksum: The model's checksum at the start.
    """

    vlm: VLM
    protocols: Sequence[str] = DEFAULT_PROTOCOLS
    batch_size: int = 16
    folder: Path | None = None
    checksum: Checksum = field(init=False)
    _answers: dict[str, list[Answer]] = field(default_factory=dict, init=False, repr=False)
    _counters: list[tuple[object, ...]] = field(init=False, repr=False)

    def __post_init__(self):
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols:
            named = f"no protocol {unknown[0]!r}" if unknown else "no protocol at all"
            raise AttribError(f"{named}; protocols are {', '.join(PROTOCOLS)}")
        if self.batch_size < 1:
            raise AttribError(f"batch size: expected 1 or more, got {self.batch_size}")
        self.checksum, self._counters = Checksum.of(self.vlm.model), counters(self.vlm.model)

    def encode(self, sample: EditSample) -> EncodedProbes:
        """Encode the probes of a sample for this model."""
        return EncodedProbes.of(self.vlm, sample, self.protocols, self.batch_size)

    def answers(self, probes: EncodedProbes) -> list[Answer]:
        """Return the unedited model's answers to the probes of a sample.

        Raises:
            AttribError: The model's logits are NaN.
        """
        key = self._key(probes)
        if key not in self._answers:
            path = self.folder / f"{key}.json" if self.folder else None
            kept = load_answers(path) if path else None
            self._answers[key] = self._ask(probes) if kept is None else kept
            if path and kept is None:  # a damaged file is replaced
                write_text(path, json.dumps([answer.record() for answer in self._answers[key]]))
        return self._answers[key]

    def _ask(self, probes: EncodedProbes) -> list[Answer]:
        answers = probes.unedited_answers(self.vlm)
        if any(bool((answer.forced < 0).any()) for answer in answers):
            raise AttribError("the unedited model's logits are no numbers (NaN)")
        return answers

    def _key(self, probes: EncodedProbes) -> str:
        """A digest of all that answers depend on: the model, its inputs, the programs."""
        found = hashlib.sha256(repr((FORMAT, probes.protocols, probes.longest)).encode())
        found.update(self._model.encode())
        found.update(repr(([versions()[name] for name in PROGRAMS], self._ends)).encode())
        found.update(repr([probe.request.target for probe in probes.probes]).encode())
        for batch in probes.batches:
            for name, value in sorted(batch.inputs.items()):
                found.update(name.encode())
                for part in tree_leaves(value):
                    is_tensor = isinstance(part, Tensor)
                    found.update((digest(part.cpu()) if is_tensor else repr(part)).encode())
        return found.hexdigest()

    @cached_property
    def _model(self) -> str:
        return hashlib.sha256(repr(sorted(self.checksum.parts.items())).encode()).hexdigest()

    @property
    def _ends(self) -> list[int]:
        return sorted(end_tokens(self.vlm))

    def require_restored(self, editor: str, sample: str, *, every_bit: bool = True) -> None:
        """Raise NotRestored, naming the editor and what changed, unless all is as before.

        Args:
            editor: The editor, for the message.
            sample: What was edited, for the message.
            every_bit: Whether to read all weights. Otherwise they are read only if torch counted a
                change of some tensor or module: all but writes past it (`tensor.data`) are.
        """
        if not every_bit and counters(self.vlm.model) == self._counters:
            return
        self.checksum.require(Checksum.of(self.vlm.model), editor, sample)
        self._counters = counters(self.vlm.model)


def load_answers(path: Path) -> list[Answer] | None:
    """The answers in a file; None if there is none, or it is damaged."""
    try:
        return [Answer.of(record) for record in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def counters(model: nn.Module) -> list[tuple[object, ...]]:
    """What changes with a model's modules, hooks, modes and tensors, without reading the tensors.

    Torch counts the changes of each tensor in place; exchanged data lies at another place.
    """
    modules = [(id(m), m.training, _num_hooks(m)) for m in model.modules()]
    return [*modules, *map(_counter, chain(model.parameters(), model.buffers()))]


def _counter(tensor: Tensor) -> tuple[object, ...]:
    version = None if tensor.is_inference() else tensor._version
    # A quantised weight has no place of its own, but its parts.
    return id(tensor), version, *(part.data_ptr() for part in plain_parts(tensor))
