"""Settings that go together: the papers', and those that suit the small embedded models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from attrib.errors import AttribError
from attrib.vlm import VLM
from editors.losses import Weights
from editors.placement import Adapters
from editors.setting_values import check_value
from editors.training import Training

SMALL = 512  # width of the residual stream below which a model is taken for a small one


@dataclass(frozen=True)
class Preset:
    """How adapters are made and trained."""

    training: Training
    adapters: Mapping[str, Any]
    weights: Weights

    def adapters_at(self, layers: Mapping[str, Sequence[int]]) -> Adapters:
        """The adapters of this preset, at these layers."""
        return Adapters({m: list(some) for m, some in layers.items()}, **self.adapters)

    def changed(self, **changes: Any) -> "Preset":
        """This preset with other settings; each is of `Training`, `Weights` or `Adapters`.

        Raises:
            AttribError: There is no such setting, or it has no such value.
        """
        training, weights, adapters = self.training, self.weights, dict(self.adapters)
        for name, value in changes.items():
            if name in _names(Training):
                check_value(Training, name, value)
                training = replace(training, **{name: value})
            elif name in _names(Weights):
                check_value(Weights, name, value)
                weights = replace(weights, **{name: value})
            elif name in _names(Adapters) - {"layers"}:
                check_value(Adapters, name, value)
                adapters[name] = value
            else:
                known = sorted(_names(Training) | _names(Weights) | _names(Adapters) - {"layers"})
                raise AttribError(f"no setting {name!r}; there are {', '.join(known)}")
        return Preset(training, adapters, weights)


PRESETS = {
    "published": Preset(Training(), {}, Weights()),
    "embedded": Preset(
        Training(
            steps=400,
            batch_size=16,
            optimizer="muon",
            learning_rate=2e-2,
            warmup=30,
            decay="cosine",
            clip=5.0,
            validate_every=50,
            save_every=50,
        ),
        {
            "d_adapter": 128,
            "num_heads": 8,
            "own_units": True,
            "signal": "both",  # embeddings know the words best, states their order: see LOG.md
            "signal_span": "answer",
        },
        Weights(),
    ),
}


def preset_for(vlm: VLM, preset: str | Preset, **changes: Any) -> Preset:
    """A preset by name, with changes; "auto" is "embedded" for models as small as those."""
    if isinstance(preset, Preset):
        return preset.changed(**changes)
    if preset == "auto":
        preset = "embedded" if vlm.d_model < SMALL else "published"
    if preset not in PRESETS:
        raise AttribError(f"no preset {preset!r}; there are auto, {', '.join(PRESETS)}")
    return PRESETS[preset].changed(**changes)


def _names(settings: type) -> set[str]:
    return {f.name for f in fields(settings)}
