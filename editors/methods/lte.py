"""LTE: a decoder that was trained to follow an edit written in front of its question.

Source: Jiang et al. 2024 ("Learning to Edit"), as LiveEdit's code adapts it: trained on the edits
and their evaluation inputs, not on instructions. Unlike there, the edit's text comes without the
edit's image, so that a question has one image; locality is compared with the original model's
answers, in training and in scores; and the low-rank additions have no dropout.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.sites import Gate
from editors.base import Edit
from editors.context import PromptEdit, fact_of, retrieval
from editors.gating.gated_editor import GatedEditor
from editors.gating.gates import UNGATED
from editors.io import save_tensors
from editors.methods import baseline_presets
from editors.methods.lte_objective import AllLayers, LowRank, LTEObjective, facts_of
from editors.training.config import EditorConfig, TrainingConfig
from editors.training.dataset import cache_dataset
from editors.training.editor import TrainableEditor
from editors.training.presets import Preset
from editors.training.run import TrainingJob
from editors.weights.components import last_layers

CHANGE, ENCODER = "change.safetensors", "encoder.safetensors"


class LTEConfig(TrainingConfig, retrieval.RetrievalOptions):
    """Options of LTE: what is trained, and how an edit is written.

    Attributes:
        parameters: "low_rank" additions to queries, keys and values, or "all" parameters of the
            decoder layers (in float32, with Adam's two moments).
        rank: Rank of the additions (published: 8).
        alpha: Their scale times the rank (published: 16).
        template: The text in front of a question, with "{fact}" for the edit; the short form of
            LiveEdit's code.
        scope: Which inputs get the text: "retrieved", those near enough to an edit, or "always"
            all, the nearest edit's. Behind a gate it is the gate that decides.
        threshold: Lowest cosine at which an edit is near enough; None for the best one on the
            training edits (published: 0.3, with a sentence encoder).
        checkpoint_activations: Keep only the inputs of decoder layers for the backward pass, which
            computes the rest again: less memory, one more pass through the layers per step, and the
            same gradients.
    """

    presets: ClassVar[Mapping[str, Preset]] = baseline_presets.LTE
    large: ClassVar[str] = "lte-lora"
    without_effect: ClassVar[frozenset[str]] = (
        TrainingConfig.without_effect | {"checkpoint_activations"}
    )  # fmt: skip

    parameters: Literal["low_rank", "all"] = "low_rank"
    rank: int = 8
    alpha: float = 16.0
    template: str = "[Updated Information]: {fact}\n[Query]: "
    scope: Literal["retrieved", "always"] = "retrieved"
    threshold: float | None = None
    checkpoint_activations: bool = False


@dataclass(frozen=True, eq=False)
class LTEEdit:
    """Text in front of questions, for a decoder that has learned to follow it.

    Attributes:
        change: What the decoder has learned; any number of edits share it.
        prompt: The text.
    """

    change: LowRank | AllLayers
    prompt: PromptEdit

    @property
    def facts(self) -> tuple[EditRequest, ...]:
        """The edited requests."""
        return self.prompt.facts

    @property
    def num_bytes(self) -> int:
        """Bytes of the text and of what selects it."""
        return self.prompt.num_bytes

    def __repr__(self) -> str:
        return f"LTEEdit({len(self.facts)} edits, {self.num_bytes:,} bytes)"

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Apply the decoder's change, and the text in front of the selected questions."""
        with self.change.applied(vlm), self.prompt.applied(vlm):
            yield


@dataclass(frozen=True, eq=False, repr=False)
class LTE(TrainableEditor):
    """A change of the decoder, and the encoder that retrieves the edit of a question.

    Attributes:
        layers: The layers that are changed.
        change: What was trained.
        encoder: Encoder of prompts and edits, by the changed decoder.
        threshold: Lowest cosine at which an edit applies to a question.
    """

    name: ClassVar[str] = "lte"
    config_class: ClassVar[type[EditorConfig]] = LTEConfig
    recorded: ClassVar[tuple[str, ...]] = ("layers", "threshold")

    layers: Sequence[int]
    change: LowRank | AllLayers
    encoder: retrieval.StatesEncoder | retrieval.SentenceEncoder
    threshold: float

    @classmethod
    def _train(cls, job: TrainingJob) -> "LTE":
        vlm, config = job.vlm, job.config
        check_template(config.template)
        layers = last_layers(vlm, job.layers, vlm.num_layers)
        change = _untrained(vlm, layers, config, config.seed)
        objective = cls.objective(job, change)
        trained = job.fit(objective, layers=layers, settings=config.settings())
        encoder, threshold, trained["scope"] = _scope(vlm, change, config, job.split[0])
        return cls(vlm, config, layers, change, encoder, threshold, trained=trained)

    @classmethod
    def objective(cls, job: TrainingJob, change: LowRank | AllLayers) -> LTEObjective:
        """The loss of a change on a job's data."""
        vlm, config, (train, held_out) = job.vlm, job.config, job.split
        roles = list(dict.fromkeys(["request", *config.roles]))
        data = cache_dataset(vlm, [*train, *held_out], first=[], signals=[], roles=roles)
        return LTEObjective(vlm, *data.split(len(train)), config, change)

    @property
    def gate_name(self) -> str:
        """Name in tables of what selects the inputs that get an edit's text."""
        return "retrieval" if self.config.scope == "retrieved" else UNGATED

    def with_gate(self, gate: Gate | None) -> "LTE | GatedEditor":
        """The same decoder behind a gate in the place of its retrieval; None: the text always."""
        always = replace(self, config=self.config.changed(scope="always"))
        return always if gate is None else GatedEditor(always, gate)

    def edit(self, vlm: VLM, request: EditRequest) -> LTEEdit:
        """The edit that puts a request in front of questions: all, or those near enough to it."""
        del vlm
        text = self.config.template.format(fact=fact_of(request))
        alone = LTEEdit(self.change, PromptEdit((text,), (request,)))
        return alone if self.config.scope == "always" else self.merge([alone])

    def merge(self, edits: Sequence[Edit]) -> LTEEdit:
        """Edits as one: each question gets the nearest edit's text, or none (`scope`)."""
        prompts = [edit.prompt for edit in edits if isinstance(edit, LTEEdit)]
        texts = tuple(text for prompt in prompts for text in prompt.texts)
        facts = tuple(fact for prompt in prompts for fact in prompt.facts)
        known = [
            prompt.select.keys
            for prompt in prompts
            if isinstance(prompt.select, retrieval.NearestText)
        ]
        keys = torch.cat(known) if len(known) == len(prompts) else self._keys(facts)
        lowest = self.threshold if self.config.scope == "retrieved" else -1.0
        select = retrieval.NearestText(self.encoder, keys, lowest)
        return LTEEdit(self.change, PromptEdit(texts, facts, select))

    def _keys(self, facts: Sequence[EditRequest]) -> Float[Tensor, "fact width"]:
        """What prompts are compared with, encoded by the changed decoder."""
        with self.change.applied(self.vlm):
            return self.encoder([fact_of(fact) for fact in facts])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors, to which its edits belong."""
        return self.change.state_dict()

    def _save_tensors(self, path: Path) -> None:
        save_tensors(path / CHANGE, self.tensors)
        save_tensors(path / ENCODER, retrieval.encoder_tensors(self.encoder))

    @classmethod
    def _load(cls, vlm: VLM, record: Mapping[str, Any], path: Path) -> "LTE":
        config, layers = LTEConfig.from_record(record), record["layers"]
        change = _untrained(vlm, layers, config, seed=0)
        change.load_state_dict(load_file(path / CHANGE))
        encoder = retrieval.encoder_of(vlm, config, mean=load_file(path / ENCODER).get("mean"))
        return cls(
            vlm, config, layers, change, encoder, record["threshold"], trained=record["trained"]
        )


def check_template(template: str) -> None:
    """Refuse a template without exactly one place for the edit."""
    try:
        holds = template.format(fact="\0").count("\0") == 1
    except (KeyError, IndexError, ValueError):
        holds = False
    if not holds:
        raise AttribError(f"template: {template!r} must have one '{{fact}}', where the edit goes")


def _untrained(
    vlm: VLM, layers: Sequence[int], config: LTEConfig, seed: int
) -> LowRank | AllLayers:
    """What is trained; without effect before training."""
    if config.parameters == "all":
        return AllLayers(vlm, layers)
    return LowRank(vlm, layers, config.rank, config.alpha, seed)


def _scope(
    vlm: VLM, change: LowRank | AllLayers, config: LTEConfig, samples: Sequence[EditSample]
) -> tuple[retrieval.StatesEncoder | retrieval.SentenceEncoder, float, Any]:
    """The encoder, the threshold, and a record of how it was found."""
    facts = facts_of(vlm, config, [sample.request for sample in samples])
    with change.applied(vlm):
        encoder = retrieval.encoder_of(vlm, config, facts)
        if config.threshold is not None:
            return encoder, config.threshold, "as given"
        if not any(sample.text_locality or sample.visual_locality for sample in samples):
            return encoder, -1.0, "there were no unrelated inputs to find it by"
        found = retrieval.text_threshold(encoder, samples, facts)
    return encoder, found.threshold, found.record()
