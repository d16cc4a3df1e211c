"""One training of an editor: its arguments, its validation split, its record."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attrib.data.samples import EditSample
from attrib.errors import AttribError, SetupError
from attrib.files import locked
from attrib.model.fingerprint import fingerprint, template_record
from attrib.model.vlm import VLM
from editors.base import encodable
from editors.training.config import TrainingConfig
from editors.training.dataset import CachedDataset, StreamedDataset, cached_or_streamed
from editors.training.end_token import with_end_tokens
from editors.training.losses import LOCALITY
from editors.training.objective import Objective
from editors.training.trainer import LogMetrics, Trainer

logger = logging.getLogger("attrib")
HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 100  # of the training samples, without validation samples
TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class TrainingJob:
    """The checked arguments of `TrainableEditor.train`; see there.

    Attributes:
        name: Name of the editor.
        config: All options.
    """

    name: str
    vlm: VLM
    config: Any  # the editor's own subclass of `EditorConfig`
    samples: Sequence[EditSample]
    out: Path
    validation: Sequence[EditSample] | None = None
    layers: Any = None
    gate: str | None = None
    keep: bool | None = None
    tensorboard: bool = False

    @cached_property
    def usable(self) -> list[EditSample]:
        """The samples that the model can read."""
        return encodable(self.vlm, self._ended(self.samples))

    @cached_property
    def split(self) -> tuple[list[EditSample], list[EditSample]]:
        """Samples to train on and to validate on.

        Raises:
            AttribError: They overlap, or there is nothing to train on.
        """
        train, held_out = validation_split(self.samples, self.validation)
        train, held_out = (encodable(self.vlm, self._ended(some)) for some in (train, held_out))
        if not train:
            raise AttribError(
                f"{self.name}: {len(self.samples)} samples are too few to train on; see the "
                "quarantined rows"
            )
        return train, held_out

    def _ended(self, samples: Sequence[EditSample]) -> Sequence[EditSample]:
        return with_end_tokens(self.vlm, samples) if self.config.end_token else samples

    def inputs(
        self,
        first: Sequence[int],
        signals: Sequence[int] | None = None,
        roles: Sequence[str] | None = None,
        compared: Sequence[str] = LOCALITY,
    ) -> tuple[CachedDataset | StreamedDataset, CachedDataset]:
        """The inputs to train on and to validate on; see `cached_or_streamed`.

        Args:
            first: Layers after which passes will resume.
            signals: Layers at which the edits' states are needed; by default the same.
            roles: Which inputs besides the requests; by default those that the loss has a term for.
            compared: Roles of inputs whose unedited answers are needed.
        """
        return cached_or_streamed(
            self.vlm,
            *self.split,
            first=first,
            signals=first if signals is None else signals,
            roles=list(dict.fromkeys(["request", *(roles or self.config.roles)])),
            compared=compared,
            keep=self.keep,
            out=self.out,
        )

    def fit(self, objective: Objective, **identity: Any) -> dict[str, Any]:
        """Train an objective to the end, or from where its last checkpoint is.

        Args:
            objective: What is trained.
            identity: What else identifies the training, besides the configuration and the data.

        Returns:
            A record of the training: options, data, steps, loss, curve (JSON).

        Raises:
            AttribError: The folder holds another training, or the loss is not finite.
        """
        config: TrainingConfig = self.config
        train, held_out = self.split
        identity = {
            "editor": self.name,
            "model": fingerprint(self.vlm),
            **template_record(self.vlm),
            **identity,
            "weights": config.loss_options,
            "data": [sample.id for sample in train],
        }
        with tensorboard(self.out) if self.tensorboard else nullcontext() as log_metrics:
            trainer = Trainer(objective, config, self.out, identity, logger.info, log_metrics)
            state = trainer.train()
        (best,) = (metrics for metrics in state.curve if metrics["step"] == state.best_step)
        return {
            "training": config.training_options,
            "weights": config.loss_options,
            "samples": len(train),
            "held_out": len(held_out),
            "best_step": state.best_step,
            "best_loss": best["loss"],
            "seconds": state.seconds,
            "curve": state.curve,
        }


def validation_split(
    samples: Sequence[EditSample], validation: Sequence[EditSample] | None
) -> tuple[list[EditSample], list[EditSample]]:
    """Samples to train on and to validate on; by default the last 5 %, at most 100, are held out.

    Raises:
        AttribError: A sample is in both.
    """
    if validation is not None:
        trained = {sample.id for sample in samples}
        if both := [sample.id for sample in validation if sample.id in trained]:
            raise AttribError(
                f"validation: {both[0]!r} is trained on as well; give samples of another split, or "
                "none, to hold out the last ones"
            )
        return list(samples), list(validation)
    num = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(samples))))
    return list(samples)[:-num], list(samples)[-num:]


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder of a training or of a grid for this process.

    Raises:
        SetupError: Another process holds it.
    """
    with locked(out / ".training", wait=False) as alone:
        if not alone:
            raise SetupError(
                f"{out}: another process is training in this folder; wait for it, or give another "
                "--out"
            )
        yield


@contextmanager
def tensorboard(out: Path) -> Iterator[LogMetrics]:
    """A function that writes metrics of steps into `out / "tensorboard"`.

    Raises:
        SetupError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SetupError(
            f"TensorBoard is not installed ({error}): pip install 'attrib[tensorboard]'"
        ) from error
    with SummaryWriter(str(out / TENSORBOARD)) as writer:

        def log_metrics(step: int, metrics: Mapping[str, float]) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        yield log_metrics
