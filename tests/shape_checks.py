"""Makes the shape checks of tests cheap: `import shape_checks` before the packages.

jaxtyping decorates every function of the packages. It compiles two checks for each, and at each
call it binds the arguments and starts a scope of shapes, which took a fifth of the suite's CPU
time. Here

- a check is compiled when its function is first called, since no process calls all of them;
- a function without shapes in its annotations has no need of a scope: beartype alone checks it;
- closures are checked at their first definition alone. They are defined again at each call of the
  outer function, and decorating them each time would take as long as everything else.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from types import CodeType, SimpleNamespace
from typing import Any

import jaxtyping
from beartype import beartype

_decorate = jaxtyping.jaxtyped
_defined: set[CodeType] = set()


def _first_definition(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    if code is None or "<locals>" not in function.__qualname__:
        return True
    if code in _defined:
        return False
    _defined.add(code)
    return True


def _resolved(hint: Any, function: Any) -> Any:
    """An annotation without strings; what is imported for type checkers alone is not checked."""
    holder = SimpleNamespace(__annotations__={"hint": hint})
    try:
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def _has_shapes(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_has_shapes, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shapes, typing.get_args(hint)))


def _checked(function: Any, **settings: Any) -> Any:
    hints = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    if inspect.isgeneratorfunction(function) or any(map(_has_shapes, hints.values())):
        return _decorate(function, **settings)
    function.__annotations__ = hints
    return beartype(function)


def _checked_when_called(function: Any, **settings: Any) -> Any:
    checked = None

    @functools.wraps(function)
    def first(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:  # beartype alone does not look at it
            return function(*args, **kwargs)
        if checked is None:
            checked = _checked(function, **settings)
        return checked(*args, **kwargs)

    return first


def _decorated(function: Any, **settings: Any) -> Any:
    if not _first_definition(function):
        return function
    if inspect.isclass(function):
        made = vars(function).get("__init__")
        if dataclasses.is_dataclass(function) and not hasattr(made, "__wrapped__"):
            function.__init__ = _checked_when_called(function.__init__, **settings)
        return function
    if not inspect.isfunction(function):
        return _decorate(function, **settings)
    return _checked_when_called(function, **settings) if function.__annotations__ else function


def _jaxtyped(*args: Any, **settings: Any) -> Any:
    if args:
        return _decorated(*args, **settings)
    decorator: Callable[[Any], Any] = functools.partial(_decorated, **settings)
    return decorator


jaxtyping.jaxtyped = _jaxtyped
