"""Training data too large to be kept: a step's inputs pass the first layers when it needs them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from attrib.data.samples import EditSample
from attrib.memory import available_bytes
from attrib.model.vlm import VLM
from editors.prefix.cached_dataset import CachedDataset, cache_dataset
from editors.prefix.states import PrefixStates

logger = logging.getLogger("attrib")
FITTED = 64  # edits that statistics are taken from
TRIED = 8  # edits by which the size of all is judged
AT_MOST = 0.5  # of the memory that is left


@dataclass(eq=False)
class StreamedDataset:
    """What `CachedDataset` gives, made anew at every step.

    Attributes:
        vlm: The model.
        samples: The edits.
        first: Layers from which inputs are run on.
        signals: Layers at which the states of the edits themselves are wanted.
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
        """Data that holds some edits, and where in it they are."""
        wanted = list(dict.fromkeys(items))  # where one pass over the data ends, one may come twice
        if self._last is None or self._last[0] != wanted:
            some = [self.samples[i] for i in wanted]
            where = {"first": self.first, "signals": self.signals, "roles": self.roles}
            self._last = wanted, cache_dataset(self.vlm, some, **where, silent=True)
        return self._last[1], [wanted.index(item) for item in items]

    def sample_edits(self) -> list[PrefixStates]:
        """Enough edits to take statistics from: the first ones."""
        data, _ = self.load(range(min(len(self), FITTED)))
        return data.edits

    def shares(self, *_: object) -> dict[str, float]:
        """Not known without running inputs of other processes: edits count alike."""
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
    """The data to train on, kept where there is room for it, and held-out data.

    Args:
        vlm: The model.
        samples: Edits to train on.
        held_out: Edits to validate on; always kept.
        first: Layers from which inputs are to be run on.
        signals: Layers at which the states of the edits themselves are wanted.
        roles: Which inputs.
        keep: Whether all states are kept; by default if half of the memory that is left on the
            model's device holds them, judged by a few edits.
    """
    where = {"first": first, "signals": signals, "roles": roles}
    anew = StreamedDataset(vlm, samples, first, signals, roles)
    if keep is None and len(samples) > TRIED:
        needed = anew.load(range(TRIED))[0].num_bytes / TRIED * len(samples)
        keep = needed < AT_MOST * available_bytes(vlm.device)
    if keep is False:
        logger.info("inputs pass the first layers at every step: %d edits", len(samples))
        return anew, cache_dataset(vlm, held_out, **where)
    both = cache_dataset(vlm, [*samples, *held_out], **where)
    return both.split(len(samples))
