"""Servers of the same embedding model: sentence-transformers in a simple server, and Infinity."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from bench.peers.virtualenv import python_of
from bench.processes import free_port, random_key, started
from bench.subject import Running, Source

_READY_SECONDS: Final = 180
_MODEL: Final = "model"
_INFINITY: Final = "infinity-emb[server,torch]==0.0.78"


@dataclass(frozen=True)
class EncodeServer:
    """bench/peers/encode_server.py, from the project's environment.

    Attributes:
        directory: The model's files.
        threads: Threads of torch.
    """

    directory: Path
    threads: int
    name = "encode server"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts the server and waits for a first vector."""
        port, key = free_port(), random_key()
        command = [sys.executable, "-m", "bench.peers.encode_server", str(self.directory)]
        yield from _serving("encode-server", [*command, str(port), key], port, key, self.threads)


@dataclass(frozen=True)
class Infinity:
    """Infinity, which batches the requests of all callers, with torch as its engine.

    Its default BetterTransformer is off: it needs an older torch. The attributes are those of
    EncodeServer.
    """

    directory: Path
    threads: int
    name = "Infinity"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts the server and waits for a first vector."""
        python = python_of("infinity", (_INFINITY, f"torch=={metadata.version('torch')}"))
        port, key = free_port(), random_key()
        command = [str(python.with_name("infinity_emb")), "v2", "--model-id", str(self.directory)]
        command += ["--served-model-name", _MODEL, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--device", "cpu", "--dtype", "float32", "--engine", "torch"]
        command += ["--no-bettertransformer", "--url-prefix", "/v1", "--api-key", key]
        command += ["--log-level", "warning"]
        yield from _serving("infinity", command, port, key, self.threads)


def _serving(name: str, command: list[str], port: int, key: str, threads: int) -> Iterator[Running]:
    url = f"http://127.0.0.1:{port}"
    # Waiting threads sleep, as those of Isthmus do: the client needs the cores as well.
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with started(name, command, **variables) as server:
        seconds = server.wait_until_embedding(url, _MODEL, key, _READY_SECONDS)
        groups: dict[str, tuple[int, ...]] = {"edge": (server.pid,)}
        yield Running(url, _MODEL, groups, key=key, embedding_model=_MODEL, start_seconds=seconds)
