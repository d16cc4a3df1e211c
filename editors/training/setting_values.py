"""Whether a value is one that a setting can have, by the type that its dataclass gives it."""

import types
from typing import Any, Literal, get_args, get_origin, get_type_hints

from attrib.errors import AttribError


def check_value(settings: type, name: str, value: Any) -> None:
    """Refuse a value that is not of a setting's type; whole numbers pass for others.

    Args:
        settings: The dataclass that has the setting.
        name: Of the setting.
        value: The value.

    Raises:
        AttribError: It is not; says what would be.
    """
    hint = get_type_hints(settings)[name]
    kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if _is(value, kind):
            return
    said = " or ".join(_said(kind) for kind in kinds)
    raise AttribError(f"{name}: no {value!r}; expected {said}")


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return isinstance(value, get_origin(kind) or kind) or (kind is float and isinstance(value, int))


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return "none" if kind is type(None) else kind.__name__
