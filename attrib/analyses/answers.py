"""The model's own answer to a prompt, and the token of it that an analysis is about."""

from dataclasses import dataclass

import torch

from attrib.model.batch import Batch
from attrib.model.continuation import after_answer, generated_tokens
from attrib.model.vlm import VLM

LONGEST_ANSWER = 16


@dataclass(frozen=True)
class Answer:
    """A greedy answer, and one of its tokens.

    Attributes:
        text: The answer.
        token: The analysed token as text.
        number: Its place in the answer, from 0 on.
        probability: The model's probability of it there.
        ended: Whether the answer ends within the tokens that were generated.
    """

    text: str
    token: str
    number: int
    probability: float
    ended: bool

    def __str__(self) -> str:
        """One line: answer, analysed token, probability."""
        more = "" if self.ended else "..."
        return (
            f"the model's answer: {self.text!r}{more}; token {self.number} of it: "
            f"{self.token!r}, probability {self.probability:.3f}"
        )


@torch.no_grad()
def answer_of(vlm: VLM, batch: Batch, number: int = 0) -> Answer:
    """Generate a greedy answer to one prompt, up to `LONGEST_ANSWER` tokens past the analysed one.

    Args:
        vlm: The model.
        batch: One prompt without a target.
        number: The analysed token of the answer, from 0 on.

    Raises:
        RowError: The answer ends before it.
        AttribError: The batch has several prompts, or a target.
    """
    logits = vlm.last_logits(after_answer(vlm, batch, number) if number else batch)[0]
    probability, token = logits.float().softmax(-1).max(-1)
    limit = number + LONGEST_ANSWER
    tokens = generated_tokens(vlm, batch, limit)
    text = vlm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    shown = vlm.tokenizer.decode([int(token)])
    return Answer(text, shown, number, float(probability), len(tokens) < limit)
