"""Puts Isthmus's constraints of output into vLLM, which has no setting for them.

vLLM calls `install` in each of its processes, because pyproject.toml lists it among the entry
points "vllm.general_plugins".
"""

from __future__ import annotations

from importlib.metadata import entry_points

import vllm.envs

_NAME = "isthmus_structured_outputs"


def install() -> None:
    """Replaces vLLM's xgrammar backend, and its check of what xgrammar supports."""
    from vllm.v1 import structured_output
    from vllm.v1.structured_output import backend_xgrammar

    from inference.engines import vllm_grammars

    structured_output.XgrammarBackend = vllm_grammars.Grammars
    backend_xgrammar.validate_xgrammar_grammar = vllm_grammars.validate


def is_installed() -> bool:
    """Whether vLLM's processes will call `install`."""
    allowed = vllm.envs.VLLM_PLUGINS
    found = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    return _NAME in found and (allowed is None or _NAME in allowed)
