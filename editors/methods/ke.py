"""KE: a network that reads the edit as a sentence turns its gradient into an update.

De Cao, Aziz & Titov, "Editing factual knowledge in language models" (EMNLP 2021), on the matrices
that VLKEB edits. `loss="efk"` is how MEND's authors trained it as a baseline: new answers inside
the scope, old answers outside. `loss="ke"` is VLKEB's: the request alone, under a constraint on the
size of updates whose Lagrange multiplier is learned (preset "ke-vlkeb": centred RMSprop with linear
decay, as there).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from attrib.data.samples import EditRequest, EditSample
from attrib.model.devices import loaded
from attrib.model.vlm import VLM
from editors.base import encode_requests
from editors.methods import baseline_presets
from editors.methods.hypernetwork import (
    Conditions,
    HypernetworkConfig,
    HypernetworkEditor,
    HypernetworkObjective,
    Shapes,
)
from editors.training.config import EditorConfig
from editors.training.end_token import with_end_token
from editors.training.losses import LossWeights, answer_losses
from editors.training.presets import Preset
from editors.weights.low_rank import LowRankEdit
from editors.weights.passes import LowRankUpdate, TokenGradients

ANSWER_TOKENS = 16  # of the model's own answer
BATCH_SIZE = 32  # prompts that are answered at once
# VLKEB: above this accuracy the margin shrinks by this factor, down to this value.
ACCURATE, SHRINK, SMALLEST_MARGIN = 0.9, 0.8, 1e-7


class KEConfig(HypernetworkConfig):
    """Options of KE.

    Attributes:
        loss: "efk": generality and locality; "ke": the request and the size of the update.
        old: Source of the condition's old answer in training: the "sample" (its `pred`), if it has
            one, or the "model"'s own answer. Edits ask the model, unless they are given it.
        condition_tokens: Tokens of the condition that are read.
        d_lstm: Hidden width of the LSTM, per direction.
        d_condition: Width of an encoded condition.
        d_head: Hidden width of a matrix's head.
        max_scale: Largest factor of an update.
        lagrange_lr_multiplier: Learning rate of the Lagrange multiplier over that of the rest
            ("ke"; published: 0.1 over 3e-4).
    """

    presets: ClassVar[Mapping[str, Preset]] = baseline_presets.KE
    large: ClassVar[str] = "ke-efk"

    loss: Literal["efk", "ke"] = "efk"
    old: Literal["sample", "model"] = "sample"
    condition_tokens: int = 32
    d_lstm: int = 128
    d_condition: int = 1024
    d_head: int = 128
    max_scale: float = 1.0
    lagrange_lr_multiplier: float = 333.0


@dataclass(frozen=True, eq=False, repr=False)
class KE(HypernetworkEditor):
    """Updates of the last three layers: the gated gradient plus a rank-one term."""

    name: ClassVar[str] = "ke"
    config_class: ClassVar[type[EditorConfig]] = KEConfig

    @classmethod
    def _network(cls, vlm: VLM, shapes: Shapes, config: KEConfig) -> nn.Module:
        table: Any = vlm.model.get_input_embeddings()
        with loaded(table):
            return KENetwork(shapes, table.weight.detach(), config)

    @classmethod
    def _conditions(cls, vlm: VLM, config: KEConfig, samples: Sequence[EditSample]) -> Conditions:
        old = {s.id: s.meta.get("pred") for s in samples if config.old == "sample"}
        unknown = [s for s in samples if not old.get(s.id)]
        old |= dict(zip([s.id for s in unknown], own_answers(vlm, unknown), strict=True))
        return {s.id: condition_of(vlm, config, s.request, str(old[s.id])) for s in samples}

    @classmethod
    def objective_class(cls, config: KEConfig) -> type[HypernetworkObjective]:
        """The loss."""
        return HypernetworkObjective if config.loss == "efk" else KEObjective

    def edit(self, vlm: VLM, request: EditRequest, old: str | None = None) -> LowRankEdit:
        """The edit that installs a request; it replaces the answer `old`, or the model's own."""
        if old is None:
            return super().edit(vlm, request)
        return self._edit(vlm, request, condition_of(vlm, self.config, request, old))


