"""`TrainableEditor`: one front end for training, saving and loading all editors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError, describe
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from attrib.runs.distributed import ProcessGroup
from editors.base import encode_requests
from editors.gating.gates import NO_GATE
from editors.io import read_record, write_record
from editors.training.config import EditorConfig
from editors.training.end_token import with_end_token
from editors.training.run import TrainingJob, alone_in

Made = TypeVar("Made", bound="TrainableEditor")


@dataclass(frozen=True, eq=False, repr=False)
class TrainableEditor(ABC):
    """What all editors share: training, saving and loading.

    Attributes:
        name: Name of the editor, as in `editors.EDITORS`.
        needs_layers: Whether `train` must be given layers.
        is_trained: Whether the editor learns before its first edit, so that seeds differ.
        takes_gate: Whether a gate can decide which inputs an edit applies to.
        writes_no_layer: For editors that take no layers, what they do instead.
        config_class: Its options and presets.
        recorded: Its attributes (JSON) that are saved beside the options.
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
    recorded: ClassVar[tuple[str, ...]] = ()

    vlm: VLM
    config: Any  # of the type `config_class`
    trained: Mapping[str, Any] | None = field(default=None, kw_only=True)

    @classmethod
    def train(
        cls: "type[Made]",
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
    ) -> "Made":
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
                no step runs the layers before it; by default if memory allows, else in files
                below `out` if the disk does.
            tensorboard: Whether to write the curves for TensorBoard as well.
            options: Fields of `config_class` that differ from the preset.

        Returns:
            The trained editor.

        Raises:
            AttribError: Unknown options or layers, too few samples, another training in `out`, or
                a loss that is not finite.
            SetupError: The model has no such part to edit, or another process trains in `out`.
        """
        if gate not in (None, NO_GATE) and not cls.takes_gate:
            raise AttribError(
                f"{cls.name} is trained without a gate and takes no gate={gate!r}; put one in "
                f"front of its edits: attrib evaluate --gate {gate}"
            )
        if layers and cls.writes_no_layer:
            raise AttribError(f"{cls.name} writes no layer: {cls.writes_no_layer}; leave them out")
        if tensorboard and not cls.is_trained:
            raise AttribError(f"{cls.name} has nothing to train; leave tensorboard out")
        config = cls.config_class.from_preset(vlm, preset, samples, **options)
        given = (validation, layers, gate, keep, tensorboard)
        group = ProcessGroup.from_environment()
        with alone_in(Path(out)) if group.is_main else nullcontext():
            editor = cls._train(TrainingJob(cls.name, vlm, config, samples, Path(out), *given))
            if group.is_main:
                editor.save(out)
        group.barrier()
        return editor

    def __repr__(self) -> str:
        trained = self.trained or {}
        steps = trained.get("training", {}).get("steps")
        how = "" if steps is None else f", {steps} steps, loss {trained['best_loss']:.3f}"
        return f"{type(self).__name__} of {self.vlm.name}{how}: {self.config!r}"

    def encode(self, vlm: VLM, request: EditRequest) -> Batch:
        """Encode a request that is edited, with the end token if the options say so."""
        return encode_requests(
            vlm, [with_end_token(vlm, request) if self.config.end_token else request]
        )

    @classmethod
    @abstractmethod
    def _train(cls: "type[Made]", job: TrainingJob) -> "Made":
        """Train; `train` has checked the arguments and saves the result."""

    def save(self, path: str | Path) -> None:
        """Write the editor: safetensors for what was trained, then JSON for its record.

        A folder with a record is taken for a whole editor, so the record comes last.
        """
        self._save_tensors(Path(path))
        record = {**self._record(), "trained": self.trained}
        write_record(Path(path), self.name, self.vlm, record)

    @classmethod
    def load(cls: "type[Made]", path: str | Path, vlm: VLM) -> "Made":
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
        except (
            OSError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
            SafetensorError,
        ) as error:
            why = describe(error)
            raise SetupError(
                f"{path}: incomplete, damaged, or of another version: {why}"
            ) from error

    def _record(self) -> dict[str, Any]:
        """What `editor.json` holds besides the training's record (JSON)."""
        own = {name: getattr(self, name) for name in self.recorded}
        return own | {"settings": self.config.settings()}

    def _save_tensors(self, path: Path) -> None:
        """Write what was trained; nothing by default."""
        del path

    @classmethod
    @abstractmethod
    def _load(cls: "type[Made]", vlm: VLM, record: Mapping[str, Any], path: Path) -> "Made":
        """The editor of a record, with its tensors in the folder `path`."""
