"""Ranks: disjoint shards, no collectives, nobody waits for the dead."""

import pytest
import torch

from attrib.data import EditRequest, EditSample
from attrib.errors import SetupError
from attrib.runs import Rank, ShardStore, distributed, split
from attrib.runs.distributed import wait_for

SHARDS = split(
    [EditSample(f"e{i}", EditRequest(None, "?", ""), meta={"row": i}) for i in range(0, 112, 16)]
)


class Shelf(ShardStore):
    """Stands in for the parts on disk."""

    def __init__(self, *shards):
        self.there = {shard.key for shard in shards}

    def has(self, shard):
        return shard.key in self.there

    def put(self, shard):
        self.there.add(shard.key)


@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_the_ranks_share_the_units_without_overlap(world):
    shares = [Rank(number, world).mine(SHARDS) for number in range(world)]
    assert sorted(u.index for share in shares for u in share) == list(range(7))


def test_ranks_come_from_the_environment():
    assert Rank.from_environment({}) == Rank.from_environment({"RANK": "1"}) == Rank(0, 1, 0)
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert Rank.from_environment(given) == Rank(3, 4, 1)
    mpi = {f"OMPI_COMM_WORLD_{name}": str(i) for i, name in enumerate(["RANK", "SIZE"], 1)}
    assert Rank.from_environment(mpi) == Rank(1, 2, 0)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "")])
def test_an_impossible_environment_is_refused(rank, world):
    with pytest.raises(SetupError, match="RANK"):
        Rank.from_environment({"RANK": rank, "WORLD_SIZE": world})


def test_each_rank_of_a_machine_takes_its_gpu(monkeypatch):
    assert Rank(1, 2, 1).device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Rank(i, 4, i % 4).device("auto") for i in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert Rank(1, 2, 1).device("cuda") == "cuda:1"
    assert Rank(1, 2, 1).device("cpu") == "cpu" and Rank(1, 2, 1).device("cuda:0") == "cuda:0"
    assert Rank().device("auto") == "auto"


def test_what_others_deliver_is_waited_for(monkeypatch):
    shelf, coming = Shelf(SHARDS[0]), list(SHARDS[1:])
    monkeypatch.setattr(distributed.time, "sleep", lambda _: shelf.put(coming.pop(0)))
    wait_for(SHARDS, shelf, lambda _: pytest.fail("it was on its way"), timeout=60.0)
    assert not coming


def test_what_nobody_delivers_is_measured(monkeypatch):
    clock, measured = [0.0], []
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])

    def sleep(seconds):
        clock[0] += seconds

    monkeypatch.setattr(distributed.time, "sleep", sleep)
    wait_for(SHARDS, Shelf(*SHARDS[::2]), measured.append, timeout=5.0)
    assert [u.index for u in measured] == [1, 3, 5] and 5 <= clock[0] < 6
    wait_for(SHARDS, Shelf(*SHARDS[1:]), measured.append, timeout=0.0)
    assert measured[-1] is SHARDS[0] and clock[0] < 6