class KEObjective(HypernetworkObjective):
    """Cross-entropy of the request after the edit, under a constraint on the update's size.

    The size is the mean over matrices of the root mean square. The Lagrange multiplier rises while
    the size exceeds a margin, which shrinks whenever nearly all held-out edits are right (VLKEB's
    code).
    """

    @property
    def weights(self) -> LossWeights:
        """Weights of the loss terms: the request's only."""
        return LossWeights(generality=0.0, locality=0.0)

    def terms(self, items: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """The loss of the request, and two terms that move the updates and the multiplier."""
        del rng
        net: Any = self.module
        with torch.no_grad():
            net.lagrange_multiplier.clamp_(min=0.0)
        data, items = self.data.load(items)
        updates = self.edits(data, items)
        terms = answer_losses(**self.tokens_with(updates, data, items), weights=self.weights)
        excess = size_of(updates) - net.margin
        price = net.lagrange_multiplier * self.config.lagrange_lr_multiplier
        # One optimizer descends: the sign of the multiplier's term makes it ascend.
        return terms | {"size": price.detach() * excess, "multiplier": -price * excess.detach()}

    def after_validation(self, metrics: Mapping[str, float]) -> None:
        """Shrink the margin if nearly all held-out answer tokens are right."""
        net: Any = self.module
        if metrics.get("request", 0.0) > ACCURATE:
            net.margin.mul_(SHRINK).clamp_(min=SMALLEST_MARGIN)


class KENetwork(nn.Module):
    """Turns the gradients of requests into updates, given their words (De Cao et al. 2021).

    A bidirectional LSTM reads the condition. For each matrix it gives two pairs of vectors and a
    gate g in (0, 1); the update is `max_scale g (gradient * softmax(a) b^T + softmax(c) d^T)`, with
    an elementwise product. At the start g is about a half.

    Args:
        shapes: Outputs and inputs of each matrix.
        embedding: The model's own embedding, trained further.
        config: The options.
    """

    def __init__(
        self,
        shapes: Shapes,
        embedding: Float[Tensor, "d_vocab d_model"],
        config: KEConfig,
    ):
        super().__init__()
        self.shapes, self.max_scale, d_lstm = dict(shapes), config.max_scale, config.d_lstm
        self.embedding = nn.Embedding.from_pretrained(embedding.float().clone(), freeze=False)
        self.lstm = nn.LSTM(embedding.shape[1], d_lstm, bidirectional=True)
        self.condition = nn.Sequential(nn.Linear(2 * d_lstm, config.d_condition), nn.Tanh())
        self.heads = nn.ModuleList(
            nn.Sequential(
                weight_norm(nn.Linear(config.d_condition, config.d_head)),
                nn.Tanh(),
                weight_norm(nn.Linear(config.d_head, 2 * (d_out + d_in) + 1)),
            )
            for d_out, d_in in shapes.values()
        )
        # Those of `KEObjective`, trained and saved with the network.
        self.lagrange_multiplier = nn.Parameter(torch.zeros(()))
        self.register_buffer("margin", torch.tensor(1e-3))
        self.register_load_state_dict_pre_hook(_rename_price)

    def forward(
        self, gradients: Mapping[str, TokenGradients], conditions: Sequence[Tensor]
    ) -> dict[str, LowRankUpdate]:
        """The update of each matrix for each request; conditions are token ids."""
        encoded = self.encode(conditions)
        heads = zip(self.shapes, self.heads, strict=True)
        return {name: self._update(gradients[name], head(encoded)) for name, head in heads}

    def encode(self, conditions: Sequence[Tensor]) -> Float[Tensor, "edit d_condition"]:
        """Encode conditions: the LSTM's last states of both directions, and a layer."""
        device = self.embedding.weight.device
        words = pack_sequence(
            [self.embedding(ids.to(device)) for ids in conditions], enforce_sorted=False
        )
        _, (last, _) = self.lstm(words)
        return self.condition(torch.cat([last[0], last[1]], -1))

    def _update(self, g: TokenGradients, vectors: Float[Tensor, "edit width"]) -> LowRankUpdate:
        d_out, d_in = g.delta.shape[-1], g.x.shape[-1]
        a, b, c, d, gate = vectors.split([d_out, d_in, d_out, d_in, 1], -1)
        scale = self.max_scale * gate.sigmoid()[:, None]
        # An elementwise product with a b^T scales the factors of each token's outer product.
        left = torch.cat([g.delta * a.softmax(-1)[:, None], c.softmax(-1)[:, None]], 1)
        right = torch.cat([g.x * b[:, None], d[:, None]], 1)
        return LowRankUpdate(scale * left, right)


def _rename_price(_net: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if (old := f"{prefix}price") in state:  # the multiplier's name in earlier versions
        state[f"{prefix}lagrange_multiplier"] = state.pop(old)


def size_of(updates: Mapping[str, LowRankUpdate]) -> Tensor:
    """Mean over matrices and edits of the root mean square of an update."""
    sizes = [update.mean_square.clamp(min=1e-20).sqrt().mean() for update in updates.values()]
    return torch.stack(sizes).mean()


def condition_of(vlm: VLM, config: KEConfig, request: EditRequest, old: str) -> Tensor:
    """The edit as token ids of "old answer >> new answer || prompt"."""
    request = with_end_token(vlm, request) if config.end_token else request
    text = f"{old} >> {request.target} || {request.prompt}"
    ids = vlm.tokenizer(text)["input_ids"][: config.condition_tokens]
    return torch.tensor(ids, dtype=torch.long)


def own_answers(vlm: VLM, samples: Sequence[EditSample]) -> list[str]:
    """The model's own answers to the requests."""
    answers: list[str] = []
    for start in range(0, len(samples), BATCH_SIZE):
        some = [sample.request for sample in samples[start : start + BATCH_SIZE]]
        answers += vlm.generate(encode_requests(vlm, some, targets=False), ANSWER_TOKENS)
    return answers
