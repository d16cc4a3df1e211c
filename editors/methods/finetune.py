"""Fine-tuning on the request alone: FT-V on the model's visual side, FT-L in its last layer.

The options are those of LiveEdit's re-implementation, which comes closest to the papers' rows
(AdamW, at most 25 steps, none once the loss is below 0.01); the presets "ft-l-vlkeb" and
"ft-v-vlkeb" have those of the VLKEB benchmark for LLaVA (its BLIP-2: steps=15,
learning_rate=2e-4). Nothing is trained beforehand.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.data.samples import EditRequest
from attrib.errors import AttribError
from attrib.model.batch import IGNORE_INDEX, Batch
from attrib.model.devices import loaded_weights
from attrib.model.vlm import VLM
from editors.base import Edit, WeightEdit
from editors.training.config import EditorConfig
from editors.training.editor import TrainableEditor
from editors.training.presets import TUNED, TUNED_SMALL, Preset
from editors.training.run import TrainingJob
from editors.weights.components import Part, Which, last_layers, matrices_of, visual_parameters
from editors.weights.passes import (
    WeightCaller,
    labels_of,
    partial_forward,
    target_loss,
)

Logits = Callable[[], Float[Tensor, "token d_vocab"]]


class FTVConfig(EditorConfig):
    """Options of fine-tuning.

    Attributes:
        steps: Largest number of AdamW steps.
        learning_rate: Learning rate.
        weight_decay: Weight decay.
        stop_below: No step is taken once the loss, in nats per token, is below it.
        part: What FT-V trains: the "connector" (the Q-Former if there is one, else the projector),
            the "projection" in any case, or the whole "vision_tower", as the papers say but no
            program does.
        matrices: What FT-L trains of an MLP: "down", its output matrix, "up_down" (VLKEB), or
            "all".
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "ft-v-liveedit": Preset("LiveEdit, `ft_vl` (25 steps at 1e-3)"),
        "ft-v-vlkeb": Preset("VLKEB, LLaVA-1.5", {"steps": 10, "learning_rate": 1e-4}),
        TUNED_SMALL: Preset("the settings of LiveEdit, which nothing tuned here improves"),
    }
    large: ClassVar[str] = "ft-v-liveedit"

    steps: int = 25
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    stop_below: float = 1e-2
    part: Part = "connector"
    matrices: Which = "down"


class FTLConfig(FTVConfig):
    """The same options, with presets of FT-L."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "ft-l-liveedit": Preset("LiveEdit, `ft_vl` (25 steps at 1e-3)"),
        "ft-l-vlkeb": Preset(
            "VLKEB, LLaVA-1.5", {"steps": 10, "learning_rate": 1e-4, "matrices": "up_down"}
        ),
        # At 1e-3 two edits in three fail; 25 steps are few for an answer of many words.
        TUNED_SMALL: Preset(TUNED, {"steps": 50, "learning_rate": 3e-3}),
    }
    large: ClassVar[str] = "ft-l-liveedit"


Made = TypeVar("Made", bound="FineTuning")


@dataclass(frozen=True, eq=False, repr=False)
class FineTuning(TrainableEditor):
    """Gradient steps on a request: what FT-V and FT-L share.

    Attributes:
        layers: The layers whose MLPs are trained; none for FT-V.
        sequential: Several edits set the same weights: each is made while the ones before it apply.
    """

    is_trained: ClassVar[bool] = False
    sequential: ClassVar[bool] = True
    recorded: ClassVar[tuple[str, ...]] = ("layers",)

    layers: Sequence[int] = ()

    @classmethod
    def _train(cls: "type[Made]", job: TrainingJob) -> "Made":
        trained = {"settings": job.config.settings(), "seconds": 0.0, "curve": []}
        editor = cls(job.vlm, job.config, cls._layers(job.vlm, job.layers), trained=trained)
        _ = editor._parameters()  # a model without them is refused now
        return editor

    @classmethod
    def _layers(cls: "type[Made]", vlm: VLM, layers: Any) -> list[int]:
        """The layers whose MLPs are trained."""
        del vlm, layers
        return []

    @abstractmethod
    def _parameters(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""

    @abstractmethod
    def _logits(self, batch: Batch) -> Logits:
        """A function that runs the model on the request: logits at the answer's positions."""

    def edit(self, vlm: VLM, request: EditRequest) -> WeightEdit:
        """The edit after gradient steps on a request, from the model as it is now."""
        batch = self.encode(vlm, request)
        here = replace(self, vlm=vlm)
        logits, labels = here._logits(batch), labels_of(batch)
        with loaded_weights(vlm.model, here._parameters()) as before:
            return WeightEdit(fine_tune(vlm, self.config, before, logits, labels))

    def merge(self, edits: Sequence[Edit]) -> Edit:
        """A single edit itself.

        Raises:
            AttribError: There are several, which set the same weights.
        """
        if len(edits) == 1:
            return edits[0]
        raise AttribError(
            f"{len(edits)} edits of {self.name} set the same weights; make and apply one inside "
            "the other: inside first.applied(vlm), second = editor.edit(vlm, request)"
        )

    def in_sequence(self, edits: Sequence[WeightEdit]) -> WeightEdit:
        """Edits that were made one after the other as one: the last values."""
        return WeightEdit({name: value for one in edits for name, value in one.weights.items()})

    @classmethod
    def _load(cls: "type[Made]", vlm: VLM, record: Mapping[str, Any], path: Path) -> "Made":
        del path  # the options are all there is
        config = cls.config_class.from_record(record)
        assert isinstance(config, FTVConfig)
        return cls(vlm, config, record["layers"], trained=record["trained"])


