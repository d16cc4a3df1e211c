"""What an edit is trained for: the new answer where it holds, the old one elsewhere.

Sources: VisEdit Eqs. 13-15, DualEdit App. A; means are over answer tokens of the whole batch, as in
the published code (VisEdit Eq. 14 differs from it in one input: here the code is followed).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from attrib.metrics import log_probabilities

GENERALITY = ("text_generality", "visual_generality")
LOCALITY = ("visual_locality", "text_locality", "hard_locality")
ROLES = ("request", *GENERALITY, *LOCALITY)


@dataclass(frozen=True)
class Weights:
    """Of the parts of the loss.

    Attributes:
        reliability: Of the request's answer.
        generality: Of the answer to the request in other words, and of another picture.
        locality: Of unrelated inputs.
        hard: Of near neighbours of the request; 0 as in the papers.
        influence: Of the terms of the influence mapper (VisEdit's code: 0.1, the paper: 1).
        mapper_terms: Which of them there are.
    """

    reliability: float = 1.0
    generality: float = 1.0
    locality: float = 1.0
    hard: float = 0.0
    influence: float = 0.1
    mapper_terms: tuple[str, ...] = ("mapper_up", "mapper_down", "mapper_attribution")

    def of(self, role: str) -> float:
        """The weight of a kind of input."""
        if role == "request":
            return self.reliability
        if role in GENERALITY:
            return self.generality
        return self.hard if role == "hard_locality" else self.locality


def answer_losses(
    logits: Float[Tensor, "token d_vocab"],
    clean: Float[Tensor, "token d_vocab"],
    labels: Int[Tensor, " token"],
    roles: Int[Tensor, " token"],
    weights: Weights,
) -> dict[str, Float[Tensor, ""]]:
    """Per role the weighted mean over its answer tokens, in nats.

    Cross-entropy with the new answer for the request and its generality; KL(unedited || edited) for
    locality.

    Args:
        logits: Of the edited model, where a label is asked for.
        clean: Of the unedited model, there.
        labels: The answer tokens.
        roles: Of each token, as an index of `ROLES`.
        weights: Of the roles; those of weight 0 are left out.
    """
    log_q = log_probabilities(logits)
    losses = {}
    for index, role in enumerate(ROLES):
        at = roles == index
        if not weights.of(role) or not bool(at.any()):
            continue
        if role in LOCALITY:
            log_p = log_probabilities(clean[at])
            each = (log_p.exp() * (log_p - log_q[at])).sum(-1)
        else:
            each = -log_q[at].gather(1, labels[at, None])[:, 0]
        losses[role] = weights.of(role) * each.mean()
    return losses


def agreement(
    logits: Float[Tensor, "token d_vocab"],
    clean: Float[Tensor, "token d_vocab"],
    labels: Int[Tensor, " token"],
    roles: Int[Tensor, " token"],
) -> Mapping[str, float]:
    """Per role the share of answer tokens that are as they should be: new, or as they were."""
    now, before = logits.argmax(-1), clean.argmax(-1)
    shares = {}
    for index, role in enumerate(ROLES):
        at = roles == index
        if bool(at.any()):
            wanted = before[at] if role in LOCALITY else labels[at]
            shares[role] = (now[at] == wanted).float().mean().item()
    return shares


def share_right(numbers: Mapping[str, float]) -> float:
    """The mean over the kinds of input of `agreement`, among other numbers of a validation."""
    shares = [numbers[role] for role in ROLES if role in numbers]
    return sum(shares) / len(shares)


def asked_roles(labels: Int[Tensor, "batch pos"], roles: Int[Tensor, " batch"]) -> Tensor:
    """The role of each position that has a label, row by row."""
    return roles[:, None].expand_as(labels)[labels != -100]
