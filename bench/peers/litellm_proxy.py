"""LiteLLM's proxy before an OpenAI-like token source."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.openai_source import MODEL
from bench.peers.openai_upstream import token_source
from bench.peers.virtualenv import python_of
from bench.processes import free_port, random_key, started
from bench.subject import Running, Source

_REQUIREMENTS: Final = ("litellm[proxy]==1.106.2",)
_READY_SECONDS: Final = 120
# With these, the proxy uses the files of its package, downloads none and sends no telemetry.
OFFLINE: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_TELEMETRY": "False",
}


class LiteLlm:
    """LiteLLM with its default settings: one worker, no database; the key is the master key."""

    name = "LiteLLM"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts the source and the proxy, and waits for a first response."""
        with tempfile.TemporaryDirectory() as folder, token_source(source) as tokens:
            python = python_of("litellm", _REQUIREMENTS)
            key = random_key()
            port = free_port()
            configuration = Path(folder) / "litellm.json"
            configuration.write_text(_configuration(tokens.url), encoding="utf-8")
            command = [str(python.with_name("litellm")), "--config", str(configuration)]
            command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
            url = f"http://127.0.0.1:{port}"
            # The proxy does not start without a key.
            with started("litellm", command, **OFFLINE, LITELLM_MASTER_KEY=key) as proxy:
                seconds = proxy.wait_until_chatting(url, MODEL, key, _READY_SECONDS)
                groups: dict[str, tuple[int, ...]] = {
                    "edge": (proxy.pid,),
                    "source": (tokens.pid,),
                }
                yield Running(url, MODEL, groups, key=key, start_seconds=seconds)


def _configuration(url: str) -> str:
    """Returns the proxy's configuration as JSON, which is also valid YAML."""
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    return json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]})
