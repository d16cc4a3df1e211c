"""IKE: the new fact and demonstrations of what follows from such facts, put in front of questions.

Source: Zheng et al. 2023 ("Can We Edit Factual Knowledge by In-Context Learning?"), as EasyEdit
adapts it to images: demonstrations are text alone, the image of the question stands in front of
them. Nothing is trained and no weight changes.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from attrib.data.samples import EditRequest, EditSample
from attrib.errors import AttribError, SetupError
from attrib.files import write_text
from attrib.model.vlm import VLM
from editors.base import Edit, encode_requests
from editors.context.prompt_edit import PromptEdit, fact_of, front, num_positions
from editors.context.retrieval import (
    NearestText,
    SentenceEncoder,
    StatesEncoder,
    encoder_of,
    encoder_tensors,
    loaded_encoder,
    nearest,
)
from editors.io.editor import read_record, write_record
from editors.io.tensors import save_tensors
from editors.training.settings import refuse_gate, refuse_layers, settings_of

logger = logging.getLogger("attrib")
KEYS, TEXTS = "demonstrations.safetensors", "demonstrations.json"
LINE = "New Fact: {fact}\nPrompt: "


@dataclass(frozen=True)
class IKESettings:
    """How demonstrations are found.

    Attributes:
        demonstrations: How many stand in front of the edit's own (published: 32), if they fit.
        room: Positions left free for longer questions than the edit's own and for what is
            generated; demonstrations have to fit in the rest.
        sentence_encoder: Folder of a model for the package sentence-transformers; without one the
            model's own states are compared.
        compared_layer: Whose states those are; None for the middle one.
        seed: Taken because all editors are; nothing here is random.
    """

    demonstrations: int = 32
    room: int = 64
    sentence_encoder: str | None = None
    compared_layer: int | None = None
    seed: int = 0


PRESETS = {"published": [IKESettings()], "embedded": [IKESettings(demonstrations=1, room=96)]}


@dataclass(frozen=True, eq=False)
class IKE:
    """Demonstrations, and how to find those that an edit is shown with.

    Attributes:
        vlm: The model.
        settings: How demonstrations are found.
        corpus: All of them.
        encoder: Of texts.
        keys: Of the corpus.
        trained: Settings and what it took to encode the corpus; JSON.
    """

    name: ClassVar[str] = "ike"
    needs_layers: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False

    vlm: VLM
    settings: IKESettings
    corpus: Sequence[str]
    encoder: StatesEncoder | SentenceEncoder
    keys: Float[Tensor, "demonstration width"]
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
    ) -> "IKE":
        """The demonstrations that `samples` give, encoded; nothing is learned.

        Args:
            vlm: The model.
            samples: What demonstrations are made of.
            out: Folder of the editor.
            layers: Not used: no layer is written.
            gate: Not used: every input is given the text.
            preset: "published", "embedded", or "auto": by the size of the model.
            validation: Not used.
            changes: Settings other than the preset's, of `IKESettings`.

        Raises:
            AttribError: No samples, an unknown setting, layers or a gate.

        A warning tells how many demonstrations fit, if not all do.
        """
        del validation
        refuse_layers(cls.name, layers, "it changes what the model is given")
        refuse_gate(cls.name, gate)
        (settings,) = settings_of(vlm, PRESETS, preset, changes)
        began, corpus = time.monotonic(), demonstrations(samples)
        if not corpus:
            raise AttribError("there is no sample to make demonstrations of")
        encoder = encoder_of(vlm, settings.sentence_encoder, settings.compared_layer, corpus)
        keys = encoder(corpus)
        trained = {
            "settings": asdict(settings),
            "samples": len(samples),
            "demonstrations": len(corpus),
            "seconds": time.monotonic() - began,
            "curve": [],
        }
        editor = cls(vlm, settings, corpus, encoder, keys, trained)
        editor.save(out)
        editor._say_what_fits(samples[0].request)
        return editor

    def edit(self, vlm: VLM, request: EditRequest) -> PromptEdit:
        """The edit that puts a request in front of every question, behind its demonstrations.

        The most similar demonstration comes first and the edit's own last. Where the model has too
        few positions for all, the least similar ones are left out.
        """
        return PromptEdit((context(self._shown(vlm, request), request),), (request,))

    def merge(self, edits: Sequence[Edit]) -> PromptEdit:
        """Several edits: each input is given the text of the one whose prompt is most like its own.

        None is out of scope; as with one edit alone, every input is given some text.
        """
        some = [edit for edit in edits if isinstance(edit, PromptEdit)]
        texts = tuple(text for edit in some for text in edit.texts)
        facts = tuple(fact for edit in some for fact in edit.facts)
        keys = self.encoder([fact.prompt or " " for fact in facts])
        return PromptEdit(texts, facts, NearestText(self.encoder, keys))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What edits look their demonstrations up with."""
        return {"keys": self.keys, **encoder_tensors(self.encoder)}

    def save(self, path: str | Path) -> None:
        """Write the demonstrations as JSON, their vectors as safetensors."""
        path = Path(path)
        about = {"settings": asdict(self.settings), "trained": self.trained}
        write_record(path, self.name, self.vlm, about)
        write_text(path / TEXTS, json.dumps(list(self.corpus), indent=0))
        save_tensors(path / KEYS, self.tensors)

    @classmethod
    def load(cls, path: str | Path, vlm: VLM) -> "IKE":
        """The editor in a folder.

        Raises:
            SetupError: There is none, or it was made for another model or is another editor.
        """
        path = Path(path)
        record = read_record(path, cls.name, vlm)
        try:
            settings = IKESettings(**record["settings"])
            corpus = json.loads((path / TEXTS).read_text())
            tensors = load_file(path / KEYS)
        except (OSError, TypeError, ValueError) as error:
            raise SetupError(f"{path}: not whole, or of another version: {error}") from error
        encoder = loaded_encoder(vlm, settings.sentence_encoder, settings.compared_layer, tensors)
        return cls(vlm, settings, corpus, encoder, tensors["keys"], record["trained"])

    def _shown(self, vlm: VLM, request: EditRequest) -> list[str]:
        """The demonstrations of an edit, as many as fit."""
        own = demonstration(fact_of(request), fact_of(request))
        (found,) = nearest(self.encoder([own]), self.keys, self.settings.demonstrations).tolist()
        shown: list[str] = [self.corpus[int(number)] for number in found]
        most = self._most(vlm, request)
        while shown and most is not None and len(front(vlm, context(shown, request))) > most:
            shown.pop()
        return shown

    def _say_what_fits(self, request: EditRequest) -> None:
        fit, most = len(self._shown(self.vlm, request)), len(self.corpus)
        asked = min(self.settings.demonstrations, most)
        if fit < asked:
            logger.warning(
                "ike: %d of %d demonstrations fit the positions of %s", fit, asked, self.vlm.name
            )

    def _most(self, vlm: VLM, request: EditRequest) -> int | None:
        """How many tokens of text fit in front of the request, with room to spare."""
        positions = num_positions(vlm)
        if positions is None:
            return None
        batch = encode_requests(vlm, [request])
        return positions - batch["last"].shape[1] - self.settings.room


def demonstration(fact: str, follows: str) -> str:
    """A fact, and the answer to a prompt where it holds."""
    return f"{LINE.format(fact=fact)}{follows}\n\n"


def demonstrations(samples: Sequence[EditSample]) -> list[str]:
    """Of every sample one per kind: copy (the fact itself), update (in other words), retain."""
    corpus = []
    for sample in samples:
        fact = fact_of(sample.request)
        follows = [sample.request, *sample.text_generality[:1], *sample.text_locality[:1]]
        corpus += [demonstration(fact, fact_of(request)) for request in follows]
    return corpus


def context(shown: Sequence[str], request: EditRequest) -> str:
    """What stands in front of a question: demonstrations, the edit's own, and the fact again."""
    fact = fact_of(request)
    return "".join([*shown, demonstration(fact, fact), LINE.format(fact=fact)])
