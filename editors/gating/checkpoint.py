"""Gates as files: safetensors and JSON."""

import json
from pathlib import Path

from safetensors.torch import load_file, save

from attrib.errors import SetupError
from attrib.files import atomic_write, write_text
from editors.gating.gates import CosineGate, LearnedGate, gate_from_config

CONFIG, TENSORS = "gate.json", "gate.safetensors"


def save_gate(path: str | Path, gate: CosineGate | LearnedGate) -> Path:
    """Write a gate into the folder `path`; its file of settings last, so that it is there whole."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with atomic_write(path / TENSORS) as file:
        file.write(save(gate.tensors()))
    write_text(path / CONFIG, json.dumps(gate.config(), indent=1))
    return path


def load_gate(path: str | Path) -> CosineGate | LearnedGate:
    """The gate in the folder `path`.

    Raises:
        SetupError: There is none.
    """
    path = Path(path)
    if not (path / CONFIG).exists():
        raise SetupError(f"{path} holds no gate: there is no {CONFIG} in it")
    config = json.loads((path / CONFIG).read_text())
    return gate_from_config(config, load_file(path / TENSORS))
