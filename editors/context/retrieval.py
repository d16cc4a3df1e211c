"""Retrieval of the most similar text: by the cosine of encoded texts.

The encoder is a sentence encoder, or the mean of the model's own states.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor
from torch.nn.functional import normalize

from attrib.data.samples import EditSample
from attrib.errors import AttribError
from attrib.forward.hooks import read
from attrib.model.batch import Batch
from attrib.model.vlm import VLM
from editors.context import NO_TEXT, PromptStarts
from editors.gating.calibration import Calibration, calibrate
from editors.gating.features import COVERED, EASY, related_inputs

BATCH_SIZE = 64  # texts per pass
FIT_SIZE = 512  # texts whose mean is taken, and edits on which a threshold is found


class RetrievalOptions(BaseModel):
    """How texts are compared.

    Attributes:
        sentence_encoder: Folder of a model for the package sentence-transformers; without one the
            model's own states are compared.
        compared_layer: The layer of these states; None for the middle one.
    """

    sentence_encoder: str | None = None
    compared_layer: int | None = None


@dataclass(frozen=True, eq=False)
class StatesEncoder:
    """The mean of a layer's states over the tokens of a text, as a unit vector.

    States of different texts have most of their length in common. Their mean over some texts is
    subtracted (`fitted`); without that, every cosine is close to 1.

    Attributes:
        vlm: The model.
        layer: The layer whose output is read.
        mean: What is subtracted.
    """

    vlm: VLM
    layer: int
    mean: Float[Tensor, " width"] | None = None

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        """One vector per text, on the CPU, in float32."""
        states = self._states(texts)
        return normalize(states if self.mean is None else states - self.mean, dim=-1)

    def fitted(self, texts: Sequence[str]) -> "StatesEncoder":
        """The same encoder, subtracting the mean over (at most 512 of) these texts."""
        step = max(1, len(texts) // FIT_SIZE)
        return replace(self, mean=self._states(texts[::step][:FIT_SIZE]).mean(0))

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
        parts = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
        return torch.cat([self._batch_states(part) for part in parts])

    def _batch_states(self, texts: Sequence[str]) -> Float[Tensor, "text width"]:
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
        model: The model.
    """

    path: str
    model: Any

    @classmethod
    def at(cls, path: str) -> "SentenceEncoder":
        """Load the model in a folder.

        Raises:
            AttribError: The package is missing, or the folder holds no such model.
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
        """One unit vector per text, on the CPU, in float32."""
        vectors = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return normalize(vectors.float().cpu(), dim=-1)


def encoder_of(
    vlm: VLM, options: RetrievalOptions, texts: Sequence[str] = (), mean: Tensor | None = None
) -> StatesEncoder | SentenceEncoder:
    """The encoder of some options; an encoder of states has a `mean`, by default that of `texts`.

    Raises:
        AttribError: There is no such encoder or layer.
    """
    if options.sentence_encoder is not None:
        return SentenceEncoder.at(options.sentence_encoder)
    layer = vlm.num_layers // 2 if options.compared_layer is None else options.compared_layer
    if not 0 <= layer < vlm.num_layers:
        raise AttribError(
            f"layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1} to compare texts in"
        )
    encoder = StatesEncoder(vlm, layer, mean)
    return encoder.fitted(texts) if mean is None else encoder


def nearest(
    queries: Float[Tensor, "query width"], keys: Float[Tensor, "key width"], num: int
) -> Int[Tensor, "query num"]:
    """Indices of the keys most similar to each query, most similar first; of equals the first."""
    return (queries @ keys.T).sort(dim=1, descending=True, stable=True).indices[:, :num]


@dataclass(frozen=True, eq=False)
class NearestText:
    """Selects the text whose key is most similar to the prompt; a `prompt_edit.Selector`.

    Attributes:
        encoder: Encoder of prompts.
        keys: One key per text.
        threshold: Cosine below which an example gets no text.
    """

    encoder: StatesEncoder | SentenceEncoder
    keys: Float[Tensor, "key width"]
    threshold: float = -1.0

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys."""
        return self.keys.nbytes

    def __call__(self, vlm: VLM, batch: Batch, starts: PromptStarts) -> list[int]:
        """The index of each example's text; targets are not read."""
        # A prompt may be empty, an image being all there is; encoders need at least one token.
        prompts = [prompt or " " for prompt in starts.prompts(vlm, batch)]
        best, which = (self.encoder(prompts) @ self.keys.T).max(1)
        return torch.where(best >= self.threshold, which, NO_TEXT).tolist()


def text_threshold(
    encoder: StatesEncoder | SentenceEncoder, samples: Sequence[EditSample], keys: Sequence[str]
) -> Calibration:
    """The cosine that separates inputs in an edit's scope from unrelated ones, by their prompts.

    Args:
        encoder: Encoder of texts.
        samples: Training edits; the first 512 are read.
        keys: The text by which each edit is found.
    """
    some = samples[:FIT_SIZE]
    inputs = [one for one in related_inputs(some) if one.relation in (*COVERED, *EASY)]
    own = encoder(keys[: len(some)])
    prompts = encoder([one.request.prompt or " " for one in inputs])
    rows = torch.tensor([one.row for one in inputs])
    values = (prompts * own[rows]).sum(-1).double().numpy()
    by = {
        relation: values[[one.relation == relation for one in inputs]]
        for relation in {one.relation: None for one in inputs}
    }
    inside = {name: some for name, some in by.items() if name in COVERED}
    return calibrate(inside, {name: some for name, some in by.items() if name in EASY})


def encoder_tensors(encoder: StatesEncoder | SentenceEncoder) -> dict[str, Tensor]:
    """The tensors that an encoder has to be saved with."""
    mean = encoder.mean if isinstance(encoder, StatesEncoder) else None
    return {} if mean is None else {"mean": mean}
