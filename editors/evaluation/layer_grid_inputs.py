"""The edits of a grid as its cells train on them and as they are scored, and their inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.files import read_json
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import signal_layers
from editors.base import encodable
from editors.evaluation.layer_grid_scores import CELL, HELD_OUT
from editors.io import TRAINING
from editors.training.dataset import CachedDataset, cache_dataset
from editors.training.end_token import with_end_tokens
from editors.training.losses import ROLES
from editors.training.run import validation_split

NUM_VALIDATION = 48  # edits to score on that selected the weights of cells in earlier versions


@dataclass(frozen=True)
class GridEdits:
    """The edits of a grid that the model can read.

    Attributes:
        train: Edits to train on, as given.
        held_out: Edits that select each cell's weights, as given.
        test: Edits to score on, as given.
        end_token: Whether edits write the end token, in training and in use.
        validates_on_test: Whether `held_out` are scored on, too, as in earlier versions.
    """

    train: list[EditSample]
    held_out: list[EditSample]
    test: list[EditSample]
    end_token: bool = False
    validates_on_test: bool = False

    @classmethod
    def of(
        cls,
        vlm: VLM,
        samples: Sequence[EditSample],
        test: Sequence[EditSample],
        end_token: bool,
        validates_on_test: bool = False,
    ) -> "GridEdits":
        """Set aside by name what the model cannot read, and hold out edits, as a training does.

        Raises:
            AttribError: There are too few samples.
        """
        samples, test = encodable(vlm, samples), encodable(vlm, test)
        if validates_on_test:
            return cls(samples, test[:NUM_VALIDATION], test, end_token, validates_on_test)
        train, held_out = validation_split(samples, None)
        if not train:
            raise AttribError(f"grid: {len(samples)} samples are too few to train on")
        return cls(train, held_out, test, end_token)

    @property
    def samples(self) -> list[EditSample]:
        """The edits that are not scored on."""
        return self.train if self.validates_on_test else [*self.train, *self.held_out]

    def written(self, vlm: VLM, samples: list[EditSample]) -> list[EditSample]:
        """Samples with the targets that training has: those of `TrainingJob`."""
        return with_end_tokens(vlm, samples) if self.end_token else samples


@dataclass(frozen=True, eq=False)
class GridInputs:
    """The inputs of all cells, with their states at every layer of a cell.

    Attributes:
        edits: The edits, as given.
        samples: Those to train on, with the targets that are trained on.
        data: Their inputs.
        held_out: Inputs of the edits that select each cell's weights, with such targets.
        test: Inputs of the edits to score on: the edits as an editor encodes them, targets as
            `attrib evaluate` scores them, without an end token.
    """

    edits: GridEdits
    samples: Sequence[EditSample]
    data: CachedDataset
    held_out: CachedDataset
    test: CachedDataset

    @classmethod
    def of(cls, vlm: VLM, edits: GridEdits, layers: Sequence[int]) -> "GridInputs":
        """Run the inputs once, for adapters at these layers with any signal."""
        where = {"first": layers, "signals": signal_layers("both", layers)}
        train, held_out = (edits.written(vlm, some) for some in (edits.train, edits.held_out))
        both = cache_dataset(vlm, [*train, *held_out], **where)
        test = cache_dataset(vlm, edits.test, **where, compared=ROLES)
        if edits.end_token:
            made = edits.written(vlm, edits.test)
            test = replace(test, edits=cache_dataset(vlm, made, **where, roles=["request"]).edits)
        return cls(edits, train, *both.split(len(train)), test)


def validated_on_test(out: Path) -> bool:
    """Whether a grid's folder has cells of an earlier version, whose weights test edits selected.

    Further cells there do the same, so that all cells of a grid are alike.
    """
    records = [path for name in (CELL, TRAINING) for path in out.glob(f"*/{name}")]
    return any(HELD_OUT not in read_json(path)["identity"] for path in records)
