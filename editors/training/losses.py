"""The loss of an edit: the new answer inside its scope, the unedited model's answer outside.

Sources: VisEdit Eqs. 13-15, DualEdit App. A. Means are over the answer tokens of the batch, as in
the published code (where it and VisEdit Eq. 14 differ in one input, this follows the code).
"""

from collections.abc import Mapping

from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from attrib.metrics import log_probabilities

GENERALITY = ("text_generality", "visual_generality")
LOCALITY = ("visual_locality", "text_locality", "hard_locality")
ROLES = ("request", *GENERALITY, *LOCALITY)
Tokens = dict[str, Tensor]  # logits, clean (unedited logits), labels and roles of answer tokens


class LossWeights(BaseModel):
    """Weights of the loss terms.

    Attributes:
        reliability: Weight of the request's answer.
        generality: Weight of the same answer for rephrased prompts and other images.
        locality: Weight of unrelated inputs.
        text_locality: Weight of those without an image; None for `locality`. The programs of
            VisEdit and DualEdit leave them out (0), the papers have them.
        hard: Weight of near neighbours of the request; the papers have no such term.
    """

    model_config = ConfigDict(frozen=True)

    reliability: float = 1.0
    generality: float = 1.0
    locality: float = 1.0
    text_locality: float | None = None
    hard: float = 0.0

    def of(self, role: str) -> float:
        """Weight of one kind of input."""
        if role == "request":
            return self.reliability
        if role in GENERALITY:
            return self.generality
        if role == "text_locality" and self.text_locality is not None:
            return self.text_locality
        return self.hard if role == "hard_locality" else self.locality

    @property
    def roles(self) -> list[str]:
        """The kinds of input with a weight."""
        return [role for role in ROLES if self.of(role)]


def answer_losses(
    logits: Float[Tensor, "token d_vocab"],
    clean: Float[Tensor, "token d_vocab"],
    labels: Int[Tensor, " token"],
    roles: Int[Tensor, " token"],
    weights: LossWeights,
) -> dict[str, Float[Tensor, ""]]:
    """Weighted mean loss per role, in nats per answer token.

    The request and its generality have the cross-entropy of the new answer, locality has
    KL(unedited || edited).

    Args:
        logits: Logits of the edited model at the answer tokens.
        clean: Logits of the unedited model there.
        labels: The answer tokens.
        roles: Role of each token, an index into `ROLES`.
        weights: Weights of the roles; roles of weight 0 are left out.
    """
    log_q = log_probabilities(logits)
    losses = {}
    for role in weights.roles:
        at = roles == ROLES.index(role)
        if not bool(at.any()):
            continue
        if role in LOCALITY:
            log_p = log_probabilities(clean[at])
            each = (log_p.exp() * (log_p - log_q[at])).sum(-1)
        else:
            each = -log_q[at].gather(1, labels[at, None])[:, 0]
        losses[role] = weights.of(role) * each.mean()
    return losses


def token_accuracy(
    logits: Float[Tensor, "token d_vocab"],
    clean: Float[Tensor, "token d_vocab"],
    labels: Int[Tensor, " token"],
    roles: Int[Tensor, " token"],
) -> dict[str, float]:
    """Share of right answer tokens per role: the label, for locality the unedited argmax."""
    now, before = logits.argmax(-1), clean.argmax(-1)
    shares = {}
    for index, role in enumerate(ROLES):
        at = roles == index
        if bool(at.any()):
            wanted = before[at] if role in LOCALITY else labels[at]
            shares[role] = (now[at] == wanted).float().mean().item()
    return shares


def mean_accuracy(metrics: Mapping[str, float]) -> float:
    """Mean over roles of `token_accuracy`, taken from the metrics of a validation."""
    shares = [metrics[role] for role in ROLES if role in metrics]
    return sum(shares) / len(shares)
