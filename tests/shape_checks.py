"""Makes the shape checks of tests cheap for closures: `import shape_checks` before the packages.

jaxtyping decorates every function, also those inside other functions. These are defined again at
each call of the outer function, and decorating them each time took half of the suite's CPU time.
Here only the first definition of each is decorated, and so checked. A function whose annotations
name no shape needs the check of types alone, which costs a tenth of a check of shapes.
"""

import re
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping

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


def _has_shapes(function: Any) -> bool:
    if not isinstance(function, FunctionType) or "<locals>" in function.__qualname__:
        return True  # a dataclass's fields may have shapes
    # Names in quotes may be unknown at run time, which jaxtyping allows and beartype does not.
    return any(
        re.search(r"jaxtyping|['\"]", repr(one)) for one in function.__annotations__.values()
    )


def _jaxtyped(*args: Any, **settings: Any) -> Any:
    decorator: Callable[[Any], Any] = _decorate(*args, **settings)
    if args:
        return decorator

    def decorate(function: Any) -> Any:
        if not _first_definition(function):
            return function
        return (decorator if _has_shapes(function) else settings["typechecker"])(function)

    return decorate


jaxtyping.jaxtyped = _jaxtyped
