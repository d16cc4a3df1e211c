"""What adapters see of an edit: its states at their layer, its input embeddings, or both."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

EMBED = -1  # the stream entering layer 0, where a layer is asked for
SignalKind = Literal["site", "embed", "both", "none"]
SignalSpan = Literal["all", "answer"]


@dataclass(frozen=True, eq=False)
class EditSignal:
    """What the adapter at one layer sees of one edit.

    Attributes:
        states: What it attends to, of the edit's image, prompt and target.
        last: The state of the edit's last prompt token at that layer, whatever `states` are: an
            influence mapper compares it with visual tokens of the same layer.
    """

    states: Float[Tensor, "edit_pos d_signal"]
    last: Float[Tensor, " d_model"]

    @property
    def num_bytes(self) -> int:
        """Bytes of both."""
        return sum(t.numel() * t.element_size() for t in (self.states, self.last))


@dataclass(frozen=True)
class EditSignalBatch:
    """The signals of one edit per example, padded on the right.

    Attributes:
        states: What the adapter attends to.
        real: Which of them are not padding.
        last: The state of the edit's last prompt token at the adapter's layer.
    """

    states: Float[Tensor, "batch edit_pos d_signal"]
    real: Bool[Tensor, "batch edit_pos"]
    last: Float[Tensor, "batch d_model"]

    def rows(self, rows: Int[Tensor, " rows"]) -> "Signals":
        """Those of some examples, in this order."""
        rows = rows.to(self.real.device)
        return EditSignalBatch(self.states[rows], self.real[rows], self.last[rows])


def edit_signal(
    kind: SignalKind,
    span: SignalSpan,
    layer: int,
    hidden: Mapping[int, Float[Tensor, "pos d_model"]],
    last: int,
    window: int = 1,
) -> EditSignal:
    """What the adapter at a layer sees of an edit.

    Args:
        kind: Of states; "both" for embeddings with the states behind them; "none" for zeros.
        span: Which positions.
        layer: Of the adapter.
        hidden: The edit's states there, and those at `EMBED` where `kind` asks for them.
        last: Where the last prompt token stands.
        window: How many positions each shows: itself and those before it; see `windows`.
    """
    start = last if span == "answer" else 0
    shown = {"embed": [EMBED], "both": [EMBED, layer]}.get(kind, [layer])
    states = windows(torch.cat([hidden[at][start:] for at in shown], -1), window)
    return EditSignal(torch.zeros_like(states) if kind == "none" else states, hidden[layer][last])


def windows(
    states: Float[Tensor, "pos width"], window: int
) -> Float[Tensor, "pos window_times_width"]:
    """Every position with the `window - 1` before it, its own states first, zeros before the first.

    An adapter attends to positions one by one. What belongs together in an answer of many words ("a
    blue square in the north") it can fetch as one only where one position shows all of it.
    """
    shifted = (nn.functional.pad(states, (0, 0, back, 0)) for back in range(window))
    return torch.cat([some[: len(states)] for some in shifted], -1)


def pad_signals(signals: Sequence[EditSignal]) -> EditSignalBatch:
    """The signals of several edits side by side."""
    padded, real = pad_states([s.states for s in signals])
    return EditSignalBatch(padded, real, torch.stack([s.last for s in signals]))


def pad_states(
    states: Sequence[Float[Tensor, "_ width"]],
) -> tuple[Float[Tensor, "batch pos width"], Bool[Tensor, "batch pos"]]:
    """States of different lengths padded on the right, at least one long, and which are real."""
    padded = nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    padded = padded if padded.shape[1] else padded.new_zeros(len(states), 1, padded.shape[2])
    lengths = torch.tensor([len(one) for one in states], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def signal_width(kind: SignalKind, d_model: int, window: int = 1) -> int:
    """How wide the states are that adapters attend to."""
    return window * (2 * d_model if kind == "both" else d_model)


def signal_layers(kind: SignalKind, layers: Iterable[int]) -> list[int]:
    """Where states of an edit are needed for adapters at `layers`."""
    return sorted({*layers, *([EMBED] if kind in ("embed", "both") else [])})