@dataclass(frozen=True, eq=False, repr=False)
class FTV(FineTuning):
    """Trains the Q-Former or the projector, which text alone does not pass: T-Loc is 100."""

    name: ClassVar[str] = "ft-v"
    writes_no_layer: ClassVar[str] = "it trains what is in front of the model's layers"
    config_class: ClassVar[type[EditorConfig]] = FTVConfig

    def _parameters(self) -> dict[str, Tensor]:
        return dict(visual_parameters(self.vlm, self.config.part))

    def _logits(self, batch: Batch) -> Logits:
        assert batch.labels is not None
        has_label = batch.labels != IGNORE_INDEX
        if not bool(batch["visual"].any()):
            raise AttribError(
                "ft-v: the request has no image, which is all it can change; ft-l can"
            )
        return lambda: self.vlm.logits(batch)[has_label]


@dataclass(frozen=True, eq=False, repr=False)
class FTL(FineTuning):
    """Trains the output matrix of the last layer's MLP."""

    name: ClassVar[str] = "ft-l"
    config_class: ClassVar[type[EditorConfig]] = FTLConfig

    @classmethod
    def _layers(cls, vlm: VLM, layers: Any) -> list[int]:
        return last_layers(vlm, layers, 1)

    def _parameters(self) -> dict[str, Tensor]:
        chosen = matrices_of(self.vlm, self.layers, self.config.matrices)
        return {matrix.name: matrix.module.weight for matrix in chosen}

    def _logits(self, batch: Batch) -> Logits:
        run = partial_forward(self.vlm, batch, min(self.layers))
        return lambda: self.vlm.unembed(run())


@torch.enable_grad()
def fine_tune(
    vlm: VLM, config: FTVConfig, before: Mapping[str, Tensor], logits: Logits, labels: Tensor
) -> dict[str, Tensor]:
    """The fine-tuned values of those parameters on which the request's answer depends.

    Steps are taken in float32 or better, whatever the model's dtype: half precision would round
    most of them away.
    """
    exact = {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32)).clone()
        for name, value in before.items()
    }
    trained = [value.requires_grad_() for value in exact.values()]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay
    )

    def rounded() -> dict[str, Tensor]:
        return {name: value.to(before[name].dtype) for name, value in exact.items()}

    caller = WeightCaller(vlm.model, exact)
    for _ in range(config.steps):
        loss = target_loss(caller.call(rounded(), logits), labels)
        if not bool(loss.isfinite()):
            raise AttribError(f"the loss is {loss.item()}; a smaller learning_rate would help")
        if loss.item() < config.stop_below:
            break
        # Not `backward`: the model's own parameters, if they require gradients, must get none.
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        for value, grad in zip(trained, grads, strict=True):
            value.grad = grad
        optimizer.step()
    changed = {name for name, value in exact.items() if value.grad is not None}
    return {name: value.detach() for name, value in rounded().items() if name in changed}
