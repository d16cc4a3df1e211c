"""Data-parallel training by the processes of torchrun or `accelerate launch`.

Every process holds all data and the same weights and runs its share of a step's items. Gradients
are summed over processes, each term of the loss weighted by the process's share of it, so that the
step equals that of a single process up to rounding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attrib.errors import AttribError


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "ProcessGroup":
        """The group that WORLD_SIZE announces; the first call connects the processes."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """This process's share of a step's items.

        Raises:
            AttribError: There are fewer items than processes.
        """
        if len(items) < self.world_size:
            raise AttribError(
                f"{self.world_size} processes share steps of {len(items)} items; give a larger "
                "batch_size, or start fewer processes"
            )
        return list(items[self.rank :: self.world_size])

    def barrier(self) -> None:
        """Block until every process is here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each process's gradients by the sum over processes."""
        if self.world_size == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = self.all_reduce(torch.cat([g.flatten() for g in grads]))
        for p, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)
