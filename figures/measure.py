"""Load a model with its data, collect tables, and record how numbers were made."""

import shlex
from typing import TYPE_CHECKING, Any

import pandas as pd

from figures.figure import Setting

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.runs.collected import Measure

BATCH = 10
VERSIONS_OF = ("attrib", "torch", "transformers", "numpy", "python")


def load_inputs(setting: Setting) -> "tuple[VLM, EditData]":
    """Load the model and the data of a setting."""
    import attrib

    data = attrib.data.load(
        setting.data, setting.split, limit=setting.limit, image_root=setting.image_root
    )
    return attrib.load(setting.model, dtype=setting.dtype), data


def collect_tables(
    vlm: "VLM", data: "EditData", measure: "Measure", *, batch_size: int = BATCH
) -> dict[str, pd.DataFrame]:
    """Run a measurement over the requests of all valid samples and return its tables."""
    from attrib.runs.collect import collect

    return collect(vlm, data, measure, batch_size=batch_size).tables


def provenance(figure: str, setting: Setting, n: int, **more: Any) -> dict[str, Any]:
    """Return model, data, seed, n, versions and the command that repeats a measurement."""
    from attrib.files import versions

    found = versions()
    split = () if setting.data.startswith("scenes-") else ("--split", setting.split)
    dtype = () if setting.dtype == "auto" else ("--dtype", setting.dtype)
    command = [
        "python", "-m", "figures", figure, "--measure", "--model", setting.model, *dtype,
        "--data", setting.data, *split, "--limit", str(setting.limit), "--seed", str(setting.seed),
    ]  # fmt: skip
    return {
        "figure": figure,
        "model": setting.model,
        "data": f"{setting.data} {setting.split}",
        "seed": setting.seed,
        "n": n,
        "versions": {name: found[name] for name in VERSIONS_OF if name in found},
        "command": shlex.join(command),
        **more,
    }


def same_depth(layer: int, of: int, num_layers: int) -> int:
    """Return the layer at the relative depth that `layer` has in a model of `of` layers."""
    return round(layer / (of - 1) * (num_layers - 1))


def relative_depth(layer: int, num_layers: int) -> float:
    """Return the depth of a layer, from 0 (the first) to 1 (the last)."""
    return layer / max(num_layers - 1, 1)
