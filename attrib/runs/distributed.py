"""Ranks: processes that share a run, as torchrun, `accelerate launch` and mpirun start them.

They take disjoint units and meet in the run's folder only: no collectives, so a rank that is slow,
or gone, holds nobody up.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger

import torch

from attrib.errors import SetupError
from attrib.runs.shards import Parts
from attrib.runs.units import Unit

PATIENCE_SECONDS = 60.0  # without a new part, before the first rank does the work itself
LOOK_EVERY_SECONDS = 0.5
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
    """One process among those that share a run.

    Attributes:
        number: of this process, from 0.
        world: how many there are.
        local: number among those on this machine.
    """

    number: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """As RANK, WORLD_SIZE and LOCAL_RANK say, or MPI's names for them; alone without them.

        Raises:
            SetupError: when they are no numbers, or the rank is not below the number of ranks.
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

    def mine(self, units: Sequence[Unit]) -> list[Unit]:
        """The units that this rank measures: every `world`-th."""
        return list(units[self.number :: self.world])

    def device(self, asked: str) -> str:
        """The device to ask for: on a machine with several GPUs, one for each rank."""
        if self.world > 1 and asked in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local % torch.cuda.device_count()}"
        return asked


def wait_for(
    units: Sequence[Unit], parts: Parts, measure: Callable[[Unit], None], patience: float
) -> None:
    """Come back when all units are committed, by other ranks or, where none delivers, by us.

    Args:
        units: all of a run.
        parts: where they are committed.
        measure: commits a unit.
        patience: seconds without a new part after which others are taken to be gone. A mistake
            costs double work, nothing else: both write the same part.
    """
    missing = [unit for unit in units if not parts.has(unit)]
    if missing and patience:
        logger.info("waiting for %d units of other ranks", len(missing))
    heard = time.monotonic()
    while missing:
        if time.monotonic() - heard >= patience:
            logger.info("no other rank delivers: measuring unit %d here", missing[0].index)
            measure(missing.pop(0))
        else:
            time.sleep(LOOK_EVERY_SECONDS)
        left = [unit for unit in missing if not parts.has(unit)]
        if len(left) < len(missing):
            missing, heard = left, time.monotonic()


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environ[name] for name in names if name in environ), None)
