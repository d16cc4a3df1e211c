"""Fine-tuning on the request alone: FT-V at the model's visual side, FT-L in its last layer.

The settings are those of the re-implementation that the papers' rows come closest to (AdamW, at
most 25 steps, no step once the loss is below 0.01); `preset="vlkeb"` has those of the VLKEB
benchmark for LLaVA (its BLIP-2: steps=15, learning_rate=2e-4). Nothing is trained beforehand.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.vlm import VLM
from editors.base import Edit, WeightEdit, encode_requests
from editors.io.editor import read_record, write_record
from editors.methods.finetune_steps import Logits, Tuning, fitted
from editors.training.settings import refuse_gate, settings_of
from editors.weights.mlp import last_layers, matrices_of
from editors.weights.partial_forward import labels_of, tail_of
from editors.weights.vision import visual_parameters

Made = TypeVar("Made", bound="FineTuning")


@dataclass(frozen=True, eq=False)
class FineTuning(ABC):
    """Gradient steps on a request; what FT-V and FT-L share.

    Attributes:
        vlm: The model.
        tuning: The settings.
        layers: Whose feed-forward networks are trained; none for FT-V.
        trained: What a trained editor says of its training; here its settings.
    """

    name: ClassVar[str]
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False
    sequential: ClassVar[bool] = True  # several edits set the same weights
    presets: ClassVar[Mapping[str, Sequence[Tuning]]]

    vlm: VLM
    tuning: Tuning = field(default_factory=Tuning)
    layers: Sequence[int] = ()
    trained: Mapping[str, Any] | None = None

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
        **changes: Any,
    ) -> "Made":
        """Write the settings into the folder `out`; there is nothing to train.

        Args:
            vlm: The model.
            samples: Not looked at; nor is `validation`.
            out: The folder.
            layers: FT-L: instead of the last layer.
            validation: See `samples`.
            gate: None, or "none".
            preset: "published", "embedded", "vlkeb", or "auto": by the size of the model.
            changes: Settings other than the preset's: of `Tuning`.

        Raises:
            SetupError: The model has no such part.
            AttribError: There is no such setting or layer.
        """
        del samples, validation
        refuse_gate(cls.name, gate)
        (tuning,) = settings_of(vlm, cls.presets, preset, changes)
        trained = {"settings": asdict(tuning), "seconds": 0.0, "curve": []}
        editor = cls(vlm, tuning, cls._layers(vlm, layers), trained)
        _ = editor._parameters()  # a model without them is refused now
        editor.save(out)
        return editor

    @classmethod
    @abstractmethod
    def _layers(cls, vlm: VLM, layers: Any) -> list[int]:
        """The layers whose networks are trained."""

    @abstractmethod
    def _parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""

    @abstractmethod
    def _logits(self, batch: Batch) -> Logits:
        """What runs the model on the request: logits at the answer's positions."""

    def edit(self, vlm: VLM, request: EditRequest) -> WeightEdit:
        """The edit that gradient steps on a request lead to, from the model as it is now."""
        batch = encode_requests(vlm, [request])
        here = replace(self, vlm=vlm)
        logits, labels = here._logits(batch), labels_of(batch)
        return WeightEdit(fitted(vlm, self.tuning, here._parameters(), logits, labels))

    def merge(self, edits: Sequence[Edit]) -> Edit:
        """The one edit, if it is one.

        Raises:
            AttribError: There are several, whose weights exclude each other.
        """
        if len(edits) == 1:
            return edits[0]
        raise AttribError(
            f"{len(edits)} edits of {self.name} set the same weights; make and apply one inside "
            "the other: inside first.applied(vlm), second = editor.edit(vlm, request)"
        )

    def save(self, path: str | Path) -> None:
        """Write the settings as JSON."""
        about = {"layers": list(self.layers), "settings": asdict(self.tuning)}
        write_record(Path(path), self.name, self.vlm, about | {"trained": self.trained})

    @classmethod
    def load(cls: "type[Made]", path: str | Path, vlm: VLM) -> "Made":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it is of another model or another editor.
        """
        record = read_record(Path(path), cls.name, vlm)
        try:
            return cls(vlm, Tuning(**record["settings"]), record["layers"], record["trained"])
        except (KeyError, TypeError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error


@dataclass(frozen=True, eq=False)
class FTV(FineTuning):
    """Trains the Q-Former or the projector, which text alone does not pass: T-Loc is 100."""

    name: ClassVar[str] = "ft-v"
    presets: ClassVar[Mapping[str, Sequence[Tuning]]] = {
        "published": [Tuning()],
        "embedded": [Tuning()],
        "vlkeb": [Tuning(steps=10, learning_rate=1e-4)],
    }

    @classmethod
    def _layers(cls, vlm: VLM, layers: Any) -> list[int]:
        if layers is not None:
            raise AttribError(f"ft-v trains what is in front of {vlm.name}'s layers; give none")
        return []

    def _parameters(self) -> dict[str, Tensor]:
        return dict(visual_parameters(self.vlm, self.tuning.part))

    def _logits(self, batch: Batch) -> Logits:
        assert batch.labels is not None
        asked = batch.labels != IGNORE_INDEX
        if not bool(batch["visual"].any()):
            raise AttribError(
                "ft-v: the request has no image, which is all it can change; ft-l can"
            )
        return lambda: self.vlm.logits(batch)[asked]


@dataclass(frozen=True, eq=False)
class FTL(FineTuning):
    """Trains the output matrix of the last layer's feed-forward network."""

    name: ClassVar[str] = "ft-l"
    presets: ClassVar[Mapping[str, Sequence[Tuning]]] = {
        "published": [Tuning()],
        # At 1e-3 two edits in three do not take; 25 steps are few for an answer of many words.
        "embedded": [Tuning(steps=50, learning_rate=3e-3)],
        "vlkeb": [Tuning(steps=10, learning_rate=1e-4, matrices="up_down")],
    }

    @classmethod
    def _layers(cls, vlm: VLM, layers: Any) -> list[int]:
        return last_layers(vlm, layers, 1)

    def _parameters(self) -> dict[str, Tensor]:
        chosen = matrices_of(self.vlm, self.layers, self.tuning.matrices)
        return {matrix.name: matrix.module.weight for matrix in chosen}

    def _logits(self, batch: Batch) -> Logits:
        tail = tail_of(self.vlm, batch, min(self.layers))
        return lambda: self.vlm.unembed(tail())
