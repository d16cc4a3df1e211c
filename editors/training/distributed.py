"""One training by several processes, as torchrun and `accelerate launch` start them.

Every process holds all data and the same weights. Each runs its part of a step's items; gradients
are summed over processes, with every part of the loss weighted by the share of it that is theirs,
so that the step is the one that a single process would take, up to rounding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attrib.errors import AttribError


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this one is.

    Attributes:
        number: Counted from 0; number 0 alone writes files and says how it goes.
        world: Processes in all.
    """

    number: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> "Ranks":
        """As WORLD_SIZE says that there are several; they find each other on the first call."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.number == 0

    def part(self, items: Sequence[int]) -> list[int]:
        """This process's part of a step's items.

        Raises:
            AttribError: There are fewer items than processes.
        """
        if len(items) < self.world:
            raise AttribError(
                f"{self.world} processes share steps of {len(items)} items; give a larger "
                "batch_size, or start fewer processes"
            )
        return list(items[self.number :: self.world])

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def summed(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients."""
        if self.world == 1:
            return
        flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = self.summed(torch.cat([g.flatten() for g in flat]))
        for p, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
