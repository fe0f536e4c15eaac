"""SMG (Shepherd Model Gateway, Rust) before a worker with its gRPC protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.peers.virtualenv import python_of
from bench.processes import free_port, random_key, started
from bench.subject import Running, Source
from launch.embedded import default_cache_directory, prepare_text_model

# These versions of protobuf and grpcio work together. The worker itself needs only grpclib and
# the messages.
REQUIREMENTS: Final = (
    "smg==1.13.0",
    "smg-grpc-proto==0.4.28",
    "grpclib==0.4.9",
    "uvloop==0.23.0",
    "protobuf==7.36.2",
    "grpcio==1.85.1",
)
_MODEL: Final = "smollm2-135m-instruct"
_READY_SECONDS: Final = 60
_WORKER: Final = Path(__file__).with_name("smg_worker.py")


class Smg:
    """SMG in gRPC mode: the gateway renders chats, tokenizes and detokenizes.

    It has its default settings but for an API key, loopback addresses, short waits at start and
    stop, and the log level: SMG would write two lines for each request, and the access log of
    Isthmus is off, too.
    """

    name = "SMG"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:
        """Starts the worker and the gateway, and waits for a first response."""
        python = python_of("smg", REQUIREMENTS)
        directory = prepare_text_model(default_cache_directory(), print)
        key = random_key()
        port, worker_port, metrics_port = free_port(), free_port(), free_port()
        worker_command = [str(python), str(_WORKER), str(directory / "tokenizer.json")]
        worker_command += [str(worker_port), str(source.tokens), str(source.step_seconds)]
        worker_command += [str(source.tokens_per_step)]
        command = [str(python.with_name("smg")), "launch", "--backend", "vllm"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--model-path", str(directory)]
        command += ["--worker-urls", f"grpc://127.0.0.1:{worker_port}"]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)]
        command += ["--log-level", "warn", "--worker-startup-check-interval", "1"]
        command += ["--shutdown-grace-period-secs", "1", "--api-key", key]
        url = f"http://127.0.0.1:{port}"
        with started("smg-worker", worker_command) as worker:
            worker.wait_until_listening(worker_port, _READY_SECONDS)
            with started("smg", command) as gateway:
                # Before the worker is registered, the gateway logs a warning for every request.
                gateway.wait_until_ok(f"{url}/v1/models", _READY_SECONDS, key, contains=_MODEL)
                seconds = gateway.wait_until_chatting(url, _MODEL, key, _READY_SECONDS)
                groups: dict[str, tuple[int, ...]] = {
                    "edge": (gateway.pid,),
                    "worker": (worker.pid,),
                }
                yield Running(url, _MODEL, groups, key=key, start_seconds=seconds)
