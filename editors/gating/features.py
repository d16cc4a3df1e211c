"""What a learned gate sees of an input: the states of its prompt, standardised, and no target.

Under causal attention prompt positions cannot see what follows them, so an edit looks the same
whatever its target is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attrib.model.batch import Batch

TEXT, VISUAL = "text", "visual"
WIDTHS = {TEXT: 256, VISUAL: 128}  # channels kept of each layer where the model has more
SMALLEST_SPREAD = 1e-3  # standard deviation below which a channel says nothing


@dataclass(frozen=True, eq=False)
class Inputs:
    """Prompts side by side, padded on the right.

    Attributes:
        text: States of the words, all layers that are read one behind the other.
        real: Which are not padding; the last of them is the last prompt token.
        visual: States of the visual tokens.
        seen: Which are not padding; none where an input has no image.
    """

    text: Float[Tensor, "input token text_channel"]
    real: Bool[Tensor, "input token"]
    visual: Float[Tensor, "input patch visual_channel"]
    seen: Bool[Tensor, "input patch"]

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]]) -> "Inputs":
        """What a reader returned for some inputs, side by side."""
        text, real = padded([one[TEXT] for one in states])
        visual, seen = padded([one[VISUAL] for one in states])
        return cls(text, real, visual, seen)


class GateReader(nn.Module):
    """The states that a gate is trained on: of words and visual tokens, standardised per channel.

    Of wide models a random projection is kept, which preserves inner products on average (Johnson
    and Lindenstrauss); it is drawn from the seed and saved.
    """

    def __init__(self, layers: Sequence[int], d_model: int, seed: int = 0):
        super().__init__()
        self._layers, self.d_model = tuple(layers), d_model
        generator = torch.Generator().manual_seed(seed)
        for kind, most in WIDTHS.items():
            self.register_buffer(f"{kind}_mean", torch.zeros(len(layers), d_model))
            self.register_buffer(f"{kind}_spread", torch.ones(len(layers), d_model))
            if d_model > most:
                drawn = torch.randn(d_model, most, generator=generator) / most**0.5
                self.register_buffer(f"{kind}_projection", drawn)

    @property
    def layers(self) -> tuple[int, ...]:
        """Whose outputs it reads."""
        return self._layers

    def width(self, kind: str) -> int:
        """Channels of the states of a kind."""
        return len(self.layers) * min(WIDTHS[kind], self.d_model)

    @torch.no_grad()
    def fit(self, raw: Sequence[Mapping[str, Tensor]]) -> None:
        """Standardise by what `raw_states` returned for some inputs."""
        for kind in WIDTHS:
            states = torch.cat([one[kind].float() for one in raw])
            if len(states) < 2:
                continue  # edits of text alone have no visual tokens
            self._of(kind, "mean").copy_(states.mean(0))
            self._of(kind, "spread").copy_(states.std(0).clamp(min=SMALLEST_SPREAD))

    def raw_states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Per example the states of its words and of its visual tokens, "token layer d_model"."""
        h = torch.stack([hidden[i].detach().to(hidden[self.layers[0]]) for i in self.layers], dim=2)
        # An image alone is a prompt as well: then the last visual token stands for the words.
        words = (batch["text"] | batch["last"]).to(h.device)
        visual = batch["visual"].to(h.device)
        return [
            {TEXT: one[at].clone(), VISUAL: one[seen].clone()}
            for one, at, seen in zip(h, words, visual, strict=True)
        ]

    def states(self, hidden: Mapping[int, Tensor], batch: Batch) -> list[dict[str, Tensor]]:
        """Per example the states, standardised, "token channel" in half precision."""
        raw = self.raw_states(hidden, batch)
        self.to(raw[0][TEXT].device)
        return [{kind: self._reduced(one[kind], kind) for kind in WIDTHS} for one in raw]

    def _reduced(
        self, states: Float[Tensor, "token layer d_model"], kind: str
    ) -> Float[Tensor, "token channel"]:
        x = (states.float() - self._of(kind, "mean")) / self._of(kind, "spread")
        if hasattr(self, f"{kind}_projection"):
            x = x @ self._of(kind, "projection")
        return x.flatten(1).half()

    def _of(self, kind: str, name: str) -> Tensor:
        return getattr(self, f"{kind}_{name}")


def padded(
    states: Sequence[Float[Tensor, "_ channel"]],
) -> tuple[Float[Tensor, "input token channel"], Bool[Tensor, "input token"]]:
    """States of different numbers of tokens side by side, at least one token wide, and the real."""
    x = nn.utils.rnn.pad_sequence([one.float() for one in states], batch_first=True)
    x = x if x.shape[1] else x.new_zeros(len(states), 1, x.shape[2])
    lengths = torch.tensor([len(one) for one in states], device=x.device)
    return x, torch.arange(x.shape[1], device=x.device) < lengths[:, None]
