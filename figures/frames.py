"""Rows and columns of data frames as plain arrays and lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int


def select_rows(table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """Return the rows whose columns equal the given values, or one of the values of a tuple."""
    keep = np.ones(len(table), dtype=bool)
    for name, wanted in equal.items():
        one_of = wanted if isinstance(wanted, tuple) else (wanted,)
        keep &= np.asarray(table[name].isin(one_of))
    return pd.DataFrame(table.loc[keep])


def floats(table: pd.DataFrame, name: str, **equal: Any) -> np.ndarray:
    """Return a column as floats, for the rows that `select_rows` picks."""
    return np.asarray(select_rows(table, **equal)[name], dtype=float)


def strings(table: pd.DataFrame, name: str, **equal: Any) -> list[str]:
    """Return a column as text, for the rows that `select_rows` picks; NaN becomes ""."""
    found = select_rows(table, **equal)[name]
    return ["" if missing else str(word) for word, missing in zip(found, found.isna(), strict=True)]


def integers(table: pd.DataFrame, column: str) -> Int[np.ndarray, " row"]:
    """Return a column as integers."""
    return np.asarray(table[column], dtype=int)


def layers_of(table: pd.DataFrame) -> list[int]:
    """Return the layers in a table, sorted."""
    return sorted({int(layer) for layer in table["layer"]})


def by_layer(table: pd.DataFrame, column: str) -> Float[np.ndarray, "example layer"]:
    """Return a column of a table with a row per example and layer; examples in order met."""
    order = list(dict.fromkeys(table["example"]))
    found = table.pivot(index="example", columns="layer", values=column)
    return found.loc[order].to_numpy(float)


def pivot_wide(
    table: pd.DataFrame, columns: str | Sequence[str], index: Sequence[str]
) -> pd.DataFrame:
    """Return one row per `index` and one column per value of `columns` (joined by "_")."""
    keys = [columns] if isinstance(columns, str) else list(columns)
    named = table.assign(name=table[keys].astype(str).agg("_".join, axis=1))
    order = list(dict.fromkeys(named["name"]))
    found = named.pivot(index=list(index), columns="name", values="value")
    return found[order].reset_index().rename_axis(columns=None)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries."""
    return table.to_dict("records")  # pyright: ignore[reportReturnType] - columns have names
