"""Training inputs of edits: their prefix states in memory, or recomputed at each step."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.forward.memory import available_bytes
from attrib.model.vlm import VLM
from attrib.progress import progress
from editors.training.answer_shares import AnswerShares, num_answer_tokens
from editors.training.layer_args import SharedTensors
from editors.training.losses import LOCALITY, ROLES
from editors.training.prefix import PrefixRows, PrefixStates, num_bytes, prefix_states
from editors.training.prefix_file import PrefixFiles

logger = logging.getLogger("attrib")
STATISTICS_EDITS = 64  # edits for statistics of channels
SIZED_EDITS = 8  # edits from which the size of all is estimated
MEMORY_SHARE = 0.5  # of the available memory that a cache may take


@dataclass(frozen=True, eq=False)
class CachedDataset(AnswerShares):
    """Inputs by edit and role.

    Attributes:
        ids: The samples' names.
        edits: The request of each sample, with its states at every site.
        inputs: The inputs of each sample by role, the request among them.
    """

    ids: list[str]
    edits: list[PrefixStates]
    inputs: list[dict[str, list[PrefixStates]]]

    def __len__(self) -> int:
        return len(self.edits)

    def load(self, items: Sequence[int]) -> "tuple[CachedDataset, list[int]]":
        """Return a dataset with some edits in memory, and their places in it."""
        return self, list(items)

    def num_tokens(self, item: int, role: str) -> int:
        """Answer tokens of an edit's inputs of a role."""
        return num_asked(self.inputs[item], role)

    def sample_edits(self) -> list[PrefixStates]:
        """Return edits for statistics of channels: all."""
        return self.edits

    @property
    def num_bytes(self) -> int:
        """Bytes of all states, with the arguments of layers."""
        every = (one for roles in self.inputs for some in roles.values() for one in some)
        return num_bytes(every)

    def split(self, num: int) -> "tuple[CachedDataset, CachedDataset]":
        """Return the first `num` edits, and the others."""
        return (
            CachedDataset(self.ids[:num], self.edits[:num], self.inputs[:num]),
            CachedDataset(self.ids[num:], self.edits[num:], self.inputs[num:]),
        )

    def rows(self, items: Sequence[int], roles: Sequence[str]) -> PrefixRows:
        """Return the inputs of some edits that have one of the `roles`."""
        found = [
            (one, number, ROLES.index(role))
            for number, item in enumerate(items)
            for role in roles
            for one in self.inputs[item].get(role, ())
        ]
        inputs, edit_of, role_of = zip(*found, strict=True) if found else ((), (), ())
        return PrefixRows(list(inputs), torch.tensor(edit_of), torch.tensor(role_of))


def cache_dataset(
    vlm: VLM,
    samples: Sequence[EditSample],
    *,
    first: Sequence[int],
    signals: Sequence[int],
    roles: Sequence[str] = ROLES,
    compared: Sequence[str] = LOCALITY,
    silent: bool = False,
) -> CachedDataset:
    """Run all inputs of the samples once and cache their states.

    Args:
        vlm: The model.
        samples: The edits.
        first: Layers after which passes will resume.
        signals: Layers at which adapters read the edits.
        roles: Which inputs.
        compared: Roles of inputs whose unedited answers are needed: no others run to the end.
        silent: Whether to show no progress bar.

    Raises:
        AttribError: There is no sample.
    """
    if not samples:
        raise AttribError("there is no sample to train on; see the quarantined rows")
    inputs: list[dict[str, list[PrefixStates]]] = [{} for _ in samples]
    shared = SharedTensors()
    for role in roles:
        asked = [requests_of(sample, role) for sample in samples]
        states = iter(
            prefix_states(
                vlm,
                [request for some in asked for request in some],
                sorted({*first, *signals}) if role == "request" else first,
                final=role in compared,
                shared=shared,
                what=None if silent else f"inputs of the edits, {role}",
            )
        )
        for of_edit, some in zip(inputs, asked, strict=True):
            of_edit |= {role: [next(states) for _ in some]} if some else {}
    edits = [of_edit["request"][0] for of_edit in inputs if "request" in of_edit]
    return CachedDataset([s.id for s in samples], edits, inputs)


def num_asked(inputs: Mapping[str, Sequence[PrefixStates]], role: str) -> int:
    """Answer tokens of the inputs of a role."""
    return sum(one.num_asked for one in inputs.get(role, ()))


def requests_of(sample: EditSample, role: str) -> list[EditRequest]:
    """Return the inputs of a sample that have a role."""
    return [sample.request] if role == "request" else getattr(sample, role)


