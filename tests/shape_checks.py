"""Makes the shape checks of tests cheap for closures: `import shape_checks` before the packages.

jaxtyping decorates every function, also those inside other functions. These are defined again at
each call of the outer function, and decorating them each time took half of the suite's CPU time.
Here only the first definition of each is decorated, and so checked.
"""

from collections.abc import Callable
from types import CodeType
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


def _jaxtyped(*args: Any, **settings: Any) -> Any:
    decorator: Callable[[Any], Any] = _decorate(*args, **settings)
    if args:
        return decorator
    return lambda function: decorator(function) if _first_definition(function) else function


jaxtyping.jaxtyped = _jaxtyped
