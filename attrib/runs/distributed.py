"""Processes that share a run or a training, as torchrun, `accelerate launch` and mpirun start them.

Those of a run (`Rank`) take disjoint shards and meet in the run's folder only. Without collectives,
a slow or dead process does not block the others.

Those of a training (`ProcessGroup`) all hold the data and the same weights and run their shares of
a step's items. Gradients are summed over processes, each term of the loss weighted by the process's
share of it, so that the step equals that of a single process up to rounding.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger

import torch
from torch import Tensor, nn

from attrib.errors import AttribError, SetupError
from attrib.runs.shards import Shard, ShardStore

TIMEOUT_SECONDS = 60.0  # without a new shard, before the first process takes over
POLL_SECONDS = 0.5
# What torchrun sets, then what MPI implementations set.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL = (
    "LOCAL_RANK",
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
)
logger = getLogger("attrib")


@dataclass(frozen=True)
class Rank:
    """One of the processes that share a run.

    Attributes:
        number: of this process, from 0.
        world: how many processes there are.
        local: number among those on this machine.
    """

    number: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """Read RANK, WORLD_SIZE and LOCAL_RANK or MPI's equivalents; a single process by default.

        Raises:
            SetupError: They are not numbers, or the rank is not below the world size.
        """
        number, world, local = (_first(environ, names) for names in (RANK, WORLD, LOCAL))
        if number is None or world is None:
            return cls()
        try:
            rank = cls(int(number), int(world), int(local or 0))
        except ValueError as error:
            raise SetupError(f"RANK, WORLD_SIZE and LOCAL_RANK: {error}") from error
        if not 0 <= rank.number < rank.world or rank.local < 0:
            raise SetupError(f"RANK={rank.number} is not one of WORLD_SIZE={rank.world} ranks")
        return rank

    def mine(self, shards: Sequence[Shard]) -> list[Shard]:
        """The shards that this process measures: every `world`-th."""
        return list(shards[self.number :: self.world])

    def device(self, requested: str) -> str:
        """The device to use: one GPU per process where the machine has several."""
        if self.world > 1 and requested in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local % torch.cuda.device_count()}"
        return requested


def wait_for(
    shards: Sequence[Shard], store: ShardStore, measure: Callable[[Shard], None], timeout: float
) -> None:
    """Block until all shards exist; compute the shards of stragglers after `timeout`.

    Args:
        shards: all of a run.
        store: where they are committed.
        measure: commits a shard.
        timeout: seconds without a new shard after which the others are taken to be dead. A mistake
            costs double work only: both processes write the same shard.
    """
    missing = [shard for shard in shards if not store.has(shard)]
    if missing and timeout:
        logger.info("waiting for %d shards of other processes", len(missing))
    last_change = time.monotonic()
    while missing:
        if time.monotonic() - last_change >= timeout:
            logger.info("no other process delivers: measuring shard %d here", missing[0].index)
            measure(missing.pop(0))
        else:
            time.sleep(POLL_SECONDS)
        left = [shard for shard in missing if not store.has(shard)]
        if len(left) < len(missing):
            missing, last_change = left, time.monotonic()


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


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environ[name] for name in names if name in environ), None)
