"""Training inputs of edits whose prefix states do not fit in memory: recomputed at each step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from attrib.data.samples import EditSample
from attrib.memory import available_bytes
from attrib.model.vlm import VLM
from editors.prefix.cached_dataset import CachedDataset, cache_dataset
from editors.prefix.states import PrefixStates

logger = logging.getLogger("attrib")
STATISTICS_EDITS = 64  # edits for statistics of channels
SIZED_EDITS = 8  # edits from which the size of all is estimated
MEMORY_SHARE = 0.5  # of the available memory that a cache may take


@dataclass(eq=False)
class StreamedDataset:
    """The interface of `CachedDataset` for training; states are recomputed for each step.

    Attributes:
        vlm: The model.
        samples: The edits.
        first: Layers after which passes resume.
        signals: Layers at which adapters read the edits.
        roles: Which inputs.
    """

    vlm: VLM
    samples: Sequence[EditSample]
    first: Sequence[int]
    signals: Sequence[int]
    roles: Sequence[str]
    _last: tuple[list[int], CachedDataset] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, items: Sequence[int]) -> tuple[CachedDataset, list[int]]:
        """Return a dataset with some edits in memory, and their places in it."""
        wanted = list(dict.fromkeys(items))  # an edit may come twice where one epoch ends
        if self._last is None or self._last[0] != wanted:
            some = [self.samples[i] for i in wanted]
            where = {"first": self.first, "signals": self.signals, "roles": self.roles}
            self._last = wanted, cache_dataset(self.vlm, some, **where, silent=True)
        return self._last[1], [wanted.index(item) for item in items]

    def sample_edits(self) -> list[PrefixStates]:
        """Return edits for statistics of channels: the first ones."""
        return self.load(range(min(len(self), STATISTICS_EDITS)))[0].edits

    def shares(self, *_: object) -> dict[str, float]:
        """Return nothing: other processes' inputs are not run here, so edits count alike."""
        return {}


def cached_or_streamed(
    vlm: VLM,
    samples: Sequence[EditSample],
    held_out: Sequence[EditSample],
    *,
    first: Sequence[int],
    signals: Sequence[int],
    roles: Sequence[str],
    keep: bool | None = None,
) -> tuple[CachedDataset | StreamedDataset, CachedDataset]:
    """Return the training dataset, cached if it fits in memory, and the held-out one.

    Args:
        vlm: The model.
        samples: Edits to train on.
        held_out: Edits to validate on; always cached.
        first: Layers after which passes will resume.
        signals: Layers at which adapters read the edits.
        roles: Which inputs.
        keep: Whether to cache; by default if the states fit in half of the memory available on
            the model's device, estimated from a few edits.
    """
    where = {"first": first, "signals": signals, "roles": roles}
    streamed = StreamedDataset(vlm, samples, first, signals, roles)
    if keep is None and len(samples) > SIZED_EDITS:
        needed = streamed.load(range(SIZED_EDITS))[0].num_bytes / SIZED_EDITS * len(samples)
        keep = needed < MEMORY_SHARE * available_bytes(vlm.device)
    if keep is False:
        logger.info("prefix states of %d edits are recomputed at every step", len(samples))
        return streamed, cache_dataset(vlm, held_out, **where)
    return cache_dataset(vlm, [*samples, *held_out], **where).split(len(samples))
