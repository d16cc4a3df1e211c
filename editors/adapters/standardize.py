"""Channels of hidden states, all as large as each other."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST = 0.1  # of the median channel: how little a channel may move to be a unit of its own


class ChannelStandardizer(nn.Module):
    """The units in which a network sees each channel of hidden states; by default their own.

    Single channels of large models are so large that a layer norm leaves little of the others. In
    units of their own standard deviation all channels are seen alike.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.zero: Tensor
        self.size: Tensor
        self.register_buffer("zero", torch.zeros(d_model))
        self.register_buffer("size", torch.ones(d_model))

    def fit(self, states: Float[Tensor, "some d_model"]) -> None:
        """Take each channel's mean for zero and its standard deviation for one; of one, nothing."""
        if len(states) < 2:
            return
        std, mean = torch.std_mean(states.float(), 0)
        self.zero.copy_(mean)
        # A channel that hardly moves says nothing, and is not to be blown up.
        size = std.clamp(min=SMALLEST * float(std.median()))
        self.size.copy_(torch.where(size > 0, size, 1.0))

    def forward(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """`x` in these units."""
        return (x - self.zero) / self.size

    def back(self, x: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """States that are `x` in these units."""
        return self.zero + self.size * x
