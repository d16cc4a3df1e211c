"""Several processes train what one process trains."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import tiny_models
import torch
from conftest import tiny_vlm
from safetensors.torch import load_file
from tiny_edits import samples

from attrib.errors import AttribError
from attrib.model.vlm import VLM
from attrib.runs.distributed import ProcessGroup
from editors import VisEdit
from editors.adapters.edit_signal import EMBED
from editors.io import digest_of
from editors.methods.adapter_editor import ADAPTERS
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.training.dataset import cache_dataset

QUICK = {"steps": 2, "batch_size": 5, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.01,
         "validate_every": 2, "save_every": 2, "warmup": 0, "preset": "embedded", "gate": "none",
         "optimizer": "adam"}  # fmt: skip
MODEL = [f"transformers.models.{name}.modeling_{name}" for name in ("llava", "clip", "llama")]
# Muon is left out: it makes full steps of gradients that are rounding alone.


def flat(tensors):
    """The trained ones in one vector."""
    trained = sorted(name for name in tensors if "units" not in name)
    return torch.cat([tensors[name].flatten() for name in trained])


def ragged(num):
    """Edits with answers of different lengths, so that processes have different shares of them."""
    some = samples(num)
    for i, sample in enumerate(some):
        for request in (sample.request, *sample.text_generality, *sample.visual_locality):
            object.__setattr__(request, "target", "a thing" + " and a thing" * (i % 3))
    return some


def trained(out):
    """An editor whose steps of 5 edits no two processes can halve."""
    return VisEdit.train(tiny_vlm("llava"), samples(8), layers={"visual": [0]}, out=out, **QUICK)


def train_as(rank, port, out):
    """Train as one of two processes, in the environment that torchrun gives them."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    torch.set_num_threads(1)
    digest, group = digest_of(trained(out).tensors), ProcessGroup.from_environment()
    (out / f"rank-{group.rank}").write_text(f"{group.world_size} {digest}")


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = trained(one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A server that has run nothing yet: a fork of this process could hang in its threads.
    context = multiprocessing.get_context("forkserver")
    # It imports once what both need, this module above all.
    context.set_forkserver_preload([__name__, *MODEL])
    processes = [context.Process(target=train_as, args=(rank, port, two)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=200)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    said = [(two / f"rank-{number}").read_text() for number in range(2)]
    assert said[0] == said[1]  # the same weights to the last bit
    assert said[0].startswith("2 ")
    fresh = alone.config.build(alone.vlm, alone.layers, seed=0)[0].adapter.state_dict()
    start = flat({f"visual-0.{name}": value for name, value in fresh.items()})
    end, end_of_two = (flat(load_file(out / ADAPTERS)) for out in (one, two))
    # Roughly: Adam divides by the size of gradients, so that rounding shows where they are small.
    assert (end_of_two - end).norm() < 0.05 * (end - start).norm()


def test_gradients_of_two_processes_sum_to_those_of_one():
    vlm = VLM(*tiny_models.build("llava"))
    vlm.model.double().requires_grad_(False)
    config = AdapterConfig(d_adapter=16, num_heads=2, init="published", signal="both")
    sites, items = config.build(vlm, {"text": [1], "visual": [0]}, seed=0), [0, 3, 2, 4, 1]
    data = cache_dataset(vlm, ragged(5), first=[0], signals=[EMBED, 0, 1])
    objective = AdapterObjective(vlm, data, data, config, sites)

    def gradient(group):
        objective.module.zero_grad()
        mine = group.share(items)
        shares = objective.shares(mine, items)
        terms = objective.losses(mine, np.random.default_rng(0))
        assert set(terms) == set(shares)
        sum(shares[name] * value for name, value in terms.items()).backward()
        return torch.cat([p.grad.flatten() for p in objective.module.parameters()])

    one, *two = (gradient(group) for group in (ProcessGroup(), *map(ProcessGroup, (0, 1), (2, 2))))
    # The model runs in float64, adapters in float32.
    assert (sum(two) - one).norm() < 1e-5 * one.norm()
    assert (two[0] - one / 2).norm() > 0.01 * one.norm()


def test_a_process_takes_its_part_and_no_other():
    parts = [ProcessGroup(rank, 3).share([5, 1, 4, 2, 9, 7, 8]) for rank in range(3)]
    assert parts == [[5, 2, 8], [1, 9], [4, 7]]
    assert ProcessGroup().share([5, 1]) == [5, 1]
    with pytest.raises(AttribError, match="3 processes share steps of 2 items"):
        ProcessGroup(0, 3).share([1, 2])


def test_alone_there_is_nothing_to_sum():
    weight = torch.nn.Parameter(torch.ones(2))
    ProcessGroup().all_reduce_gradients([weight])
    assert weight.grad is None
    assert ProcessGroup.from_environment() == ProcessGroup()
