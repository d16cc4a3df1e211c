"""Checkpoints to resume from: weights, optimizer states and a record, in one file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from attrib.files import write_text
from editors.io.tensors import save_tensors

RECORD = "training.json"


def save_checkpoint(
    path: Path, module: nn.Module, optimizers: Sequence[Optimizer], record: dict[str, Any]
) -> None:
    """Write a checkpoint atomically, and its record once more beside it, for readers."""
    weights = {f"weights.{k}": v for k, v in module.state_dict().items()}
    moments = {
        f"moments.{which}.{i}.{name}": value
        for which, optimizer in enumerate(optimizers)
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    text = json.dumps(record, indent=1)
    # In one file: neither weights nor record can be there without the other.
    save_tensors(path, weights | moments, {RECORD: text})
    write_text(path.with_name(RECORD), text)


def read_checkpoint_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[RECORD])


def load_checkpoint(path: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Load the weights of a module and the states of its optimizers."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {k: v for k, v in tensors.items() if k.startswith("weights.")}
    module.load_state_dict({k.removeprefix("weights."): v for k, v in weights.items()})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in tensors.items():
        if name.startswith("moments."):
            _, which, index, key = name.split(".")
            states[int(which)].setdefault(int(index), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