@dataclass(eq=False)
class StreamedDataset(AnswerShares):
    """The interface of `CachedDataset` for training; states are recomputed for each step.

    Attributes:
        vlm: The model.
        samples: The edits.
        first: Layers after which passes resume.
        signals: Layers at which adapters read the edits.
        roles: Which inputs.
        compared: Roles of inputs whose unedited answers are needed.
    """

    vlm: VLM
    samples: Sequence[EditSample]
    first: Sequence[int]
    signals: Sequence[int]
    roles: Sequence[str]
    compared: Sequence[str] = LOCALITY
    _last: tuple[list[int], CachedDataset] | None = field(default=None, repr=False)
    _counts: dict[tuple[int, str], int] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, items: Sequence[int]) -> tuple[CachedDataset, list[int]]:
        """Return a dataset with some edits in memory, and their places in it."""
        wanted = list(dict.fromkeys(items))  # an edit may come twice where one epoch ends
        if self._last is None or self._last[0] != wanted:
            self._last = wanted, self._made(wanted)
        return self._last[1], [wanted.index(item) for item in items]

    def _made(self, items: Sequence[int]) -> CachedDataset:
        return cache_dataset(
            self.vlm,
            [self.samples[i] for i in items],
            first=self.first,
            signals=self.signals,
            roles=self.roles,
            compared=self.compared,
            silent=True,
        )

    def sample_edits(self) -> list[PrefixStates]:
        """Return edits for statistics of channels: the first ones."""
        return self.load(range(min(len(self), STATISTICS_EDITS)))[0].edits

    def num_tokens(self, item: int, role: str) -> int:
        """Answer tokens of an edit's inputs of a role; its texts are encoded, nothing is run."""
        if (item, role) not in self._counts:
            some = requests_of(self.samples[item], role) if role in self.roles else []
            self._counts[item, role] = sum(num_answer_tokens(self.vlm, one) for one in some)
        return self._counts[item, role]


@dataclass(eq=False)
class StoredDataset(StreamedDataset):
    """The same interface; states are run once, stored in files, and read for each step."""

    files: PrefixFiles = field(kw_only=True)

    def __post_init__(self):
        for start in progress(range(0, len(self), SIZED_EDITS), "edits, on disk"):
            some = range(start, min(start + SIZED_EDITS, len(self)))
            for item, inputs in zip(some, super()._made(some).inputs, strict=True):
                self.files.add(inputs)
                self._counts |= {(item, role): num_asked(inputs, role) for role in ROLES}

    def _made(self, items: Sequence[int]) -> CachedDataset:
        inputs = [self.files.read(i) for i in items]
        edits = [of_edit["request"][0] for of_edit in inputs]
        return CachedDataset([self.samples[i].id for i in items], edits, inputs)


def cached_or_streamed(
    vlm: VLM,
    samples: Sequence[EditSample],
    held_out: Sequence[EditSample],
    *,
    first: Sequence[int],
    signals: Sequence[int],
    roles: Sequence[str],
    compared: Sequence[str] = LOCALITY,
    keep: bool | None = None,
    out: Path | None = None,
) -> tuple[CachedDataset | StreamedDataset, CachedDataset]:
    """Return the training dataset, in memory or on disk if it fits there, and the held-out one.

    Args:
        vlm: The model.
        samples: Edits to train on.
        held_out: Edits to validate on; always cached.
        first: Layers after which passes will resume.
        signals: Layers at which adapters read the edits.
        roles: Which inputs.
        compared: Roles of inputs whose unedited answers are needed.
        keep: Whether to cache in memory, or to recompute states at each step. By default they are
            cached if they fit in half of the memory available on the model's device, estimated from
            a few edits; else they are stored in files if they fit in half of the free disk.
        out: A folder for these files; None to have none.
    """
    where = {"first": first, "signals": signals, "roles": roles, "compared": compared}
    streamed = StreamedDataset(vlm, samples, **where)
    if keep is None and len(samples) > SIZED_EDITS:
        needed = streamed.load(range(SIZED_EDITS))[0].num_bytes / SIZED_EDITS * len(samples)
        keep = needed < MEMORY_SHARE * available_bytes(vlm.device)
        if not keep and out is not None and PrefixFiles.have_room(out, needed):
            stored = StoredDataset(vlm, samples, **where, files=PrefixFiles(out))
            return stored, cache_dataset(vlm, held_out, **where)
    if keep is False:
        logger.info("prefix states of %d edits are recomputed at every step", len(samples))
        return streamed, cache_dataset(vlm, held_out, **where)
    return cache_dataset(vlm, [*samples, *held_out], **where).split(len(samples))
