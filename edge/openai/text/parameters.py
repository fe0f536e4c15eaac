"""The parameters of contract/parameters.py in requests: their types, and filling the message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from contract.parameters import PARAMETERS, Parameter
from edge.openai.decoding.types import ABSENT, AnyJson
from isthmus.v1.generate_pb2 import GenerateRequest

StructT = TypeVar("StructT", bound=Struct)

_values_of: Final = attrgetter(*(parameter.name for parameter in PARAMETERS))
# The values of most requests: one comparison instead of one for each parameter.
_ALL_ABSENT: Final = (None,) * len(PARAMETERS)


def with_parameters(
    unsupported: Iterable[str],
) -> Callable[[type[StructT]], type[StructT]]:
    """Adds every parameter to a request schema; null means absent for all of them.

    Args:
        unsupported: Names that take any JSON, to be refused with an error of their own.
    """
    offered = [(parameter.name, _type(parameter) | None, None) for parameter in PARAMETERS]
    refused = [(name, AnyJson, ABSENT) for name in unsupported]

    def add(struct: type[StructT]) -> type[StructT]:
        full: Any = msgspec.defstruct(
            struct.__name__,
            [*offered, *refused],
            bases=(struct,),
            namespace={"__doc__": struct.__doc__},
            module=struct.__module__,
            kw_only=True,
            gc=False,
        )
        with_all: type[StructT] = full
        return with_all

    return add


def fill_parameters(request: Struct, message: GenerateRequest) -> None:
    """Sets the fields of the parameters that a request gives."""
    values = _values_of(request)
    if values == _ALL_ABSENT:
        return
    for parameter, value in zip(PARAMETERS, values, strict=True):
        if value is None:
            continue
        holder: Any = message
        for name in parameter.path[:-1]:
            holder = getattr(holder, name)
        if parameter.repeated:
            getattr(holder, parameter.field).extend(value)
        else:
            setattr(holder, parameter.field, value)


def _type(parameter: Parameter) -> Any:
    minimum = "gt" if parameter.above_minimum else "ge"
    limits = {minimum: parameter.minimum, "le": parameter.maximum}
    given: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    one: Any = parameter.kind
    if given:
        one = Annotated[one, Meta(**given)]
    if parameter.repeated:
        one = list[one]
    if parameter.max_length is not None or parameter.not_empty:
        shortest = 1 if parameter.not_empty else None
        one = Annotated[one, Meta(min_length=shortest, max_length=parameter.max_length)]
    return one
