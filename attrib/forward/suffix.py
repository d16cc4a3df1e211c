"""Run the later layers on many disturbed versions of a batch, only where the disturbance reaches.

Noise in the output of layer l leaves the layers up to l as they were, and in a causal decoder all
positions in front of it too, in every layer. So a version resumes from the clean output of layer l
and runs its last positions alone, the suffix; of the others only keys and values are needed, and
those are the clean pass's. The last layer needs keys and values of the suffix, but one query: the
last prompt token's. Versions of several layers share one pass: each joins where its layer ends.

`attrib.forward.cutting` makes a `Suffix` of a batch, and sees to it that this holds.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attrib.forward.kv_prefix import KeyValues, keys_values, run_after, run_among
from attrib.forward.layer_call import Call, pick_rows
from attrib.forward.residual import pick
from attrib.model.vlm import VLM


@dataclass(frozen=True, eq=False)
class Suffix:
    """The positions from `start` on, with all it takes to run them through the later layers.

    Attributes:
        vlm: The model.
        start: The first position that is run.
        hidden: Every layer's clean output, "batch suffix d_model".
        between: For a layer that something is written in front of, the clean stream before and
            after that.
        calls: Per layer the other arguments.
        kept: Per layer keys and values of the positions in front, if there are any.
        query: The last layer's call for the last prompt token alone; None to run it whole.
        last: Where the last prompt token is in the suffix.
    """

    vlm: VLM
    start: int
    hidden: dict[int, Tensor]
    between: dict[int, tuple[Tensor, Tensor]]
    calls: dict[int, Call]
    kept: dict[int, KeyValues]
    query: Call | None
    last: Int[Tensor, " batch"]

    @property
    def num_pos(self) -> int:
        """Number of positions that are run."""
        return self.hidden[0].shape[1]

    @torch.no_grad()
    def run(
        self,
        layers: Sequence[int],
        rows: Int[Tensor, " version"],
        disturbed: Callable[[slice], Float[Tensor, "some suffix d_model"]],
    ) -> Float[Tensor, "version d_model"]:
        """The last layer's output at the last prompt token, for versions of the batch.

        Args:
            layers: For each version the layer whose output is disturbed, in ascending order.
            rows: The example it is a version of.
            disturbed: That output, for consecutive versions of one layer.
        """
        final = self.vlm.num_layers - 1
        h = self.hidden[0][:0]
        for i in range(layers[0] + 1, final + 1):
            if (joined := bisect_right(layers, i - 1)) > len(h):
                new = disturbed(slice(len(h), joined))
                h = torch.cat([h.to(new.device), new])  # a model may span devices
            if i < final:
                h = self._through(i, h, rows[: len(h)])
        resumed = len(h)
        done = [self._through_final(h, rows[:resumed])] if resumed else []
        if resumed < len(layers):
            done.append(self._at_last(disturbed(slice(resumed, len(layers))), rows[resumed:]))
        return torch.cat([part.to(done[-1].device) for part in done])

    def _through(self, i: int, h: Tensor, rows: Tensor) -> Tensor:
        """The output of layer `i`, of versions `h` of what enters it."""
        call = pick_rows(self.calls[i], rows, len(self.last))
        h = self._entering(i, h, rows)
        return run_after(self.vlm.layers[i], h, call, self._kept_of(i, rows))

    def _through_final(self, h: Tensor, rows: Tensor) -> Tensor:
        i = self.vlm.num_layers - 1
        if self.query is None:
            return self._at_last(self._through(i, h, rows), rows)
        layer, batch = self.vlm.layers[i], len(self.last)
        h = self._entering(i, h, rows)
        call = pick_rows(self.calls[i], rows, batch)
        given = keys_values(layer, h, call, self._kept_of(i, rows))
        query = pick_rows(self.query, rows, batch)
        return run_among(layer, self._at_last(h, rows)[:, None], query, given)[:, 0]

    def _entering(self, i: int, h: Tensor, rows: Tensor) -> Tensor:
        if i not in self.between:
            return h
        before, after = (clean[rows.to(clean.device)] for clean in self.between[i])
        return torch.where(h == before, after, h + (after - before))

    def _kept_of(self, i: int, rows: Tensor) -> KeyValues | None:
        return self.kept[i].rows(rows) if i in self.kept else None

    def _at_last(self, h: Tensor, rows: Tensor) -> Tensor:
        return pick(h, self.last[rows.to(self.last.device)])
