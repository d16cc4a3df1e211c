"""Means and variances of channels, part by part: what does not fit into memory at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def add_to_moments(
    count: Int[Tensor, ""],
    mean: Float[Tensor, " channel"],
    squares: Float[Tensor, " channel"],
    states: Float[Tensor, "some channel"],
) -> None:
    """Take further states into running statistics (Chan, Golub & LeVeque 1979), in place.

    Args:
        count: Number of states so far.
        mean: Their mean.
        squares: The sum of their squared distances from it.
        states: Further states.
    """
    if not len(states):
        return
    total = count + len(states)
    gap = states.mean(0) - mean
    weight = (len(states) / total).float()
    squares += (states - states.mean(0)).square().sum(0) + gap.square() * count * weight
    mean += gap * weight
    count.copy_(total)
