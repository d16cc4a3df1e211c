"""Configurations of editors: validated options, presets, and the schedule of a training."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.optim import Adam, Muon, Optimizer, RMSprop

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.training.losses import LossWeights
from editors.training.presets import OLD_PRESETS, RETIRED, TUNED_SMALL, Preset

SMALL = 512  # residual width below which "auto" takes the preset tuned for small models
PHRASE = 5  # median number of words from which on answers count as phrases
# What the presets that are tuned for small models have in common.
SMALL_MODEL = {
    "batch_size": 8,
    "optimizer": "muon",
    "warmup": 30,
    "decay": "cosine",
    "validate_every": 50,
    "save_every": 50,
}
# Options and values of earlier versions, in saved editors and checkpoints.
OLD_NAMES = {"rate_speed": "rate_lr_multiplier", "price_speed": "lagrange_lr_multiplier"}
OLD_VALUES = {("best_by", "right"): "accuracy", ("mapper_target", "gentle"): "0.1-sigma"}


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, or a record with nested options, with today's names and values."""
    return {
        OLD_NAMES.get(name, name): current_names(value)
        if isinstance(value, Mapping)
        else OLD_VALUES.get((name, value), value)
        if isinstance(value, str)
        else value
        for name, value in options.items()
    }


Config = TypeVar("Config", bound="EditorConfig")


