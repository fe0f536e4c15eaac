from isthmus.v1 import chat_pb2 as _chat_pb2
from isthmus.v1 import generate_pb2 as _generate_pb2
from isthmus.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenizeRequest(_message.Message):
    __slots__ = ("request_id", "model", "chat", "text", "token_ids", "add_special_tokens", "token_names", "count_only")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_NAMES_FIELD_NUMBER: _ClassVar[int]
    COUNT_ONLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    chat: _chat_pb2.ChatInput
    text: str
    token_ids: _generate_pb2.TokenIds
    add_special_tokens: bool
    token_names: bool
    count_only: bool
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., chat: _Optional[_Union[_chat_pb2.ChatInput, _Mapping]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[_generate_pb2.TokenIds, _Mapping]] = ..., add_special_tokens: bool = ..., token_names: bool = ..., count_only: bool = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("model", "count", "context_length", "token_ids", "token_names", "text", "rate_limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_NAMES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    count: int
    context_length: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    token_names: _containers.RepeatedScalarFieldContainer[str]
    text: str
    rate_limits: _usage_pb2.RateLimits
    def __init__(self, model: _Optional[str] = ..., count: _Optional[int] = ..., context_length: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., token_names: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ..., rate_limits: _Optional[_Union[_usage_pb2.RateLimits, _Mapping]] = ...) -> None: ...
