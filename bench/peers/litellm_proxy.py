"""LiteLLM's proxy before an OpenAI-like token source."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.virtualenv import python_of
from bench.processes import free_port, random_key, started
from bench.subject import Running, Source

_REQUIREMENTS: Final = ("litellm[proxy]==1.106.2",)
_MODEL: Final = "smollm2-135m-instruct"
_SOURCE_SECONDS: Final = 30
_READY_SECONDS: Final = 120
_SOURCE: Final = Path(__file__).with_name("openai_source.py")
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
        with tempfile.TemporaryDirectory() as folder:
            python = python_of("litellm", _REQUIREMENTS)
            key = random_key()
            port, source_port = free_port(), free_port()
            source_command = [sys.executable, str(_SOURCE), str(source_port)]
            source_command += [str(source.tokens), str(source.step_seconds)]
            source_command += [str(source.tokens_per_step)]
            configuration = Path(folder) / "litellm.json"
            configuration.write_text(_configuration(source_port), encoding="utf-8")
            command = [str(python.with_name("litellm")), "--config", str(configuration)]
            command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
            url = f"http://127.0.0.1:{port}"
            with started("litellm-source", source_command) as tokens:
                tokens.wait_until_listening(source_port, _SOURCE_SECONDS)
                # The proxy does not start without a key.
                with started("litellm", command, **OFFLINE, LITELLM_MASTER_KEY=key) as proxy:
                    seconds = proxy.wait_until_chatting(url, _MODEL, key, _READY_SECONDS)
                    groups: dict[str, tuple[int, ...]] = {
                        "edge": (proxy.pid,),
                        "source": (tokens.pid,),
                    }
                    yield Running(url, _MODEL, groups, key=key, start_seconds=seconds)


def _configuration(source_port: int) -> str:
    """Returns the proxy's configuration as JSON, which is also valid YAML."""
    parameters = {
        "model": f"openai/{_MODEL}",
        "api_base": f"http://127.0.0.1:{source_port}/v1",
        "api_key": "none",
    }
    return json.dumps({"model_list": [{"model_name": _MODEL, "litellm_params": parameters}]})
