"""The parameters of the REST API that are fields of GenerateRequest, read from the contract.

A field of the proto files with the option `parameter` (options.proto) is a REST parameter with that
name and range. The table made here is used by:

  edge/openai/text/schema.py         types of the request schema
  edge/openai/text/request.py        filling the message
  edge/openapi/parameters.py         descriptions in /openapi.json and on /docs
  inference/limits.py                the same ranges for gRPC callers
  inference/engines/vllm_sampling.py vLLM's sampling parameters

So a new parameter that has the same name in vLLM needs only the field with its option, new stubs,
and one row of test data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from isthmus.v1 import options_pb2
from isthmus.v1.generate_pb2 import GenerateRequest

_INTEGERS: Final = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}
_KINDS: Final[dict[int, type]] = {
    **dict.fromkeys(_INTEGERS, int),
    FieldDescriptor.TYPE_DOUBLE: float,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_STRING: str,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter.

    Attributes:
        name: Its name in the JSON body.
        path: Field names from GenerateRequest to the field: ("sampling", "top_k").
        kind: float, int, bool or str; of a list, that of its entries.
        repeated: Whether it is a list.
        minimum, maximum: The range of numbers; None for none.
        above_minimum: Whether the minimum itself is excluded.
        max_length: Maximum number of entries or characters; None for no limit.
        not_empty: Whether an empty string or list is refused.
        token_ids: Whether entries are token ids of the model's vocabulary.
        description: One or two sentences for the API documentation, with the default.
        descriptor: The field, as in Message.ListFields.
    """

    name: str
    path: tuple[str, ...]
    kind: type
    repeated: bool
    minimum: float | None
    maximum: float | None
    above_minimum: bool
    max_length: int | None
    not_empty: bool
    token_ids: bool
    description: str
    descriptor: FieldDescriptor

    @property
    def field(self) -> str:
        """The field's own name."""
        return self.path[-1]

    def holder(self, message: Any) -> Any:
        """The message that holds the field, of a GenerateRequest."""
        for name in self.path[:-1]:
            message = getattr(message, name)
        return message

    def set(self, message: Message, value: Any) -> None:
        """Sets the field of a GenerateRequest; entries of a list are added."""
        holder = self.holder(message)
        if self.repeated:
            getattr(holder, self.field).extend(value)
        else:
            setattr(holder, self.field, value)

    def is_set(self, message: Message) -> bool:
        """Whether the message that holds the field has a value for it."""
        return bool(getattr(message, self.field)) if self.repeated else message.HasField(self.field)


def _read(descriptor: Any, above: tuple[str, ...] = ()) -> Iterator[Parameter]:
    for field in descriptor.fields:
        path = (*above, field.name)
        options = field.GetOptions()
        if options.HasExtension(options_pb2.parameter):
            yield _parameter(field, path, options.Extensions[options_pb2.parameter])
        elif field.message_type is not None and not above:
            yield from _read(field.message_type, path)


def _parameter(field: Any, path: tuple[str, ...], option: Any) -> Parameter:
    lowest, highest = _INTEGERS.get(field.type, (None, None))
    description = option.description
    if option.HasField("default_value"):
        description += f" Default: {option.default_value}."
    return Parameter(
        name=option.name or field.name,
        path=path,
        kind=_KINDS[field.type],
        repeated=field.is_repeated,
        minimum=_number(option.minimum) if option.HasField("minimum") else lowest,
        maximum=_number(option.maximum) if option.HasField("maximum") else highest,
        above_minimum=option.above_minimum,
        max_length=option.max_length if option.HasField("max_length") else None,
        not_empty=option.not_empty,
        token_ids=option.token_ids,
        description=description,
        descriptor=field,
    )


def _number(value: float) -> float:
    """Whole numbers as int: error messages show them without a fraction."""
    return int(value) if value.is_integer() else value


PARAMETERS: Final = tuple(_read(GenerateRequest.DESCRIPTOR))
