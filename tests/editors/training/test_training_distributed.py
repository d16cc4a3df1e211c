"""Several processes train what one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_in_ranks import trained

from attrib.errors import AttribError
from editors.methods.adapter_editor import ADAPTERS
from editors.training.process_group import ProcessGroup

SCRIPT = Path(__file__).parent / "train_in_ranks.py"


def flat(tensors):
    """The trained ones in one vector."""
    trained = sorted(name for name in tensors if "units" not in name)
    return torch.cat([tensors[name].flatten() for name in trained])


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = trained(one)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = Path(__file__)
    paths = os.pathsep.join(str(folder) for folder in (here.parent, *here.parents[1:4]))
    more = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), str(two)],
        env=os.environ | more, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [(two / f"rank-{number}").read_text() for number in range(2)]
    assert said[0] == said[1]  # the same weights to the last bit
    assert said[0].startswith("2 ")
    fresh = alone.config.build(alone.vlm, alone.layers, seed=0)[0].adapter.state_dict()
    start = flat({f"visual-0.{name}": value for name, value in fresh.items()})
    end, end_of_two = (flat(load_file(out / ADAPTERS)) for out in (one, two))
    # Adam divides by the size of gradients, so that rounding shows where they are almost zero.
    assert (end_of_two - end).norm() < 0.005 * (end - start).norm()


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
