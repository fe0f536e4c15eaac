"""GET /v1/models and GET /v1/models/{id}: each id and each alias is one object."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, Struct, UnsetType

from edge.openai import errors
from isthmus.v1.models_pb2 import Model, ModelKind


class ModelObject(Struct, kw_only=True):
    """A name under which a model is served.

    `id` is the name and `root` the model's own id. `max_model_len` is the context in tokens under
    this name. `native_size` is the WIDTHxHEIGHT in pixels that an image model was trained for.
    `capabilities` has `chat`, `completion`, `tools`, `reasoning`, `vision`, `embedding` or `image`.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str
    root: str
    max_model_len: int | UnsetType = UNSET
    native_size: str | UnsetType = UNSET
    capabilities: list[str]


class ModelList(Struct, kw_only=True):
    """All names under which models are served."""

    object: str = "list"
    data: list[ModelObject]


def models_list(models: Iterable[Model]) -> ModelList:
    """All ids and aliases; if several models have a name, the first is listed."""
    names: dict[str, ModelObject] = {}
    for model in models:
        for name in (model.id, *(alias.name for alias in model.aliases)):
            if name not in names:
                names[name] = model_object(model, name)
    return ModelList(data=list(names.values()))


def model_object(model: Model, name: str) -> ModelObject:
    """One id or alias of a model.

    Raises:
        OpenAIError: 404, the model has no such name.
    """
    if name != model.id and all(alias.name != name for alias in model.aliases):
        raise errors.unknown_model_path(name)
    described = ModelObject(
        id=name,
        created=model.created,
        owned_by=model.owned_by,
        root=model.id,
        capabilities=_capabilities(model),
    )
    aliased = (alias.context_length for alias in model.aliases if alias.name == name)
    if contexts := [tokens for tokens in (model.context_length, *aliased) if tokens]:
        described.max_model_len = min(contexts)
    if model.HasField("image") and model.image.native_width:
        described.native_size = f"{model.image.native_width}x{model.image.native_height}"
    return described


def _capabilities(model: Model) -> list[str]:
    match model.kind:
        case ModelKind.MODEL_KIND_TEXT:
            text = model.text
            offered = {
                "chat": text.chat,
                "completion": True,
                "tools": text.tools,
                "reasoning": text.reasoning,
                "vision": text.vision,
            }
            return [name for name, has in offered.items() if has]
        case ModelKind.MODEL_KIND_EMBEDDING:
            return ["embedding"]
        case ModelKind.MODEL_KIND_IMAGE:
            return ["image"]
    return []
