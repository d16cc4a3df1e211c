"""Edit signals: what an adapter attends to, the edit's states at its layer or its embeddings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

EMBED = -1  # the stream entering layer 0, where a layer is expected
SignalKind = Literal["site", "embed", "both", "none"]
SignalSpan = Literal["all", "answer"]


@dataclass(frozen=True, eq=False)
class EditSignal:
    """What the adapter at one layer reads of one edit.

    Attributes:
        states: The states it attends to, of the edit's image, prompt and target.
        last: The state of the edit's last prompt token at that layer, whatever `states` are: an
            influence mapper compares it with visual tokens of the same layer.
    """

    states: Float[Tensor, "edit_pos d_signal"]
    last: Float[Tensor, " d_model"]

    @property
    def num_bytes(self) -> int:
        """Bytes of both tensors."""
        return sum(t.nbytes for t in (self.states, self.last))


@dataclass(frozen=True)
class EditSignalBatch:
    """Signals of several edits, padded on the right.

    Attributes:
        states: The states that the adapter attends to.
        real: Which of them are not padding.
        last: The state of each edit's last prompt token at the adapter's layer.
    """

    states: Float[Tensor, "batch edit_pos d_signal"]
    real: Bool[Tensor, "batch edit_pos"]
    last: Float[Tensor, "batch d_model"]

    def rows(self, rows: Int[Tensor, " rows"]) -> "EditSignalBatch":
        """Select rows, in this order."""
        rows = rows.to(self.real.device)
        return EditSignalBatch(self.states[rows], self.real[rows], self.last[rows])

    def to(self, device: torch.device) -> "EditSignalBatch":
        """Move the tensors to a device."""
        return EditSignalBatch(*(one.to(device) for one in (self.states, self.real, self.last)))


def edit_signal(
    kind: SignalKind,
    span: SignalSpan,
    layer: int,
    hidden: Mapping[int, Float[Tensor, "pos d_model"]],
    last: int,
    window: int = 1,
) -> EditSignal:
    """Return what the adapter at a layer reads of an edit.

    Args:
        kind: The layer's states ("site"), input embeddings ("embed"), both concatenated with the
            embeddings first ("both"), or zeros ("none").
        span: All positions, or the last prompt token and the target ("answer").
        layer: The adapter's layer.
        hidden: The edit's states at `layer`, and at `EMBED` where `kind` needs them.
        last: Position of the last prompt token.
        window: Consecutive positions in each state; see `windows`.
    """
    start = last if span == "answer" else 0
    sources = {"embed": [EMBED], "both": [EMBED, layer]}.get(kind, [layer])
    device = hidden[layer].device  # the adapter's
    found = torch.cat([hidden[at][start:].to(device) for at in sources], -1)
    states = windows(found, window)
    return EditSignal(torch.zeros_like(states) if kind == "none" else states, hidden[layer][last])


def windows(
    states: Float[Tensor, "pos width"], window: int
) -> Float[Tensor, "pos window_times_width"]:
    """Concatenate each position with the `window - 1` before it, zeros before the first.

    Attention reads positions one by one. The words of a long answer ("a blue square in the north")
    can be read as a whole only where one state contains all of them.
    """
    shifted = (nn.functional.pad(states, (0, 0, back, 0)) for back in range(window))
    return torch.cat([some[: len(states)] for some in shifted], -1)


def pad_signals(signals: Sequence[EditSignal]) -> EditSignalBatch:
    """Batch the signals of several edits."""
    padded, real = pad_states([s.states for s in signals])
    return EditSignalBatch(padded, real, torch.stack([s.last for s in signals]))


def pad_states(
    states: Sequence[Float[Tensor, "_ width"]],
) -> tuple[Float[Tensor, "batch pos width"], Bool[Tensor, "batch pos"]]:
    """Pad states on the right, to one position at least; return them and which are real."""
    padded = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    padded = padded if padded.shape[1] else padded.new_zeros(len(states), 1, padded.shape[2])
    lengths = torch.tensor([len(one) for one in states], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def signal_width(kind: SignalKind, d_model: int, window: int = 1) -> int:
    """Width of the states that adapters attend to."""
    return window * (2 * d_model if kind == "both" else d_model)


def signal_layers(kind: SignalKind, layers: Iterable[int]) -> list[int]:
    """Layers at which an edit's states are needed for adapters at `layers`."""
    return sorted({*layers, *([EMBED] if kind in ("embed", "both") else [])})
