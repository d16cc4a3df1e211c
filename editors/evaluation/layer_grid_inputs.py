"""The edits of a grid as its cells train on them and as they are scored, and their inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attrib.data.samples import EditSample
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import signal_layers
from editors.base import encodable
from editors.training.dataset import CachedDataset, cache_dataset
from editors.training.end_token import with_end_tokens
from editors.training.losses import ROLES

NUM_VALIDATION = 48  # edits that each training is validated on


@dataclass(frozen=True)
class GridEdits:
    """The edits of a grid that the model can read.

    Attributes:
        samples: Edits to train on, as given.
        test: Edits to score on, as given.
        end_token: Whether edits write the end token, in training and in use.
    """

    samples: list[EditSample]
    test: list[EditSample]
    end_token: bool

    @classmethod
    def of(
        cls, vlm: VLM, samples: Sequence[EditSample], test: Sequence[EditSample], end_token: bool
    ) -> "GridEdits":
        """Set aside by name what the model cannot read, as a training does."""
        return cls(encodable(vlm, samples), encodable(vlm, test), end_token)

    def written(self, vlm: VLM, samples: list[EditSample]) -> list[EditSample]:
        """Samples with the targets that training has: those of `TrainingJob`."""
        return with_end_tokens(vlm, samples) if self.end_token else samples


@dataclass(frozen=True, eq=False)
class GridInputs:
    """The inputs of all cells, with their states at every layer of a cell.

    Attributes:
        samples: Edits to train on, with the targets that are trained on.
        data: Their inputs.
        held_out: Inputs of the edits that select each cell's weights, with such targets.
        test: Inputs of the edits to score on: the edits as an editor encodes them, targets as
            `attrib evaluate` scores them, without an end token.
    """

    samples: Sequence[EditSample]
    data: CachedDataset
    held_out: CachedDataset
    test: CachedDataset

    @classmethod
    def of(cls, vlm: VLM, edits: GridEdits, layers: Sequence[int]) -> "GridInputs":
        """Run the inputs once, for adapters at these layers with any signal."""
        where = {"first": layers, "signals": signal_layers("both", layers)}
        samples = edits.written(vlm, edits.samples)
        data = cache_dataset(vlm, samples, **where)
        test = cache_dataset(vlm, edits.test, **where, compared=ROLES)
        few, _ = test.split(NUM_VALIDATION)
        if edits.end_token:
            made = edits.written(vlm, edits.test)
            few = cache_dataset(vlm, made[:NUM_VALIDATION], **where)
            test = replace(test, edits=cache_dataset(vlm, made, **where, roles=["request"]).edits)
        return cls(samples, data, few, test)
