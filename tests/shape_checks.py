"""The type checker behind jaxtyping's shape checks in tests: beartype, but cheap for closures."""

from collections import Counter
from typing import Any

from beartype import beartype

_definitions: Counter[tuple[str, str]] = Counter()


def typechecked(function: Any) -> Any:
    """Check arguments and results; of a function inside a function, for its first definition only.

    Such a function is defined again at every call of the outer one, and decorating it each time
    would cost more than half of the CPU time of this suite.
    """
    if "<locals>" in getattr(function, "__qualname__", ""):
        key = function.__module__, function.__qualname__
        _definitions[key] += 1
        if _definitions[key] > 2:  # jaxtyping asks twice: for the arguments and for the result
            return function
    return beartype(function)
