"""IKE: the new fact, with demonstrations of such facts, in front of every question.

Source: Zheng et al. 2023 ("Can We Edit Factual Knowledge by In-Context Learning?"), as EasyEdit
adapts it to images: demonstrations are text alone, and the image of the question precedes them.
Nothing is trained and no weight changes.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError
from attrib.files import write_text
from attrib.model.vlm import VLM
from editors.base import Edit, encode_requests
from editors.context import PromptEdit, fact_of, max_positions, text_tokens
from editors.context.retrieval import (
    NearestText,
    RetrievalOptions,
    SentenceEncoder,
    StatesEncoder,
    encoder_of,
    encoder_tensors,
    nearest,
)
from editors.io import save_tensors
from editors.training.config import EditorConfig
from editors.training.editor import TrainableEditor
from editors.training.presets import TUNED_SMALL, Preset
from editors.training.run import TrainingJob

logger = logging.getLogger("attrib")
KEYS, TEXTS = "demonstrations.safetensors", "demonstrations.json"
LINE = "New Fact: {fact}\nPrompt: "


class IKEConfig(EditorConfig, RetrievalOptions):
    """Options of IKE: how demonstrations are retrieved.

    Attributes:
        demonstrations: Number in front of the edit's own (published: 32), if they fit.
        room: Positions left free for questions longer than the edit's own and for generation.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "ike-easyedit": Preset("EasyEdit, `models/ike`, 32 demonstrations", {}, {
            "encoder": "the model's own states unless a sentence encoder is given (program: "
            "all-MiniLM-L6-v2)",
            "demonstrations": "fewer where 32 do not fit the model's positions",
        }),
        TUNED_SMALL: Preset("what fits 512 positions", {"demonstrations": 1, "room": 96}),
    }  # fmt: skip
    large: ClassVar[str] = "ike-easyedit"
    refused: ClassVar[Mapping[str, str]] = {
        "end_token": "end_token: ike trains nothing that could write it; leave it out"
    }

    demonstrations: int = 32
    room: int = 64


@dataclass(frozen=True, eq=False, repr=False)
class IKE(TrainableEditor):
    """A corpus of demonstrations, and the encoder that retrieves those of an edit.

    Attributes:
        corpus: All demonstrations.
        encoder: Encoder of texts.
        keys: The encoded corpus.
    """

    name: ClassVar[str] = "ike"
    is_trained: ClassVar[bool] = False
    writes_no_layer: ClassVar[str] = "it changes what the model is given"
    config_class: ClassVar[type[EditorConfig]] = IKEConfig

    corpus: Sequence[str]
    encoder: StatesEncoder | SentenceEncoder
    keys: Float[Tensor, "demonstration width"]

    @classmethod
    def _train(cls, job: TrainingJob) -> "IKE":
        vlm, config, samples = job.vlm, job.config, job.usable
        began, corpus = time.monotonic(), demonstrations(samples)
        if not corpus:
            raise AttribError("there is no sample to make demonstrations of")
        encoder = encoder_of(vlm, config, corpus)
        keys = encoder(corpus)
        trained = {
            "settings": config.settings(),
            "samples": len(samples),
            "demonstrations": len(corpus),
            "seconds": time.monotonic() - began,
            "curve": [],
        }
        editor = cls(vlm, config, corpus, encoder, keys, trained=trained)
        editor._warn_if_few_fit(samples[0].request)
        return editor

    def edit(self, vlm: VLM, request: EditRequest) -> PromptEdit:
        """The edit that puts a request in front of every question, after its demonstrations.

        The most similar demonstration comes first and the edit's own last. If the model has too few
        positions for all, the least similar ones are left out.
        """
        return PromptEdit((context(self._retrieved(vlm, request), request),), (request,))

    def merge(self, edits: Sequence[Edit]) -> PromptEdit:
        """Several edits as one: each input gets the text of the edit with the most similar prompt.

        No input is out of scope; as with one edit alone, each gets some text.
        """
        some = [edit for edit in edits if isinstance(edit, PromptEdit)]
        texts = tuple(text for edit in some for text in edit.texts)
        facts = tuple(fact for edit in some for fact in edit.facts)
        keys = self.encoder([fact.prompt or " " for fact in facts])
        return PromptEdit(texts, facts, NearestText(self.encoder, keys))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The keys of the demonstrations, to which its edits belong."""
        return {"keys": self.keys, **encoder_tensors(self.encoder)}

    def _save_tensors(self, path: Path) -> None:
        write_text(path / TEXTS, json.dumps(list(self.corpus), indent=0))
        save_tensors(path / KEYS, self.tensors)

    @classmethod
    def _load(cls, vlm: VLM, record: Mapping[str, Any], path: Path) -> "IKE":
        config = IKEConfig.from_record(record)
        corpus, tensors = json.loads((path / TEXTS).read_text()), load_file(path / KEYS)
        encoder = encoder_of(vlm, config, mean=tensors.get("mean"))
        return cls(vlm, config, corpus, encoder, tensors["keys"], trained=record["trained"])

    def _retrieved(self, vlm: VLM, request: EditRequest) -> list[str]:
        """The demonstrations of an edit, as many as fit."""
        own = demonstration(fact_of(request), fact_of(request))
        (found,) = nearest(self.encoder([own]), self.keys, self.config.demonstrations).tolist()
        chosen: list[str] = [self.corpus[int(number)] for number in found]
        if (positions := max_positions(vlm)) is None:
            return chosen
        prompt = encode_requests(vlm, [request])["last"].shape[1]
        room = positions - prompt - self.config.room
        while chosen and len(text_tokens(vlm, context(chosen, request))) > room:
            chosen.pop()
        return chosen

    def _warn_if_few_fit(self, request: EditRequest) -> None:
        num = len(self._retrieved(self.vlm, request))
        wanted = min(self.config.demonstrations, len(self.corpus))
        if num < wanted:
            logger.warning(
                "ike: %d of %d demonstrations fit the positions of %s", num, wanted, self.vlm.name
            )


def demonstration(fact: str, consequence: str) -> str:
    """A fact, and a prompt with its answer given the fact."""
    return f"{LINE.format(fact=fact)}{consequence}\n\n"


def demonstrations(samples: Sequence[EditSample]) -> list[str]:
    """One demonstration per sample and kind: copy (the fact), update (rephrased), retain."""
    corpus = []
    for sample in samples:
        fact = fact_of(sample.request)
        inputs = [sample.request, *sample.text_generality[:1], *sample.text_locality[:1]]
        corpus += [demonstration(fact, fact_of(request)) for request in inputs]
    return corpus


def context(chosen: Sequence[str], request: EditRequest) -> str:
    """The text in front of a question: demonstrations, the edit's own, and the fact again."""
    fact = fact_of(request)
    return "".join([*chosen, demonstration(fact, fact), LINE.format(fact=fact)])
