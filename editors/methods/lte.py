"""LTE: a decoder that was taught to follow an edit written in front of its question.

Source: Jiang et al. 2024 ("Learning to Edit"), as LiveEdit's code adapts it: taught on the edits
and what they are judged by, not on instructions. Unlike there, the edit's text comes without the
edit's image, so that a question has one image, and the original model's answers are what locality
is compared with, in training and in scores. The low-rank additions have no dropout.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import SetupError
from attrib.model.vlm import VLM
from editors.base import Edit
from editors.context.prompt_edit import PromptEdit, fact_of
from editors.context.retrieval import (
    NearestText,
    SentenceEncoder,
    StatesEncoder,
    encoder_tensors,
    loaded_encoder,
)
from editors.io.editor import read_record, write_record
from editors.io.tensors import save_tensors
from editors.methods.lora import AllLayers, LowRank
from editors.methods.lte_objective import LTEObjective
from editors.methods.lte_settings import PRESETS, LTESettings, change_of, check_template, scope_of
from editors.prefix.cached_dataset import cache_dataset
from editors.training.held_out import held_out
from editors.training.losses import ROLES, Weights
from editors.training.run import EditorTraining
from editors.training.settings import refuse_gate, settings_of
from editors.weights.mlp import last_layers

logger = logging.getLogger("attrib")
CHANGE, ENCODER = "change.safetensors", "encoder.safetensors"


@dataclass(frozen=True, eq=False)
class LTEEdit:
    """Text in front of questions, for a decoder that has learned to follow it.

    Attributes:
        change: What the decoder has learned; it serves any number of edits.
        prompt: The text.
    """

    change: LowRank | AllLayers
    prompt: PromptEdit

    @property
    def facts(self) -> tuple[EditRequest, ...]:
        """What the texts are about."""
        return self.prompt.facts

    @property
    def num_bytes(self) -> int:
        """Bytes kept of the edit."""
        return self.prompt.num_bytes

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """The decoder follows the text, which is in front of every question or of those chosen."""
        with self.change.applied(vlm), self.prompt.applied(vlm):
            yield


@dataclass(frozen=True, eq=False)
class LTE:
    """A change of the decoder, and what finds the edit that a question is about.

    Attributes:
        vlm: The model it was trained for.
        layers: Which are changed.
        settings: What is trained, and how an edit is written.
        change: What was trained.
        encoder: Of prompts and edits, as the changed decoder sees them.
        threshold: Cosine from which on a question is about an edit.
        trained: How it was trained: data, steps, loss; JSON.
    """

    name: ClassVar[str] = "lte"
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = True

    vlm: VLM
    layers: Sequence[int]
    settings: LTESettings
    change: LowRank | AllLayers
    encoder: StatesEncoder | SentenceEncoder
    threshold: float
    trained: Mapping[str, Any] | None = None

    @classmethod
    def train(
        cls,
        vlm: VLM,
        samples: Sequence[EditSample],
        *,
        out: str | Path,
        layers: Any = None,
        gate: str | None = None,
        preset: str = "auto",
        validation: Sequence[EditSample] | None = None,
        **changes: Any,
    ) -> "LTE":
        """Teach the decoder; in the folder `out`, from where an interrupted run goes on.

        Args:
            vlm: The model; its own weights stay as they are.
            samples: Edits to train on.
            out: Folder of checkpoints and of the trained editor.
            layers: Which layers to change, instead of all.
            gate: Not used: what is given to whom is told by `scope`.
            preset: "published", "published_all" (all parameters), "embedded", or "auto": by the
                size of the model.
            validation: Edits by which the best weights are picked; by default the last 5 % of
                `samples` (at most 100), which are then not trained on.
            changes: Settings other than the preset's: of `Training`, `Weights` or `LTESettings`.

        Raises:
            AttribError: Unknown settings or layers, no samples, another run in `out`, a loss that
                is not finite.
        """
        refuse_gate(cls.name, gate)
        training, weights, settings = settings_of(vlm, PRESETS, preset, changes)
        check_template(settings.template)
        chosen = last_layers(vlm, layers, vlm.num_layers)
        kept, held = held_out(samples, validation)
        change = change_of(vlm, chosen, settings, training.seed)
        objective = _objective(vlm, change, kept, held, weights, settings.template)
        about = {"layers": chosen, "settings": settings}
        fitting = EditorTraining(cls.name, vlm, training, weights, kept, held, Path(out), about)
        trained = fitting.run(objective)
        encoder, threshold, found = scope_of(vlm, change, settings, kept)
        trained["scope"] = found
        return fitting.saved(cls(vlm, chosen, settings, change, encoder, threshold, trained))

    def edit(self, vlm: VLM, request: EditRequest) -> LTEEdit:
        """The edit that puts a request in front of every question; nothing is computed for it."""
        del vlm
        text = self.settings.template.format(fact=fact_of(request))
        return LTEEdit(self.change, PromptEdit((text,), (request,)))

    def merge(self, edits: Sequence[Edit]) -> LTEEdit:
        """Several edits: each question is given the nearest one, or none (see `scope`)."""
        prompts = [edit.prompt for edit in edits if isinstance(edit, LTEEdit)]
        texts = tuple(text for prompt in prompts for text in prompt.texts)
        facts = tuple(fact for prompt in prompts for fact in prompt.facts)
        with self.change.applied(self.vlm):
            keys = self.encoder([fact_of(fact) for fact in facts])
        lowest = self.threshold if self.settings.scope == "retrieved" else -1.0
        return LTEEdit(
            self.change, PromptEdit(texts, facts, NearestText(self.encoder, keys, lowest))
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was trained: edits are of no use without just these."""
        return self.change.state_dict()

    def save(self, path: str | Path) -> None:
        """Write what was trained as safetensors, and all about it as JSON."""
        path = Path(path)
        about = {
            "layers": list(self.layers),
            "settings": asdict(self.settings),
            "threshold": self.threshold,
            "trained": self.trained,
        }
        write_record(path, self.name, self.vlm, about)
        save_tensors(path / CHANGE, self.tensors)
        save_tensors(path / ENCODER, encoder_tensors(self.encoder))

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "LTE":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it was trained for another model or is another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            settings = LTESettings(**record["settings"])
            change = change_of(vlm, record["layers"], settings, seed=0)
            change.load_state_dict(load_file(path / CHANGE))
            tensors = load_file(path / ENCODER)
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error
        encoder = loaded_encoder(vlm, settings.sentence_encoder, settings.compared_layer, tensors)
        threshold, trained = record["threshold"], record["trained"]
        return cls(vlm, record["layers"], settings, change, encoder, threshold, trained)


def _objective(
    vlm: VLM,
    change: LowRank | AllLayers,
    samples: Sequence[EditSample],
    held: Sequence[EditSample],
    weights: Weights,
    template: str,
) -> LTEObjective:
    both = [*samples, *held]
    roles = [role for role in ROLES if role == "request" or weights.of(role)]
    data, rest = cache_dataset(vlm, both, first=[], signals=[], roles=roles).split(len(samples))
    return LTEObjective(vlm, change, {s.id: s for s in both}, data, rest, weights, template)
