"""Rows and columns of tables, as plain data frames and arrays."""

from typing import Any

import numpy as np
import pandas as pd


def where(table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """The rows whose columns have the given values, or one of the values of a tuple."""
    keep = np.ones(len(table), dtype=bool)
    for name, wanted in equal.items():
        one_of = wanted if isinstance(wanted, tuple) else (wanted,)
        keep &= np.asarray(table[name].isin(one_of))
    return pd.DataFrame(table.loc[keep])


def numbers(table: pd.DataFrame, name: str, **equal: Any) -> np.ndarray:
    """A column as floats, of the rows that `where` picks."""
    return np.asarray(where(table, **equal)[name], dtype=float)


def words(table: pd.DataFrame, name: str, **equal: Any) -> list[str]:
    """A column as text, of the rows that `where` picks; empty where a field is."""
    found = where(table, **equal)[name]
    return ["" if known else str(word) for word, known in zip(found, found.isna(), strict=True)]