class EditorConfig(BaseModel):
    """Options of an editor; subclasses add theirs, with their presets.

    Attributes:
        presets: The named configurations.
        large: The preset that "auto" stands for on models that are not small.
        refused: Shared options that the editor does not have, each with the reason.
        seed: Seed of everything random.
        end_token: Whether edits write the model's end token after the target. The targets of the
            benchmarks have none, so that an edited model need not stop after the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    presets: ClassVar[Mapping[str, Preset]] = {"default": Preset("the options' defaults")}
    large: ClassVar[str] = "default"
    refused: ClassVar[Mapping[str, str]] = {}

    seed: int = 0
    end_token: bool = False

    @classmethod
    def from_preset(
        cls: "type[Config]",
        vlm: VLM,
        preset: str = "auto",
        samples: Sequence[EditSample] = (),
        **options: Any,
    ) -> "Config":
        """The options of a preset, overridden by `options`.

        Raises:
            AttribError: An unknown preset or option, or a value of the wrong type.
        """
        if preset == "auto":
            preset = cls.auto_preset(vlm, samples, options)
        preset = OLD_PRESETS.get(preset, preset)
        if preset not in cls.presets:
            why = f" ({RETIRED[preset]})" if preset in RETIRED else ""
            known = ", ".join(cls.presets)
            raise AttribError(f"no preset {preset!r}{why}; there are auto, {known}")
        return cls._checked({**cls.presets[preset].options, **current_names(options)})

    @classmethod
    def auto_preset(
        cls: "type[Config]", vlm: VLM, samples: Sequence[EditSample], options: Mapping[str, Any]
    ) -> str:
        """The preset that "auto" stands for: "tuned-small" for small models, else `large`."""
        del samples, options
        small = vlm.d_model < SMALL and TUNED_SMALL in cls.presets
        return TUNED_SMALL if small else cls.large

    @classmethod
    def from_record(cls: "type[Config]", record: Mapping[str, Any]) -> "Config":
        """The options in a saved editor's record (JSON).

        Raises:
            ValueError: They are not options of this editor.
        """
        trained = record.get("trained") or {}
        parts = [trained.get("training", {}), trained.get("weights", {})]
        shared = {k: v for part in parts for k, v in part.items() if k in cls.model_fields}
        return cls.model_validate(current_names({**shared, **record["settings"]}))

    def changed(self: "Config", **options: Any) -> "Config":
        """A copy with other options, checked as in `from_preset`."""
        return self._checked({**self.model_dump(exclude_unset=True), **current_names(options)})

    def settings(self) -> dict[str, Any]:
        """The options that belong to the editor and not to its training, as JSON."""
        return self.model_dump()

    @classmethod
    def options(cls) -> list[str]:
        """The names of its options."""
        return sorted(cls.model_fields.keys() - cls.refused.keys())

    @classmethod
    def _checked(cls: "type[Config]", values: Mapping[str, Any]) -> "Config":
        if why := next((cls.refused[name] for name in values if name in cls.refused), None):
            raise AttribError(why)
        known = cls.options()
        if unknown := [name for name in values if name not in known]:
            raise AttribError(f"no setting {unknown[0]!r}; there are {', '.join(known)}")
        try:
            return cls.model_validate(values, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            expected = first["msg"].removeprefix("Input should be ")
            expected = expected.replace("greater than or equal to", "at least")
            name = str(first["loc"][0])
            raise AttribError(f"{name}: no {values[name]!r}; expected {expected}") from None


class TrainingConfig(EditorConfig, LossWeights):
    """Options of editors that are trained; the defaults are DualEdit's (App. D).

    Attributes:
        steps: Number of optimizer steps (DualEdit App. D: 50,000; VisEdit App. B.4: 200,000).
        batch_size: Edits per step.
        micro_batch: Edits of a step whose gradients are computed at once; None for all. Fewer need
            less memory; the step is the same up to rounding (MEND's running statistics and SERAC's
            classifier see the parts one by one).
        optimizer: "adam"; "muon": Muon for matrices and Adam for the rest; or "rmsprop", centred.
        learning_rate: Peak learning rate.
        warmup: Steps of linear warm-up.
        decay: "constant", or "cosine" or "linear" to zero at the last step.
        clip: Largest gradient norm; None for no clipping.
        validate_every: Steps between validations.
        save_every: Steps between checkpoints.
        best_by: Which weights are kept: those with the smallest "loss" on held-out edits, or with
            the highest "accuracy" of answer tokens there (mean over the kinds of input).
        without_effect: Options that change what a training needs and not its result; they are
            neither recorded nor compared when it is resumed.
    """

    without_effect: ClassVar[frozenset[str]] = frozenset({"micro_batch"})

    steps: int = Field(50_000, ge=0)
    batch_size: int = Field(4, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    optimizer: Literal["adam", "muon", "rmsprop"] = "adam"
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip: float | None = None
    validate_every: int = Field(500, ge=1)
    save_every: int = Field(500, ge=1)
    best_by: Literal["loss", "accuracy"] = "loss"

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * step / self.steps)),
            # From the end of the warm-up on, as in the schedule of transformers.
            "linear": min(1.0, (self.steps - step) / max(1, self.steps - self.warmup)),
        }
        return self.learning_rate * rising * falling[self.decay]

    def items(self, step: int, num: int) -> list[int]:
        """Which of `num` items a step takes; each comes once per epoch."""
        wanted = range(step * self.batch_size, (step + 1) * self.batch_size)

        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([self.seed, epoch]).permutation(num)

        return [int(order(i // num)[i % num]) for i in wanted]

    def make_optimizers(self, parameters: Sequence[nn.Parameter]) -> list[Optimizer]:
        """The optimizers; each parameter is in exactly one.

        Muon orthogonalises the step of every matrix: small adapters then need a quarter of Adam's
        steps (LOG.md). Its steps are scaled to the size of Adam's.
        """
        lr = self.learning_rate
        if self.optimizer == "adam":
            return [Adam(parameters, lr=lr)]
        if self.optimizer == "rmsprop":
            return [RMSprop(parameters, lr=lr, centered=True)]
        matrices = [p for p in parameters if p.ndim == 2]
        others = [p for p in parameters if p.ndim != 2]
        muon = [Muon(matrices, lr, 0.0, adjust_lr_fn="match_rms_adamw")] if matrices else []
        return [*muon, *([Adam(others, lr=lr)] if others else [])]

    @property
    def training_options(self) -> dict[str, Any]:
        """The options of the training loop that its result depends on, as JSON."""
        left_out = {*self.loss_options, *self.without_effect}
        if not self.end_token:  # trainings of earlier versions resume
            left_out.add("end_token")
        return self.model_dump(include=set(TrainingConfig.model_fields) - left_out)

    @property
    def loss_options(self) -> dict[str, Any]:
        """The weights of the loss terms, as JSON."""
        return self.model_dump(include=set(LossWeights.model_fields))

    def settings(self) -> dict[str, Any]:
        """The options that belong to the editor and not to its training, as JSON."""
        shared = {*TrainingConfig.model_fields, *self.loss_options, *self.without_effect}
        return self.model_dump(exclude=shared)


def has_phrases(samples: Sequence[EditSample]) -> bool:
    """Whether most answers have many words; False of no samples."""
    words = [len(sample.request.target.split()) for sample in samples]
    return bool(words) and median(words) >= PHRASE
