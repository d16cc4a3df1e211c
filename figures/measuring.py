"""What measurements of figures share: model and data, intervals, and where numbers come from."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from figures.figure import Setting

if TYPE_CHECKING:
    from attrib.data import EditData
    from attrib.model.vlm import VLM
    from attrib.runs.collect import Measure

BATCH = 10
RESAMPLES = 2000
NAMED = ("attrib", "torch", "transformers", "numpy", "python")  # versions worth telling


def opened(setting: Setting) -> "tuple[VLM, EditData]":
    """The model and the data of a setting."""
    import attrib

    data = attrib.data.load(
        setting.data, setting.split, limit=setting.limit, image_root=setting.image_root
    )
    return attrib.load(setting.model), data


def tables_of(
    vlm: "VLM", data: "EditData", measure: "Measure", *, batch_size: int = BATCH
) -> dict[str, pd.DataFrame]:
    """The tables of a measurement over the requests of all samples that can be used."""
    from attrib.runs.collect import collect

    return collect(vlm, data, measure, batch_size=batch_size).tables


def about(figure: str, setting: Setting, n: int, **more: Any) -> dict[str, Any]:
    """How numbers were made: model, data, seed, n, versions and the command that repeats it."""
    from attrib.environment import versions

    found = versions()
    split = () if setting.data.startswith("scenes-") else ("--split", setting.split)
    command = [
        "attrib", "figures", figure, "--measure", "--model", setting.model, "--data", setting.data,
        *split, "--limit", str(setting.limit), "--seed", str(setting.seed),
    ]  # fmt: skip
    return {
        "figure": figure,
        "model": setting.model,
        "data": f"{setting.data} {setting.split}",
        "seed": setting.seed,
        "n": n,
        "versions": {name: found[name] for name in NAMED if name in found},
        "command": shlex.join(command),
        **more,
    }


def wide(table: pd.DataFrame, columns: str | Sequence[str], index: Sequence[str]) -> pd.DataFrame:
    """One row per `index`, one column per value of `columns` (joined by "_"), in order met."""
    keys = [columns] if isinstance(columns, str) else list(columns)
    named = table.assign(name=table[keys].astype(str).agg("_".join, axis=1))
    order = list(dict.fromkeys(named["name"]))
    found = named.pivot(index=list(index), columns="name", values="value")
    return found[order].reset_index().rename_axis(columns=None)


def by_layer(table: pd.DataFrame, column: str) -> Float[np.ndarray, "example layer"]:
    """A column of a table with a row per example and layer; examples in order met."""
    order = list(dict.fromkeys(table["example"]))
    found = table.pivot(index="example", columns="layer", values=column)
    return found.loc[order].to_numpy(float)


def integers(table: pd.DataFrame, column: str) -> Int[np.ndarray, " row"]:
    """A column as whole numbers."""
    return np.asarray(table[column], dtype=int)


def layers_of(table: pd.DataFrame) -> list[int]:
    """The layers that a table has, in order."""
    return sorted({int(layer) for layer in table["layer"]})


def mean_interval(
    values: Float[np.ndarray, "example *group"], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over examples, and the ends of its 95 % bootstrap interval; NaN have no say."""
    draws = resampled(values, seed=seed)
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
        return np.asarray(np.nanmean(values, axis=0)), np.asarray(low), np.asarray(high)


def resampled(
    values: Float[np.ndarray, "example *group"], *, seed: int = 0
) -> Float[np.ndarray, "draw *group"]:
    """Means of examples drawn with replacement, one per draw; a draw is the same for all groups."""
    from attrib.stats import bootstrap_means

    flat = np.asarray(values, float).reshape(len(values), -1)
    draws = bootstrap_means(flat, resamples=RESAMPLES, seed=seed)
    return draws.reshape(RESAMPLES, *np.shape(values)[1:])


def peak(values: Float[np.ndarray, "example layer"], *, seed: int = 0) -> tuple[int, np.ndarray]:
    """The column where the mean over examples is highest, and where it is in each resample."""
    draws = resampled(values, seed=seed)
    return int(np.nanargmax(np.nanmean(values, axis=0))), np.nanargmax(draws, axis=1)


def share_of_depth(layer: int, num_layers: int) -> float:
    """Where a layer is, from 0 (the first) to 1 (the last)."""
    return layer / max(num_layers - 1, 1)


def at_depth(layer: int, of: int, num_layers: int) -> int:
    """The layer as deep in a model of `num_layers` as `layer` is in one of `of` layers."""
    return round(layer / (of - 1) * (num_layers - 1))


def spoken(mapping: Mapping[str, Any]) -> str:
    """Names with their values, for text alternatives."""
    return "; ".join(f"{name} {value}" for name, value in mapping.items())
