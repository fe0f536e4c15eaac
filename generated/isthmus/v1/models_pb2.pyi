from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_KIND_UNSPECIFIED: _ClassVar[ModelKind]
    MODEL_KIND_TEXT: _ClassVar[ModelKind]
    MODEL_KIND_EMBEDDING: _ClassVar[ModelKind]
    MODEL_KIND_IMAGE: _ClassVar[ModelKind]
MODEL_KIND_UNSPECIFIED: ModelKind
MODEL_KIND_TEXT: ModelKind
MODEL_KIND_EMBEDDING: ModelKind
MODEL_KIND_IMAGE: ModelKind

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "knows_keys")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    KNOWS_KEYS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    knows_keys: bool
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., knows_keys: bool = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("id", "aliases", "kind", "created", "owned_by", "ready", "context_length", "text", "embedding", "image", "load")
    ID_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    OWNED_BY_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    id: str
    aliases: _containers.RepeatedCompositeFieldContainer[ModelAlias]
    kind: ModelKind
    created: int
    owned_by: str
    ready: bool
    context_length: int
    text: TextCapabilities
    embedding: EmbeddingCapabilities
    image: ImageCapabilities
    load: Load
    def __init__(self, id: _Optional[str] = ..., aliases: _Optional[_Iterable[_Union[ModelAlias, _Mapping]]] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., created: _Optional[int] = ..., owned_by: _Optional[str] = ..., ready: bool = ..., context_length: _Optional[int] = ..., text: _Optional[_Union[TextCapabilities, _Mapping]] = ..., embedding: _Optional[_Union[EmbeddingCapabilities, _Mapping]] = ..., image: _Optional[_Union[ImageCapabilities, _Mapping]] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "kv_cache")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    kv_cache: KvCache
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_cache: _Optional[_Union[KvCache, _Mapping]] = ...) -> None: ...

class KvCache(_message.Message):
    __slots__ = ("usage", "block_size", "blocks")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    usage: float
    block_size: int
    blocks: int
    def __init__(self, usage: _Optional[float] = ..., block_size: _Optional[int] = ..., blocks: _Optional[int] = ...) -> None: ...

class ModelAlias(_message.Message):
    __slots__ = ("name", "context_length")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    context_length: int
    def __init__(self, name: _Optional[str] = ..., context_length: _Optional[int] = ...) -> None: ...

class TextCapabilities(_message.Message):
    __slots__ = ("chat", "tools", "reasoning", "suffix", "vocabulary_size", "max_choices", "vision")
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_CHOICES_FIELD_NUMBER: _ClassVar[int]
    VISION_FIELD_NUMBER: _ClassVar[int]
    chat: bool
    tools: bool
    reasoning: bool
    suffix: bool
    vocabulary_size: int
    max_choices: int
    vision: bool
    def __init__(self, chat: bool = ..., tools: bool = ..., reasoning: bool = ..., suffix: bool = ..., vocabulary_size: _Optional[int] = ..., max_choices: _Optional[int] = ..., vision: bool = ...) -> None: ...

class EmbeddingCapabilities(_message.Message):
    __slots__ = ("dimensions", "shortenable", "max_inputs")
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    SHORTENABLE_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUTS_FIELD_NUMBER: _ClassVar[int]
    dimensions: int
    shortenable: bool
    max_inputs: int
    def __init__(self, dimensions: _Optional[int] = ..., shortenable: bool = ..., max_inputs: _Optional[int] = ...) -> None: ...

class ImageCapabilities(_message.Message):
    __slots__ = ("native_width", "native_height", "max_images", "default_steps")
    NATIVE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    NATIVE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STEPS_FIELD_NUMBER: _ClassVar[int]
    native_width: int
    native_height: int
    max_images: int
    default_steps: int
    def __init__(self, native_width: _Optional[int] = ..., native_height: _Optional[int] = ..., max_images: _Optional[int] = ..., default_steps: _Optional[int] = ...) -> None: ...
