"""Makes the shape checks of tests cheap: `import shape_checks` before the packages.

jaxtyping decorates every function of the packages. It compiles two checks for each, and at each
call it binds the arguments and starts a scope of shapes, which took a fifth of the suite's CPU
time. Here

- only functions with shapes in their annotations are decorated: pyright checks all other types;
- a check is compiled when its function is first called, since no process calls all of them;
- the first calls of a function in a test are checked: loops repeat what these show;
- closures are checked at their first definition alone. They are defined again at each call of the
  outer function, and decorating them each time would take as long as everything else.
"""

import dataclasses
import functools
import inspect
import typing
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping

CALLS = 5  # of a function that are checked in a test
SHAPED = ("Float", "Int", "Bool", "Shaped")
_decorate = jaxtyping.jaxtyped
_defined: set[CodeType] = set()
_calls: Counter[Any] = Counter()


def start_test() -> None:
    """Check the calls of all functions again."""
    _calls.clear()


def _first_definition(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    if code is None or "<locals>" not in function.__qualname__:
        return True
    if code in _defined:
        return False
    _defined.add(code)
    return True


def _has_shapes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_has_shapes, hint))
    if isinstance(hint, str):
        return any(f"{name}[" in hint for name in SHAPED)
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shapes, typing.get_args(hint)))


def _checked_when_called(function: Any, **settings: Any) -> Any:
    checked = None

    @functools.wraps(function)
    def first(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if _calls[function] == CALLS:
            return function(*args, **kwargs)
        _calls[function] += 1
        if checked is None:
            checked = _decorate(function, **settings)
        return checked(*args, **kwargs)

    return first


def _decorated(function: Any, **settings: Any) -> Any:
    hints = getattr(function, "__annotations__", {}).values()
    if not any(map(_has_shapes, hints)) or not _first_definition(function):
        return function
    if inspect.isclass(function):
        return _decorate(function, **settings) if dataclasses.is_dataclass(function) else function
    return _checked_when_called(function, **settings)


def _jaxtyped(*args: Any, **settings: Any) -> Any:
    decorator: Callable[[Any], Any] = functools.partial(_decorated, **settings)
    return decorator(*args) if args else decorator


jaxtyping.jaxtyped = _jaxtyped
