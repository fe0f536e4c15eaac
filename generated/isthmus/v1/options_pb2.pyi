from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor
PARAMETER_FIELD_NUMBER: _ClassVar[int]
parameter: _descriptor.FieldDescriptor

class Parameter(_message.Message):
    __slots__ = ("name", "minimum", "maximum", "above_minimum", "max_length", "token_ids", "description", "default_value", "not_empty")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    ABOVE_MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    NOT_EMPTY_FIELD_NUMBER: _ClassVar[int]
    name: str
    minimum: float
    maximum: float
    above_minimum: bool
    max_length: int
    token_ids: bool
    description: str
    default_value: str
    not_empty: bool
    def __init__(self, name: _Optional[str] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., above_minimum: bool = ..., max_length: _Optional[int] = ..., token_ids: bool = ..., description: _Optional[str] = ..., default_value: _Optional[str] = ..., not_empty: bool = ...) -> None: ...
