"""The model's own answer to a prompt, and the probability of one of its tokens."""

from dataclasses import dataclass

import torch

from attrib.errors import RowError
from attrib.model.batch import Batch
from attrib.model.continuation import continued, generated_tokens
from attrib.model.vlm import VLM

LONGEST_ANSWER = 16


@dataclass(frozen=True)
class Answer:
    """A greedy answer, and one of its tokens.

    Attributes:
        text: The answer.
        token: The token of that number as text.
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
        """One line: the answer, its token and the probability."""
        more = "" if self.ended else "..."
        return (
            f"the model's answer: {self.text!r}{more}; token {self.number} of it: "
            f"{self.token!r}, probability {self.probability:.3f}"
        )


@torch.no_grad()
def answer_of(vlm: VLM, batch: Batch, number: int = 0) -> Answer:
    """Generate a greedy answer to one prompt, up to `LONGEST_ANSWER` tokens past one of them.

    Args:
        vlm: The model.
        batch: One prompt without a target.
        number: The token whose probability is returned, from 0 on.

    Raises:
        RowError: The answer ends before it.
        AttribError: The batch has several prompts, or a target.
    """
    limit = number + LONGEST_ANSWER
    tokens = generated_tokens(vlm, batch, limit)
    if number >= len(tokens):
        raise RowError(f"the model's answer has {len(tokens)} tokens", field="prompt")
    # Continued prompts are padded on the left: the last position predicts the token.
    logits = vlm.logits(continued(vlm, batch, tokens[:number]))[0, -1]
    probability = logits.float().softmax(-1)[tokens[number]].item()
    text = vlm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    shown = vlm.tokenizer.decode([tokens[number]])
    return Answer(text, shown, number, probability, len(tokens) < limit)
