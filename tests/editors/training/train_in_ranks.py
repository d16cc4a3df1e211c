"""Trains a tiny editor as one of several processes; started by test_training_ranks."""

import sys
from pathlib import Path

from conftest import tiny_vlm
from tiny_edits import samples

from editors import VisEdit
from editors.io.tensors import digest_of
from editors.training.process_group import ProcessGroup

QUICK = {"steps": 2, "batch_size": 5, "d_adapter": 16, "num_heads": 2, "learning_rate": 0.01,
         "validate_every": 2, "save_every": 2, "warmup": 0, "preset": "embedded",
         "optimizer": "adam"}  # fmt: skip
# Muon is left out: it makes full steps of gradients that are rounding alone.


def trained(out):
    """An editor whose steps of 5 edits no two processes can halve."""
    return VisEdit.train(tiny_vlm("llava"), samples(8), layers={"visual": [0]}, out=out, **QUICK)


if __name__ == "__main__":
    editor = trained(sys.argv[1])
    group = ProcessGroup.from_environment()
    said = f"{group.world_size} {digest_of(editor.module.state_dict())}"
    (Path(sys.argv[1]) / f"rank-{group.rank}").write_text(said)
