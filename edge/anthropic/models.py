"""Anthropic's form of GET /v1/models and GET /v1/models/{id}: the names that /v1/messages takes."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct

from edge.openai import errors
from edge.openai.models import ModelList, ModelObject


class ModelInfo(Struct, tag_field="type", tag="model", kw_only=True):
    """A name of a chat model.

    `created_at` is RFC 3339. `max_input_tokens` and `max_tokens` are the context in tokens under
    this name: each alone can take it all.
    """

    id: str
    display_name: str
    created_at: datetime
    lifecycle: str = "active"
    max_input_tokens: int | None
    max_tokens: int | None
    # An object in Anthropic's form, of features that are mostly no property of a model here.
    capabilities: None = None


class ModelPage(Struct, kw_only=True):
    """All names; there is no other page."""

    data: list[ModelInfo]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


def model_page(models: ModelList) -> ModelPage:
    """The names that have a chat."""
    data = [model_info(each) for each in models.data if _has_chat(each)]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return ModelPage(data=data, first_id=ends[0], last_id=ends[1])


def model_info(model: ModelObject) -> ModelInfo:
    """One name.

    Raises:
        OpenAIError: 404, its model has no chat.
    """
    if not _has_chat(model):
        raise errors.unknown_model_path(model.id)
    context = model.max_model_len or None
    return ModelInfo(
        id=model.id,
        display_name=model.id,
        created_at=datetime.fromtimestamp(model.created, UTC),
        max_input_tokens=context,
        max_tokens=context,
    )


def _has_chat(model: ModelObject) -> bool:
    return "chat" in model.capabilities
