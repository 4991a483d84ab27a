"""Lenient forms of the API's types, for answers of servers of other versions."""

import types
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from domaeka.schema import OTHERWISE


@cache
def lenient(kind: Any) -> Any:
    """
    A type that reads what C{kind} does, and more: a word may be any text, a number may be out of
    bounds, unknown fields are left out, and a field that may be null or has C{OTHERWISE} may be
    missing.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return lenient(parts[0])
    if origin is Literal:
        return str
    if origin in (Union, types.UnionType):
        return Union[tuple(map(lenient, parts))]  # noqa: UP007  # not known before
    if origin is not None:
        return origin[tuple(map(lenient, parts))]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = [_lenient_field(field) for field in msgspec.structs.fields(kind)]
        return msgspec.defstruct(kind.__name__, fields, kw_only=True)
    return kind


def _lenient_field(field: msgspec.structs.FieldInfo) -> Any:
    """The name of a field, its type, and its value if it is missing."""
    found = lenient(field.type)
    extra = _extra(field.type)
    if OTHERWISE in extra:
        return field.name, found | None, extra[OTHERWISE]
    if not field.required:
        return field.name, found, field.default
    if type(None) in get_args(found):
        return field.name, found, None
    return field.name, found


def _extra(kind: Any) -> dict[str, Any]:
    """The C{Meta.extra} of a field's type."""
    metas = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return {name: value for meta in metas for name, value in (meta.extra or {}).items()}
