"""In what two records of settings differ, in words."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LONGEST_VALUE = 40


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], is_free: Callable[[str], bool] | None = None
) -> list[str]:
    """One line for each entry in which two records (JSON) differ, such as "limit: 8 there, 9 now".

    Args:
        old: what is there.
        new: what is asked for.
        is_free: whether an entry, by its names with dots between, may differ.
    """
    before, now = (dict(_flat(json.loads(json.dumps(dict(m))))) for m in (old, new))
    lines = {}  # An option and what it led to have one line, not two.
    for key in [*now, *(key for key in before if key not in now)]:
        there, here = before.get(key), now.get(key)
        if there != here and not (is_free is not None and is_free(key)):
            name = key.rpartition(".")[2]
            lines[f"{name}: {_short(there)} there, {_short(here)} now"] = None
    return list(lines)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
