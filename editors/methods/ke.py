"""KE: a network that reads the edit as a sentence turns its gradient into a change.

De Cao, Aziz & Titov, "Editing factual knowledge in language models" (EMNLP 2021), on the matrices
that VLKEB edits. `loss="efk"` is how MEND's authors trained it as a baseline: the new answer where
it holds, the old one elsewhere. `loss="ke"` is VLKEB's: the request alone, and changes kept small
by a price that is learned against a margin (Lagrange relaxation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attrib.data.samples import EditRequest, EditSample
from attrib.model.vlm import VLM
from editors.base import WeightEdit, encode_requests
from editors.methods.hypernetwork import HypernetworkEditor
from editors.methods.hypernetwork_objective import Conditions, HypernetworkObjective
from editors.methods.ke_net import KENet
from editors.training.losses import Weights, answer_losses
from editors.training.trainer import Training
from editors.weights.mlp import Which
from editors.weights.rank1_update import LowRankUpdate

Old = Literal["sample", "model"]
Loss = Literal["efk", "ke"]
ANSWER_TOKENS = 16  # of the model's own answer, where no sample says it
TOGETHER = 32  # prompts that are answered at once
RIGHT, CHEAPER, CHEAPEST = 0.9, 0.8, 1e-7  # VLKEB: when the margin shrinks, how much, to what


@dataclass(frozen=True)
class KESettings:
    """What KE's network is, and what it is trained with.

    Attributes:
        matrices: Which maps of the feed-forward networks are changed.
        loss: "efk": generality and locality; "ke": the request and the size of the change.
        old: Where the old answer of the condition comes from while training: the "sample", where
            it says one (its `pred`), or the "model"'s own answer. Edits have none to read, and ask
            the model, unless they are told.
        condition_tokens: Of the condition, as many as are read.
        d_lstm: Hidden width of the LSTM, per direction.
        d_condition: Width of what a condition becomes.
        d_head: Width inside the head of a matrix.
        max_scale: The largest factor of a change.
        lagrange_lr_multiplier: Learning rate of the Lagrange multiplier over the rest ("ke";
            published: 0.1 against 3e-4).
    """

    matrices: Which = "up_down"
    loss: Loss = "efk"
    old: Old = "sample"
    condition_tokens: int = 32
    d_lstm: int = 128
    d_condition: int = 1024
    d_head: int = 128
    max_scale: float = 1.0
    lagrange_lr_multiplier: float = 333.0


@dataclass(frozen=True, eq=False)
class KE(HypernetworkEditor):
    """The gradient of the request, gated and completed by rank-one terms, changes three layers."""

    name: ClassVar[str] = "ke"
    settings_kind: ClassVar[type[Any]] = KESettings
    presets: ClassVar[Mapping[str, Sequence[Any]]] = {
        "published": [
            Training(
                steps=30_000,
                batch_size=1,
                learning_rate=3e-4,
                warmup=1000,
                decay="cosine",
                validate_every=1000,
                save_every=1000,
            ),
            Weights(reliability=0.0, generality=0.1),
            KESettings(),
        ],
        "embedded": [
            Training(
                steps=600,
                batch_size=8,
                optimizer="muon",
                learning_rate=1e-2,
                warmup=30,
                decay="cosine",
                clip=5.0,
                validate_every=50,
                save_every=50,
                best_by="right",
            ),
            Weights(),
            KESettings(
                d_lstm=64,
                d_condition=128,
                d_head=64,
                max_scale=300.0,  # a softmax over a hundred numbers leaves little of a gradient
                lagrange_lr_multiplier=100.0,
            ),
        ],
    }

    @classmethod
    def _network(
        cls, vlm: VLM, shapes: Mapping[str, tuple[int, int]], settings: KESettings
    ) -> nn.Module:
        table = vlm.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        s = settings
        return KENet(shapes, table.weight.detach(), s.d_lstm, s.d_condition, s.d_head, s.max_scale)

    @classmethod
    def _conditions(
        cls, vlm: VLM, settings: KESettings, samples: Sequence[EditSample]
    ) -> Conditions:
        told = {s.id: s.meta.get("pred") for s in samples if settings.old == "sample"}
        unknown = [s for s in samples if not told.get(s.id)]
        told |= dict(zip([s.id for s in unknown], own_answers(vlm, unknown), strict=True))
        return {s.id: condition_of(vlm, settings, s.request, str(told[s.id])) for s in samples}

    @classmethod
    def _objective(
        cls,
        vlm: VLM,
        layers: Sequence[int],
        net: nn.Module,
        settings: KESettings,
        weights: Weights,
        samples: Sequence[EditSample],
        held: Sequence[EditSample],
    ) -> HypernetworkObjective:
        plain = super()._objective(vlm, layers, net, settings, weights, samples, held)
        return (
            plain if settings.loss == "efk" else KEObjective(plain, settings.lagrange_lr_multiplier)
        )

    def edit(self, vlm: VLM, request: EditRequest, old: str | None = None) -> WeightEdit:
        """The edit that installs a request, whose `old` answer is the model's own if not given."""
        if old is None:
            return super().edit(vlm, request)
        return self._edit(vlm, request, condition_of(vlm, self.settings, request, old))


