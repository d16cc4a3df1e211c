"""Does each token of the answer depend on the picture or on the words?

    reliance on the picture = KL_visual / (KL_visual + KL_text)

KL_m is the divergence (nats) of the model's distribution at that token when noise of some standard
deviations is added to the output of the first layer at the visual tokens, or at the words of the
prompt (`attrib.sensitivity`). The answer's own earlier tokens stay as they are. The first token is
predicted at the last word of the prompt, which noise on the words perturbs as well: compare its
reliance with that of other first tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from attrib.analyses.sensitivity import sensitivity
from attrib.errors import AttribError
from attrib.model.batch import Batch
from attrib.model.continuation import generated_tokens, prompt_with
from attrib.model.vlm import VLM

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
        AttribError: Several prompts, or one without a picture.
    """
    if batch.size != 1:
        raise AttribError(f"{batch.size} prompts: reliance is of one answer at a time")
    if not batch["visual"].any():
        raise AttribError("the prompt has no picture: its answer relies on words alone")
    answer = generated_tokens(vlm, batch, LONGEST_ANSWER) if tokens is None else list(tokens)
    found: list[list[float]] = []
    for number in range(len(answer)):
        asked = _at_token(vlm, batch, answer[:number])
        each = [
            sensitivity(vlm, asked, modality, (sigma,), draws=draws, seed=seed, layers=[0])
            for modality in ("visual", "text")
        ]
        found.append([one.item() for one in each])
    texts = tuple(vlm.tokenizer.decode([token]) for token in answer)
    return Reliance(texts, *torch.tensor(found).reshape(-1, 2).T)


def _at_token(vlm: VLM, batch: Batch, before: list[int]) -> Batch:
    """The prompt with the answer's tokens before one; they count as no words of the prompt."""
    asked = prompt_with(vlm, batch, [before]) if before else batch
    text = asked["text"].clone()
    if before:
        text[:, -len(before) :] = False
    # The same noise at every token of the answer.
    names = batch.ids or ("prompt",)
    return replace(asked, spans={**asked.spans, "text": text}).named(list(names))
