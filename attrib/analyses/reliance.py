"""Does each token of the answer depend on the picture or on the words?

    reliance on the picture = KL_visual / (KL_visual + KL_text)

KL_m is the divergence (nats) of the model's distribution at that token when noise of some standard
deviations is added to the output of the first layer at the visual tokens, or at the words of the
prompt (`attrib.sensitivity`). The answer's own earlier tokens stay as they are. The first token is
predicted at the last word of the prompt, which noise on the words perturbs as well: compare its
reliance with that of other first tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.errors import AttribError
from attrib.forward.hooks import read, write
from attrib.forward.noise import draw_noise
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.continuation import continued, generated_tokens
from attrib.model.vlm import VLM
from attrib.vocabulary import MODALITIES, Modality

DRAWS, LONGEST_ANSWER = 4, 16


@dataclass(frozen=True, eq=False)
class Reliance:
    """Divergences under noise, per token of an answer.

    Attributes:
        tokens: The answer's tokens as text.
        visual: Nats, under noise on the visual tokens.
        text: Nats, under noise on the words of the prompt.
    """

    tokens: tuple[str, ...]
    visual: Float[Tensor, " token"]
    text: Float[Tensor, " token"]

    @property
    def share(self) -> Float[Tensor, " token"]:
        """Reliance on the picture, 0 to 1; NaN where noise changes nothing."""
        return self.visual / (self.visual + self.text)

    def to_frame(self) -> pd.DataFrame:
        """One row per token: token, visual, text, share."""
        columns = {"visual": self.visual, "text": self.text, "share": self.share}
        return pd.DataFrame({"token": self.tokens, **{k: v.numpy() for k, v in columns.items()}})


@torch.no_grad()
def reliance(
    vlm: VLM,
    batch: Batch,
    tokens: Sequence[int] | None = None,
    *,
    sigma: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Reliance:
    """How much each token of an answer depends on the picture and on the words.

    Args:
        vlm: The model.
        batch: One prompt with a picture.
        tokens: The answer; by default what the model generates, up to `LONGEST_ANSWER` tokens.
        sigma: Noise, in standard deviations of the perturbed states.
        draws: Draws of noise to average over.
        seed: Seed of the noise.

    Raises:
        AttribError: Several prompts, one without a picture, or an empty answer.
    """
    if batch.size != 1:
        raise AttribError(f"{batch.size} prompts: reliance is of one answer at a time")
    if not batch["visual"].any():
        raise AttribError("the prompt has no picture: its answer relies on words alone")
    answer = generated_tokens(vlm, batch, LONGEST_ANSWER) if tokens is None else list(tokens)
    if not answer:
        raise AttribError("tokens: the answer is empty")
    asked = continued(vlm, batch, answer)
    with read(vlm, [0]) as hidden:
        clean = _answer_logits(vlm, asked)
    divergences = [
        _under_noise(vlm, asked, clean, hidden[0], modality, sigma, draws, seed)
        for modality in MODALITIES
    ]
    by_modality = dict(zip(MODALITIES, divergences, strict=True))
    texts = tuple(vlm.tokenizer.decode([token]) for token in answer)
    return Reliance(texts, by_modality["visual"], by_modality["text"])


def _answer_logits(vlm: VLM, asked: Batch) -> Float[Tensor, "token one d_vocab"]:
    """The logits that predict each token of the answer, which is the batch's target."""
    assert asked.labels is not None
    return vlm.logits(asked)[0, asked.labels[0] != -100][:, None].cpu().double()


def _under_noise(
    vlm: VLM,
    asked: Batch,
    clean: Float[Tensor, "token one d_vocab"],
    states: Float[Tensor, "one pos d_model"],
    modality: Modality,
    sigma: float,
    draws: int,
    seed: int,
) -> Float[Tensor, " token"]:
    """Divergence of every token of the answer; one pass per draw of noise."""
    total = torch.zeros(len(clean), dtype=torch.float64)
    every = torch.ones(clean.shape[:2], dtype=torch.bool)
    for draw in range(draws):
        noise = draw_noise(
            asked, modality, vlm.d_model, 0, unit="std", exclude_last=False, seed=seed, draw=draw
        ).to(states.device)
        added = sigma * noise.scaled(states)
        with write(vlm, 0, lambda h, by=added: (h + by).to(h.dtype), at=noise.at):
            total += kl(clean, _answer_logits(vlm, asked), every)
    return (total / draws).float()
