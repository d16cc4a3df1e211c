"""`Editor.train`: one front end for all editors, and the files that an editor is saved in."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from attrib.data.samples import EditSample
from attrib.errors import AttribError, SetupError
from attrib.model.vlm import VLM
from attrib.runs.provenance import fingerprint
from editors.gating.fit import NO_GATE
from editors.io.editor import read_record, write_record
from editors.training.config import EditorConfig, TrainingConfig
from editors.training.process_group import ProcessGroup
from editors.training.trainer import LogMetrics, Objective, Trainer

logger = logging.getLogger("attrib")
HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 100  # of the training samples, without validation samples
TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class TrainingJob:
    """The arguments of `TrainableEditor.train`, checked; see there.

    Attributes:
        name: Name of the editor.
        config: All options.
    """

    name: str
    vlm: VLM
    config: Any  # the editor's own subclass of `EditorConfig`
    samples: Sequence[EditSample]
    validation: Sequence[EditSample] | None
    out: Path
    layers: Any
    gate: str | None
    keep: bool | None
    tensorboard: bool

    @cached_property
    def split(self) -> tuple[list[EditSample], list[EditSample]]:
        """Samples to train on and to validate on.

        Raises:
            AttribError: They overlap, or there is nothing to train on.
        """
        train, held_out = validation_split(self.samples, self.validation)
        if not train:
            raise AttribError(f"{self.name}: {len(self.samples)} samples are too few to train on")
        return train, held_out

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


class TrainableEditor(ABC):
    """What all editors share: training, saving and loading.

    Attributes:
        name: Name of the editor, as in `editors.EDITORS`.
        needs_layers: Whether `train` must be given layers.
        is_trained: Whether the editor learns before its first edit, so that seeds differ.
        takes_gate: Whether a gate can decide which inputs an edit applies to.
        writes_no_layer: For editors that take no layers, what they do instead.
        config_class: Its options and presets.
        vlm: The model that it was trained for.
        config: Its options.
        trained: Record of its training (JSON).
    """

    name: ClassVar[str]
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True
    takes_gate: ClassVar[bool] = False
    writes_no_layer: ClassVar[str] = ""
    config_class: ClassVar[type[EditorConfig]]

    vlm: VLM
    trained: Mapping[str, Any] | None

    @classmethod
    def train(
        cls,
        vlm: VLM,
        samples: Sequence[EditSample] = (),
        *,
        out: str | Path,
        layers: Any = None,
        validation: Sequence[EditSample] | None = None,
        gate: str | None = None,
        preset: str = "auto",
        keep: bool | None = None,
        tensorboard: bool = False,
        **options: Any,
    ) -> Self:
        """Train the editor, and save it into the folder `out`, where a stopped training resumes.

        Args:
            vlm: The model; its weights stay frozen.
            samples: Edits to train on.
            out: Folder of the checkpoints and of the trained editor.
            layers: Layers to edit: by modality ({"text": [4], "visual": [2]}), a `LayerReport`, or
                a list; by default the editor's own choice, if it has one.
            validation: Edits that select the best weights; by default the last 5 % of `samples`
                (at most 100), which are then not trained on.
            gate: What decides which inputs an edit applies to: "none", "prompt_last",
                "sequence_last" (as published; reads the answer) or "learned"; by default the
                editor's own choice.
            preset: One of `config_class.presets`, or "auto", which depends on the model's size,
                and for adapters on the length of the answers.
            keep: Whether the states of all inputs at the first layer written are cached, so that
                no step runs the layers before it; by default if memory allows.
            tensorboard: Whether to write the curves for TensorBoard as well.
            options: Fields of `config_class` that differ from the preset.

        Returns:
            The trained editor.

        Raises:
            AttribError: Unknown options or layers, too few samples, another training in `out`, or
                a loss that is not finite.
            SetupError: The model has no such part to edit.
        """
        if gate not in (None, NO_GATE) and not cls.takes_gate:
            raise AttribError(
                f"{cls.name} changes the model for every input and takes no gate; leave "
                f"gate={gate!r} out"
            )
        if layers and cls.writes_no_layer:
            raise AttribError(f"{cls.name} writes no layer: {cls.writes_no_layer}; leave them out")
        if tensorboard and not cls.is_trained:
            raise AttribError(f"{cls.name} has nothing to train; leave tensorboard out")
        config = cls.config_class.from_preset(vlm, preset, samples, **options)
        editor = cls._train(
            TrainingJob(
                cls.name, vlm, config, samples, validation, Path(out), layers, gate, keep,
                tensorboard,
            )
        )  # fmt: skip
        group = ProcessGroup.from_environment()
        if group.is_main:
            editor.save(out)
        group.barrier()
        return editor

    @classmethod
    @abstractmethod
    def _train(cls, job: TrainingJob) -> Self:
        """Train; `train` has checked the arguments and saves the result."""

    def save(self, path: str | Path) -> None:
        """Write the editor: JSON for its record, safetensors for what was trained."""
        record = {**self._record(), "trained": self.trained}
        write_record(Path(path), self.name, self.vlm, record)
        self._save_tensors(Path(path))

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> Self:
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it was trained for another model or is another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            return cls._load(vlm, record, path)
        except AttribError:
            raise
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SetupError(f"{path}: incomplete, or of another version: {error}") from error

    @abstractmethod
    def _record(self) -> dict[str, Any]:
        """What `editor.json` holds besides the training's record (JSON)."""

    def _save_tensors(self, path: Path) -> None:
        """Write what was trained; nothing by default."""

    @classmethod
    @abstractmethod
    def _load(cls, vlm: VLM, record: Mapping[str, Any], path: Path) -> Self:
        """The editor of a record, with its tensors in the folder `path`."""


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
