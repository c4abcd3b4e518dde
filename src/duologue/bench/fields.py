"""Options declared as the fields of structs: type, bounds and meaning once, for the command line and documentation."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta


def means(meaning: str, *, ge: float | None = None, gt: float | None = None, le: float | None = None) -> Meta:
    """Return what a field's annotation says of it: `rate: Annotated[float, means("Messages a second.", gt=0)]`."""
    # mypy: ge and gt are never both given
    return Meta(description=meaning, ge=ge, gt=gt, le=le)  # type: ignore[call-overload,no-any-return]


class Field(msgspec.Struct, frozen=True):
    """A field of such a struct. `kind`: its type, without the None of one that may be left out; `least` and `most`: its
    bounds, if it has them."""

    name: str
    kind: Any
    default: Any
    least: float | None
    most: float | None
    meaning: str

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")


@cache
def fields(struct: type[msgspec.Struct]) -> list[Field]:
    """Return the fields of a struct, in the order of their declaration; each has its default and its meaning."""
    hints = get_type_hints(struct, include_extras=True)
    return [_field(each, hints[each.name]) for each in msgspec.structs.fields(struct)]


def _field(declared: msgspec.structs.FieldInfo, annotation: Any) -> Field:
    if get_origin(annotation) in {Union, UnionType}:
        (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
    meta = next(each for each in annotation.__metadata__ if isinstance(each, Meta))
    least = meta.ge if meta.ge is not None else meta.gt
    return Field(declared.name, annotation.__origin__, declared.default, least, meta.le, meta.description or "")
