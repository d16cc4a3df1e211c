"""Other questions, asked before and after an edit or of two models; and an edit's gate."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attrib.forward.hooks import read
from attrib.metrics import kl
from attrib.model.batch import Batch
from attrib.model.vlm import VLM


@dataclass(frozen=True)
class Decision:
    """What an edit's gate says about one input.

    Attributes:
        score: The highest score of an edit for it.
        threshold: The lowest score at which the gate opens.
    """

    score: float
    threshold: float

    @property
    def opens(self) -> bool:
        """Whether the edit applies."""
        return self.score >= self.threshold


@dataclass(frozen=True)
class Asked:
    """One question and two answers.

    Attributes:
        prompt: The question.
        answers: Of the first side and of the second.
        divergence: KL from the first side's distribution of the first token to the second's, in
            nats; None where the two models have different vocabularies.
        decision: Of the edit's gate; None without a gate.
        edited: Whether it is the question that the page is about.
    """

    prompt: str
    answers: tuple[str, str]
    divergence: float | None
    decision: Decision | None
    edited: bool

    @property
    def changed(self) -> bool:
        """Whether the answers differ."""
        return self.answers[0] != self.answers[1]


Side = tuple[VLM, Callable[[], AbstractContextManager[None]]]


@torch.no_grad()
def ask(
    encode: Callable[[VLM, str], Batch],
    prompts: Sequence[str],
    sides: tuple[Side, Side],
    edit: Any,
    max_new_tokens: int,
) -> list[Asked]:
    """Ask every question on both sides; the first one is the page's own."""
    found = []
    for number, prompt in enumerate(prompts):
        answers, logits = [], []
        for vlm, applied in sides:
            batch = encode(vlm, prompt)
            with applied():
                answers.append(vlm.generate(batch, max_new_tokens))
                logits.append(vlm.last_logits(batch).float().cpu())
        decision = gate_decision(sides[0][0], edit, encode(sides[0][0], prompt))
        texts = (answers[0][0], answers[1][0])
        found.append(Asked(prompt, texts, _divergence(*logits), decision, number == 0))
    return found


def _divergence(
    one: Float[Tensor, "1 d_vocab"], other: Float[Tensor, "1 other_vocab"]
) -> float | None:
    if one.shape != other.shape:
        return None
    p, q = (logits[:, None].double() for logits in (one, other))
    return float(kl(p, q, torch.ones(1, 1, dtype=torch.bool))[0])


@torch.no_grad()
def gate_decision(vlm: VLM, edit: Any, batch: Batch) -> Decision | None:
    """What the gate of an edit says about a prompt; None for an edit without a gate.

    A gate reads states of the unedited model (`editors.adapters.sites.Gate`).
    """
    gate, memories = getattr(edit, "gate", None), getattr(edit, "memories", ())
    if gate is None or not memories:
        return None
    with read(vlm, gate.layers) as hidden:
        vlm.last_logits(batch)
    states = gate.states(hidden, batch)
    scores = gate.scores(states, [memory.gate for memory in memories])
    return Decision(float(scores.max()), float(gate.threshold))
