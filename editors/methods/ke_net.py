"""KnowledgeEditor's hypernetwork: from the words of an edit to what its gradient is made of."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_sequence

from editors.weights.rank1_update import LowRankUpdate, TokenGradients


class KENet(nn.Module):
    """Turns the gradients of requests into changes, as their words say (De Cao et al. 2021).

    A bidirectional LSTM reads the condition. For a matrix it gives two pairs of vectors and a gate
    g in (0, 1); the change is `max_scale g (gradient * softmax(a) b^T + softmax(c) d^T)`, with an
    elementwise product. At the start g is about a half.

    Args:
        shapes: By matrix its outputs and inputs.
        embedding: The model's own, trained further.
        d_lstm: Hidden width of the LSTM, per direction.
        d_condition: Width of what a condition becomes.
        d_head: Width inside the head of a matrix.
        max_scale: The largest factor of a change.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        embedding: Float[Tensor, "d_vocab d_model"],
        d_lstm: int,
        d_condition: int,
        d_head: int,
        max_scale: float,
    ):
        super().__init__()
        self.shapes, self.max_scale = dict(shapes), max_scale
        self.embedding = nn.Embedding.from_pretrained(embedding.float().clone(), freeze=False)
        self.lstm = nn.LSTM(embedding.shape[1], d_lstm, bidirectional=True)
        self.condition = nn.Sequential(nn.Linear(2 * d_lstm, d_condition), nn.Tanh())
        self.heads = nn.ModuleList(
            _head(d_condition, d_head, d_out, d_in) for d_out, d_in in shapes.values()
        )
        # Not of this network, but trained and kept with it: see `KEObjective`.
        self.price = nn.Parameter(torch.zeros(()))
        self.register_buffer("margin", torch.tensor(1e-3))

    def forward(
        self, gradients: Mapping[str, TokenGradients], conditions: Sequence[Tensor]
    ) -> dict[str, LowRankUpdate]:
        """By matrix the change for each request, whose words are given as token ids."""
        read = self.read(conditions)
        heads = zip(self.shapes, self.heads, strict=True)
        return {name: self._change(gradients[name], head(read)) for name, head in heads}

    def read(self, conditions: Sequence[Tensor]) -> Float[Tensor, "edit d_condition"]:
        """What the conditions become: the LSTM's last states of both directions, and a layer."""
        device = self.embedding.weight.device
        words = pack_sequence(
            [self.embedding(ids.to(device)) for ids in conditions], enforce_sorted=False
        )
        _, (last, _) = self.lstm(words)
        return self.condition(torch.cat([last[0], last[1]], -1))

    def _change(self, g: TokenGradients, made: Float[Tensor, "edit made"]) -> LowRankUpdate:
        d_out, d_in = g.delta.shape[-1], g.x.shape[-1]
        a, b, c, d, gate = made.split([d_out, d_in, d_out, d_in, 1], -1)
        scale = self.max_scale * gate.sigmoid()[:, None]
        # An elementwise product with a b^T scales what each token's outer product is made of.
        left = torch.cat([g.delta * a.softmax(-1)[:, None], c.softmax(-1)[:, None]], 1)
        right = torch.cat([g.x * b[:, None], d[:, None]], 1)
        return LowRankUpdate(scale * left, right)


def _head(d_condition: int, d_head: int, d_out: int, d_in: int) -> nn.Sequential:
    into, out = nn.Linear(d_condition, d_head), nn.Linear(d_head, 2 * (d_out + d_in) + 1)
    return nn.Sequential(weight_norm(into), nn.Tanh(), weight_norm(out))
