"""How LTE is set up: what is trained, how an edit is written, and who is given it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.context.prompt_edit import fact_of
from editors.context.retrieval import SentenceEncoder, StatesEncoder, encoder_of, text_threshold
from editors.methods.lora import AllLayers, LowRank
from editors.training.losses import Weights
from editors.training.trainer import Training


@dataclass(frozen=True)
class LTESettings:
    """What is trained, and how an edit is written.

    Attributes:
        parameters: "low_rank" additions to queries, keys and values, or "all" parameters of the
            decoder layers (in float32, with Adam's two moments).
        rank: Of the additions (published: 8).
        alpha: Their scale times the rank (published: 16).
        template: What stands in front of a question, with "{fact}" for the edit; the short form of
            LiveEdit's code.
        scope: Who is given the text when several edits hold together: "retrieved", the nearest edit
            if it is near enough, or "always" the nearest. One edit alone is given to all.
        threshold: Cosine from which on an edit is near enough; None for the one that does best on
            training edits (published: 0.3, with a sentence encoder).
        sentence_encoder: Folder of a model for the package sentence-transformers; without one the
            model's own states are compared.
        compared_layer: Whose states those are; None for the middle one.
    """

    parameters: Literal["low_rank", "all"] = "low_rank"
    rank: int = 8
    alpha: float = 16.0
    template: str = "[Updated Information]: {fact}\n[Query]: "
    scope: Literal["retrieved", "always"] = "retrieved"
    threshold: float | None = None
    sentence_encoder: str | None = None
    compared_layer: int | None = None


SMALL = Training(
    steps=1000,
    batch_size=8,
    optimizer="muon",
    learning_rate=4e-3,
    warmup=30,
    decay="cosine",
    clip=1.0,
    validate_every=100,
    save_every=100,
    best_by="right",
)
PRESETS = {
    "published": [Training(learning_rate=3e-4), Weights(), LTESettings()],
    "published_all": [
        Training(learning_rate=5e-6, batch_size=1),
        Weights(),
        LTESettings(parameters="all"),
    ],
    "embedded": [SMALL, Weights(), LTESettings(rank=32, alpha=64.0)],
}


def check_template(template: str) -> None:
    """Refuse a template in which there is no place for the edit, or for something else."""
    try:
        holds = template.format(fact="\0").count("\0") == 1
    except (KeyError, IndexError, ValueError):
        holds = False
    if not holds:
        raise AttribError(f"template: {template!r} must have one '{{fact}}', where the edit goes")


def change_of(
    vlm: VLM, layers: Sequence[int], settings: LTESettings, seed: int
) -> LowRank | AllLayers:
    """What is trained, as it is before training: without an effect."""
    if settings.parameters == "all":
        return AllLayers(vlm, layers)
    return LowRank(vlm, layers, settings.rank, settings.alpha, seed)


def scope_of(
    vlm: VLM, change: LowRank | AllLayers, settings: LTESettings, samples: Sequence[EditSample]
) -> tuple[StatesEncoder | SentenceEncoder, float, Any]:
    """The encoder, the threshold, and how that was found."""
    facts = [fact_of(sample.request) for sample in samples]
    with change.applied(vlm):
        encoder = encoder_of(vlm, settings.sentence_encoder, settings.compared_layer, facts)
        if settings.threshold is not None:
            return encoder, settings.threshold, "as given"
        if not any(sample.text_locality or sample.visual_locality for sample in samples):
            return encoder, -1.0, "there were no unrelated inputs to find it by"
        found = text_threshold(encoder, samples, facts)
    return encoder, found.threshold, found.record()