class KEObjective(HypernetworkObjective):
    """Cross-entropy of the request after the edit, and the size of its change at a learned price.

    The size is the mean over matrices of the root mean square. The price rises while it is above a
    margin, which shrinks whenever nearly all held-out edits are right (VLKEB's program).
    """

    def __init__(self, plain: HypernetworkObjective, lagrange_lr_multiplier: float):
        vars(self).update(vars(plain))
        self.roles, self.weights, self.lagrange_lr_multiplier = (
            ["request"],
            Weights(),
            lagrange_lr_multiplier,
        )

    def losses(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The loss of the request, and two terms that move the changes and the price."""
        del rng
        net: Any = self.module
        with torch.no_grad():
            net.price.clamp_(min=0.0)
        data, items = self.data.load(items)
        changes = self.changes(data, items)
        tokens = self.tokens_under(changes, data, items)
        parts = answer_losses(**tokens, weights=self.weights)
        gap = size_of(changes) - net.margin
        price = net.price * self.lagrange_lr_multiplier
        # One optimizer descends: in the price the sign is turned, so that it ascends.
        return parts | {"size": price.detach() * gap, "price": -price * gap.detach()}

    def validation(self) -> dict[str, float]:
        """The request's loss on held-out edits, and the share of its tokens that are right."""
        numbers = super().validation()
        net: Any = self.module
        if numbers.get("request", 0.0) > RIGHT:
            net.margin.mul_(CHEAPER).clamp_(min=CHEAPEST)
        return numbers


def size_of(changes: Mapping[str, LowRankUpdate]) -> Tensor:
    """Mean over matrices and edits of the root mean square of a change."""
    sizes = [change.mean_square.clamp(min=1e-20).sqrt().mean() for change in changes.values()]
    return torch.stack(sizes).mean()


def condition_of(vlm: VLM, settings: KESettings, request: EditRequest, old: str) -> Tensor:
    """The edit as token ids of "old answer >> new answer || prompt"."""
    text = f"{old} >> {request.target} || {request.prompt}"
    ids = vlm.tokenizer(text)["input_ids"][: settings.condition_tokens]
    return torch.tensor(ids, dtype=torch.long)


def own_answers(vlm: VLM, samples: Sequence[EditSample]) -> list[str]:
    """What the model itself answers to the requests."""
    answers: list[str] = []
    for start in range(0, len(samples), TOGETHER):
        some = [sample.request for sample in samples[start : start + TOGETHER]]
        batch = encode_requests(vlm, some, targets=False)
        answers += vlm.generate(batch, ANSWER_TOKENS)
    return answers
