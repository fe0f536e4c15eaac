from isthmus.v1 import generate_pb2 as _generate_pb2
from isthmus.v1 import models_pb2 as _models_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRequest(_message.Message):
    __slots__ = ("hello", "opens", "cancels", "acknowledged_step")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEP_FIELD_NUMBER: _ClassVar[int]
    hello: EdgeHello
    opens: _containers.RepeatedCompositeFieldContainer[Open]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    acknowledged_step: int
    def __init__(self, hello: _Optional[_Union[EdgeHello, _Mapping]] = ..., opens: _Optional[_Iterable[_Union[Open, _Mapping]]] = ..., cancels: _Optional[_Iterable[int]] = ..., acknowledged_step: _Optional[int] = ...) -> None: ...

class EdgeHello(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("call_id", "request", "timeout_ms", "metadata", "principal")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    request: _generate_pb2.GenerateRequest
    timeout_ms: int
    metadata: _containers.ScalarMap[str, str]
    principal: str
    def __init__(self, call_id: _Optional[int] = ..., request: _Optional[_Union[_generate_pb2.GenerateRequest, _Mapping]] = ..., timeout_ms: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., principal: _Optional[str] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("hello", "step", "texts", "frames", "going_away", "loads")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    GOING_AWAY_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    hello: ServiceHello
    step: int
    texts: TextColumns
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    going_away: bool
    loads: _containers.RepeatedCompositeFieldContainer[ModelLoad]
    def __init__(self, hello: _Optional[_Union[ServiceHello, _Mapping]] = ..., step: _Optional[int] = ..., texts: _Optional[_Union[TextColumns, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., going_away: bool = ..., loads: _Optional[_Iterable[_Union[ModelLoad, _Mapping]]] = ...) -> None: ...

class ModelLoad(_message.Message):
    __slots__ = ("model", "load")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    model: str
    load: _models_pb2.Load
    def __init__(self, model: _Optional[str] = ..., load: _Optional[_Union[_models_pb2.Load, _Mapping]] = ...) -> None: ...

class ServiceHello(_message.Message):
    __slots__ = ("revision", "models", "step_credit", "pulse_ms")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    STEP_CREDIT_FIELD_NUMBER: _ClassVar[int]
    PULSE_MS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    models: _containers.RepeatedScalarFieldContainer[str]
    step_credit: int
    pulse_ms: int
    def __init__(self, revision: _Optional[int] = ..., models: _Optional[_Iterable[str]] = ..., step_credit: _Optional[int] = ..., pulse_ms: _Optional[int] = ...) -> None: ...

class TextColumns(_message.Message):
    __slots__ = ("call_ids", "lengths", "text")
    CALL_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    call_ids: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    text: bytes
    def __init__(self, call_ids: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., text: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("call_id", "response", "status")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    call_id: int
    response: _generate_pb2.GenerateResponse
    status: bytes
    def __init__(self, call_id: _Optional[int] = ..., response: _Optional[_Union[_generate_pb2.GenerateResponse, _Mapping]] = ..., status: _Optional[bytes] = ...) -> None: ...
