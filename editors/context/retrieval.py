"""Which of several texts is most like another one: by cosine, of sentences as vectors.

The vectors are those of a sentence encoder, or the model's own states.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.context.prompt_edit import NO_TEXT, Starts
from editors.gating.inputs import COVERED, EASY, related_inputs
from editors.gating.threshold import Calibration, calibrate

AT_ONCE = 64  # texts in a pass
FITTED_ON = 512  # texts whose mean is taken, and edits that a threshold is found on


@runtime_checkable
class Encoder(Protocol):
    """Texts as vectors of length 1."""

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        """One vector per text, on the CPU."""
        ...


@dataclass(frozen=True, eq=False)
class StatesEncoder:
    """The mean of a layer's states over the tokens of a text.

    States of different texts have most of their length in common, so the mean over some texts is
    taken away from them (`fitted`); without that, every cosine is close to 1.

    Attributes:
        vlm: The model.
        layer: Whose output is read.
        mean: What is taken away.
    """

    vlm: VLM
    layer: int
    mean: Float[Tensor, " width"] | None = None

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        """One vector per text, on the CPU, in float32."""
        parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        states = torch.cat([self._means(part) for part in parts])
        return normalize(states if self.mean is None else states - self.mean, dim=-1)

    def fitted(self, texts: Sequence[str]) -> "StatesEncoder":
        """The same encoder, with the mean over (at most 512 of) these texts taken away."""
        step = max(1, len(texts) // FITTED_ON)
        some = texts[::step][:FITTED_ON]
        parts = [some[start : start + AT_ONCE] for start in range(0, len(some), AT_ONCE)]
        with torch.no_grad():
            return replace(self, mean=torch.cat([self._means(part) for part in parts]).mean(0))

    def _means(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        batch = self.vlm.encode([None] * len(texts), list(texts))
        with read(self.vlm, [self.layer]) as hidden:
            self.vlm.logits(batch)
        h, words = hidden[self.layer].float(), batch["text"].to(hidden[self.layer].device)
        return (torch.where(words[..., None], h, 0).sum(1) / words.sum(1)[:, None]).cpu()


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A model of the package sentence-transformers.

    Attributes:
        path: Its folder.
    """

    path: str
    model: Any

    @classmethod
    def at(cls, path: str) -> "SentenceEncoder":
        """The one in a folder.

        Raises:
            AttribError: The package is not there, or the folder holds no such model.
        """
        try:
            package = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise AttribError(
                "a sentence encoder needs the package sentence-transformers; install it, or leave "
                "sentence_encoder out: then the model's own states are compared"
            ) from error
        try:
            return cls(path, package.SentenceTransformer(path))
        except (OSError, ValueError) as error:
            raise AttribError(f"{path} holds no sentence encoder: {error}") from error

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        """One vector per text, on the CPU, in float32."""
        vectors = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return normalize(vectors.float().cpu(), dim=-1)


def encoder_of(
    vlm: VLM, sentence_encoder: str | None, layer: int | None, texts: Sequence[str]
) -> StatesEncoder | SentenceEncoder:
    """The encoder in a folder, or else the states of a layer, by default of the middle one.

    Raises:
        AttribError: There is no such encoder or layer.
    """
    if sentence_encoder is not None:
        return SentenceEncoder.at(sentence_encoder)
    layer = vlm.num_layers // 2 if layer is None else layer
    if not 0 <= layer < vlm.num_layers:
        raise AttribError(
            f"layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1} to compare texts in"
        )
    return StatesEncoder(vlm, layer).fitted(texts)


def nearest(
    queries: Float[Tensor, "query width"], keys: Float[Tensor, "key width"], num: int
) -> Int[Tensor, "query num"]:
    """Per query the numbers of the most similar keys, most similar first; of equals the first."""
    return (queries @ keys.T).sort(dim=1, descending=True, stable=True).indices[:, :num]


@dataclass(frozen=True, eq=False)
class NearestText:
    """Chooses the text whose key is most like the prompt (`editors.context.prompt_edit.Chooser`).

    Attributes:
        encoder: Of prompts.
        keys: One per text.
        threshold: Cosine below which an example is given no text.
    """

    encoder: StatesEncoder | SentenceEncoder
    keys: Float[Tensor, "key width"]
    threshold: float = -1.0

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys."""
        return self.keys.numel() * self.keys.element_size()

    def __call__(self, vlm: VLM, batch: Batch, starts: Starts) -> list[int]:
        """Per example the number of its text; the answer, where there is one, is not looked at."""
        # A prompt may be empty, an image being all there is; encoders want at least one token.
        prompts = [prompt or " " for prompt in starts.prompts(vlm, batch)]
        best, which = (self.encoder(prompts) @ self.keys.T).max(1)
        return torch.where(best >= self.threshold, which, NO_TEXT).tolist()


def text_threshold(
    encoder: StatesEncoder | SentenceEncoder, samples: Sequence[EditSample], keys: Sequence[str]
) -> Calibration:
    """The cosine that parts inputs an edit covers from unrelated ones, by their prompts.

    Args:
        encoder: Of texts.
        samples: Training edits (the first 512 are looked at).
        keys: What each edit is found by.
    """
    some = samples[:FITTED_ON]
    inputs = [one for one in related_inputs(some) if one.relation in (*COVERED, *EASY)]
    own = encoder(keys[: len(some)])
    asked = encoder([one.request.prompt or " " for one in inputs])
    rows = torch.tensor([one.row for one in inputs])
    values = (asked * own[rows]).sum(-1).double().numpy()
    by = {
        relation: values[[one.relation == relation for one in inputs]]
        for relation in {one.relation: None for one in inputs}
    }
    covered = {name: some for name, some in by.items() if name in COVERED}
    return calibrate(covered, {name: some for name, some in by.items() if name in EASY})


def encoder_tensors(encoder: StatesEncoder | SentenceEncoder) -> dict[str, Tensor]:
    """What an encoder has to be saved with."""
    mean = encoder.mean if isinstance(encoder, StatesEncoder) else None
    return {} if mean is None else {"mean": mean}


def loaded_encoder(
    vlm: VLM, sentence_encoder: str | None, layer: int | None, tensors: Mapping[str, Tensor]
) -> StatesEncoder | SentenceEncoder:
    """The encoder that was saved with these tensors."""
    if sentence_encoder is not None:
        return SentenceEncoder.at(sentence_encoder)
    return StatesEncoder(vlm, vlm.num_layers // 2 if layer is None else layer, tensors["mean"])
