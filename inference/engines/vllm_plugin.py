"""Puts into vLLM what it has no setting for: constraints of output, and the end of a front.

vLLM calls `install` in each of its processes, because pyproject.toml lists it among the entry
points "vllm.general_plugins".
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import vllm.envs

_NAME = "isthmus_structured_outputs"


def install() -> None:
    """Replaces vLLM's xgrammar backend and its check, and adds `abort_client` to engine cores."""
    from vllm.v1 import structured_output
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.structured_output import backend_xgrammar

    from inference.engines import vllm_grammars

    structured_output.XgrammarBackend = vllm_grammars.Grammars
    backend_xgrammar.validate_xgrammar_grammar = vllm_grammars.validate
    EngineCore.abort_client = abort_client


def abort_client(core: Any, client_index: int) -> int:
    """Aborts all requests of a client in its engine core, and returns their number."""
    requests = core.scheduler.requests.values()
    ids = [request.request_id for request in requests if request.client_index == client_index]
    core.abort_requests(ids)
    return len(ids)


def is_installed() -> bool:
    """Whether vLLM's processes will call `install`."""
    allowed = vllm.envs.VLLM_PLUGINS
    found = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    return _NAME in found and (allowed is None or _NAME in allowed)
