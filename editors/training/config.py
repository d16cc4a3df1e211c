"""Settings that go together: the papers', and those that suit the small embedded models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.sites import AdapterConfig
from editors.training.losses import Weights
from editors.training.setting_values import check_value
from editors.training.trainer import Training

SMALL = 512  # width of the residual stream below which a model is taken for a small one
PHRASE = 5  # words in an answer from which on it is taken for a phrase


@dataclass(frozen=True)
class Preset:
    """How adapters are made and trained."""

    training: Training
    adapters: Mapping[str, Any]
    weights: Weights

    def adapters_at(self, layers: Mapping[str, Sequence[int]]) -> AdapterConfig:
        """The adapters of this preset, at these layers."""
        return AdapterConfig({m: list(some) for m, some in layers.items()}, **self.adapters)

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
            elif name in _names(AdapterConfig) - {"layers"}:
                check_value(AdapterConfig, name, value)
                adapters[name] = value
            else:
                known = sorted(
                    _names(Training) | _names(Weights) | _names(AdapterConfig) - {"layers"}
                )
                raise AttribError(f"no setting {name!r}; there are {', '.join(known)}")
        return Preset(training, adapters, weights)


EMBEDDED = Preset(
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
)
PRESETS = {
    "published": Preset(Training(), {}, Weights()),
    "embedded": EMBEDDED,
    # Which words of a phrase belong together no single one of them shows, and what is written over
    # a whole scene cannot spare other questions, which the gate does. At the rate that suits single
    # words adapters mix up phrases even after 1,000 steps: see LOG.md.
    "embedded_phrases": replace(
        EMBEDDED,
        training=replace(EMBEDDED.training, steps=600, learning_rate=5e-3),
        adapters={**EMBEDDED.adapters, "signal_window": 8},
        weights=replace(EMBEDDED.weights, locality=0.1),
    ),
}


def preset_for(
    vlm: VLM, preset: str | Preset, samples: Sequence[EditSample] = (), **changes: Any
) -> Preset:
    """A preset by name, with changes.

    "auto" is "published", but for models as small as the embedded ones "embedded", or
    "embedded_phrases" where most of the `samples` have answers of many words.

    Raises:
        AttribError: There is no such preset, or no such setting to change.
    """
    if isinstance(preset, Preset):
        return preset.changed(**changes)
    if preset == "auto":
        small = "embedded_phrases" if has_phrases(samples) else "embedded"
        preset = small if vlm.d_model < SMALL else "published"
    if preset not in PRESETS:
        raise AttribError(f"no preset {preset!r}; there are auto, {', '.join(PRESETS)}")
    return PRESETS[preset].changed(**changes)


def has_phrases(samples: Sequence[EditSample]) -> bool:
    """Whether most answers have many words; False of no samples."""
    words = [len(sample.request.target.split()) for sample in samples]
    return bool(words) and median(words) >= PHRASE


def _names(settings: type) -> set[str]:
    return {f.name for f in fields(settings)}
