"""What the cells of a grid are trained and scored on."""

from collections.abc import Sequence
from dataclasses import dataclass

from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import signal_layers
from editors.prefix.cached_dataset import CachedDataset, cache_dataset
from editors.training.losses import ROLES


@dataclass(frozen=True, eq=False)
class GridInputs:
    """The inputs of all cells, with their states at every layer that one of them starts from.

    Attributes:
        samples: Edits to train on.
        data: Their inputs.
        test: Inputs of the edits to score on.
    """

    samples: Sequence[EditSample]
    data: CachedDataset
    test: CachedDataset

    @classmethod
    def of(
        cls,
        vlm: VLM,
        samples: Sequence[EditSample],
        test: Sequence[EditSample],
        layers: Sequence[int],
    ) -> "GridInputs":
        """The inputs of edits, run once, for adapters at these layers with any signal."""
        shown = signal_layers("both", layers)
        both = cache_dataset(vlm, [*samples, *test], first=layers, signals=shown, roles=ROLES)
        return cls(samples, *both.split(len(samples)))
