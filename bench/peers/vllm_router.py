"""vLLM's router (Rust), which passes HTTP on, before an OpenAI-like token source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.peers.openai_source import MODEL
from bench.peers.openai_upstream import token_source
from bench.peers.virtualenv import python_of
from bench.processes import free_port, started
from bench.subject import Running, Source

_REQUIREMENTS: Final = ("vllm-router==0.1.17",)
_READY_SECONDS: Final = 60
# Requests at once: more than any scenario has.
_REQUESTS: Final = 4096


class VllmRouter:
    """The router with its default settings but for loopback addresses and the bound of requests.

    It passes requests and responses on: it renders no chats, counts no tokens and cannot check the
    keys of its callers.
    """

    name = "vllm-router"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts the source and the router, and waits for a first response."""
        python = python_of("vllm-router", _REQUIREMENTS)
        port, metrics_port = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        with token_source(source) as tokens:
            command = [str(python.with_name("vllm-router")), "--host", "127.0.0.1"]
            command += ["--port", str(port), "--worker-urls", tokens.url]
            command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
            command += ["--max-concurrent-requests", str(_REQUESTS)]
            with started("vllm-router", command) as router:
                seconds = router.wait_until_chatting(url, MODEL, "", _READY_SECONDS)
                groups: dict[str, tuple[int, ...]] = {
                    "edge": (router.pid,),
                    "source": (tokens.pid,),
                }
                yield Running(url, MODEL, groups, start_seconds=seconds)
