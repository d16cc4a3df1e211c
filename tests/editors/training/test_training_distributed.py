"""Several processes train what one process trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from tiny_edits import samples
from train_in_ranks import trained

from attrib.errors import AttribError
from attrib.model.vlm import VLM
from editors.adapters.edit_signal import EMBED
from editors.methods.adapter_editor import ADAPTERS
from editors.methods.adapter_objective import AdapterConfig, AdapterObjective
from editors.prefix.cached_dataset import cache_dataset
from editors.training.process_group import ProcessGroup

SCRIPT = Path(__file__).parent / "train_in_ranks.py"


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


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = trained(one)
    here = Path(__file__)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # The environment that torchrun gives its processes.
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "PYTHONPATH": os.pathsep.join(map(str, (here.parent, *here.parents[1:4])))}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, two], stderr=subprocess.PIPE, text=True,
            env=os.environ | more | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
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
