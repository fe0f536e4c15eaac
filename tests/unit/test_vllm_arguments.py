"""Which engine arguments and which model directories the vLLM engine accepts."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from inference.config import ModelConfig
from keys import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from inference.engines import vllm_arguments, vllm_plugin
    from inference.engines.vllm_engine import VllmEngine


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    return tmp_path


def config(directory: Path, **parts: Any) -> ModelConfig:
    return ModelConfig(id="m", engine="vllm", source=str(directory), **parts)


def test_default_arguments_are_safe(directory: Path) -> None:
    arguments = vllm_arguments.engine_arguments(config(directory, engine_args={"seed": 3}))
    assert arguments.model == str(directory)
    assert arguments.seed == 3
    assert arguments.load_format == "safetensors"
    assert arguments.trust_remote_code is False
    assert arguments.enable_log_requests is False


def test_reasoning_parser_reaches_the_grammars(directory: Path) -> None:
    arguments = vllm_arguments.engine_arguments(config(directory, reasoning_parser="deepseek_r1"))
    # vLLM does this when it builds its configuration.
    assert arguments.create_structured_outputs_config().reasoning_parser == "deepseek_r1"


async def test_engine_without_the_plugins_does_not_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.engines.vllm_plugin.entry_points", lambda group: [])
    engine = VllmEngine(config(directory))
    with pytest.raises(ConfigError, match="install Isthmus again"):
        await engine.start(lambda _: None)
    await engine.close()


@pytest.mark.parametrize("member", ["backend", "disable_any_whitespace"])
def test_the_makers_of_grammars_cannot_be_chosen(directory: Path, member: str) -> None:
    with pytest.raises(ConfigError, match="structured_outputs_config"):
        given = {"structured_outputs_config": {member: "x"}}
        vllm_arguments.engine_arguments(config(directory, engine_args=given))


async def test_engine_starts_with_the_defaults_of_vllms_api_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another usage context vLLM sets smaller batches on a GPU."""
    start = Mock(side_effect=ConfigError)
    monkeypatch.setattr(AsyncLLM, "from_engine_args", start)
    engine = VllmEngine(config(directory))
    with pytest.raises(ConfigError):
        await engine.start(lambda _: None)
    await engine.close()
    assert start.call_args.kwargs["usage_context"] is UsageContext.OPENAI_API_SERVER


@pytest.mark.parametrize(
    "arguments",
    [
        {"trust_remote_code": True},
        {"enable_log_requests": True},
        {"allowed_media_domains": ["example.org"]},
        {"load_format": "pt"},
        {"load_format": "auto"},
        {"model": "other"},
        {"no_such_argument": 1},
    ],
    ids=str,
)
def test_dangerous_and_unknown_arguments_are_refused(
    directory: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        vllm_arguments.engine_arguments(config(directory, engine_args=arguments))


def test_model_directory_is_checked_for_code(directory: Path) -> None:
    (directory / "modeling.py").write_text("")
    with pytest.raises(ConfigError, match=r"modeling\.py"):
        vllm_arguments.engine_arguments(config(directory))


@pytest.mark.parametrize("argument", ["tokenizer", "hf_config_path"])
def test_directory_in_another_argument_is_checked_for_code(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, argument: str
) -> None:
    other = tmp_path_factory.mktemp("other")
    model = config(directory, engine_args={argument: str(other)})
    vllm_arguments.engine_arguments(model)
    (other / "tokenization.py").write_text("")
    with pytest.raises(ConfigError, match=r"tokenization\.py"):
        vllm_arguments.engine_arguments(model)


def test_hub_id_is_not_taken_for_a_directory() -> None:
    model = ModelConfig(id="m", engine="vllm", source="somebody/model")
    assert vllm_arguments.engine_arguments(model).load_format == "safetensors"


def test_fingerprint_depends_on_weights_and_arguments(directory: Path) -> None:
    first = vllm_arguments.system_fingerprint(config(directory))
    assert first == vllm_arguments.system_fingerprint(config(directory))
    other = config(directory, engine_args={"dtype": "float32"})
    assert vllm_arguments.system_fingerprint(other) != first
    (directory / "model.safetensors").write_bytes(b"123456789")
    assert vllm_arguments.system_fingerprint(config(directory)) != first


def test_created_is_the_modification_time_of_the_model_files(directory: Path) -> None:
    made = int((directory / "config.json").stat().st_mtime)
    assert vllm_arguments.model_created(config(directory)) == made


def test_configured_data_type_is_kept(directory: Path) -> None:
    given = {"dtype": "bfloat16"}
    assert vllm_arguments.engine_arguments(config(directory, engine_args=given)).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("given", "step_tokens"),
    [
        ({"max_num_seqs": 32}, 2048),
        ({"max_num_seqs": 4000}, 4000),
        ({"max_num_batched_tokens": 1024}, 1024),
        ({"enable_chunked_prefill": False}, None),
    ],
)
def test_buffers_on_a_cpu_have_room_for_long_steps(
    directory: Path, given: dict[str, Any], step_tokens: int | None
) -> None:
    arguments = vllm_arguments.engine_arguments(config(directory, engine_args=given))
    assert arguments.max_num_batched_tokens == step_tokens


@pytest.mark.parametrize(
    ("given", "variable", "one"),
    [
        ({}, "", True),
        ({"tensor_parallel_size": 2}, "", False),
        ({"distributed_executor_backend": "mp"}, "", False),
        ({}, "VLLM_CPU_OMP_THREADS_BIND", False),
    ],
)
def test_one_worker_on_a_cpu_needs_no_process(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    variable: str,
    one: bool,
) -> None:
    if variable:
        monkeypatch.setenv(variable, "0")
    backend = vllm_arguments.engine_arguments(
        config(directory, engine_args=given)
    ).distributed_executor_backend
    chosen = None if one else given.get("distributed_executor_backend")
    assert backend == (vllm_arguments.ONE_PROCESS if one else chosen)


def test_threads_are_set_for_the_processes_that_vllm_starts(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    model = config(directory, engine_args={"dtype": "bfloat16"})
    made = vllm_arguments.use_cpu(model, vllm_arguments.engine_arguments(model))
    threads = os.environ["OMP_NUM_THREADS"]
    assert made.startswith(f"bfloat16 (configured), {threads} thread")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    made = vllm_arguments.use_cpu(model, vllm_arguments.engine_arguments(model))
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert made.endswith("7 threads")


@pytest.mark.parametrize("configured", [0, 64])
def test_steps_of_a_started_engine_core_are_limited(configured: int) -> None:
    sizes = SimpleNamespace(max_num_batched_tokens=2048, long_prefill_token_threshold=configured)
    scheduler = SimpleNamespace(
        scheduler_config=sizes,
        max_num_scheduled_tokens=2048,
        adaptive_long_prefill_threshold=False,
    )
    for _ in range(2):  # The second time by a front that has started again.
        vllm_plugin.limit_steps(SimpleNamespace(scheduler=scheduler), 512, configured or 128)
    assert scheduler.max_num_scheduled_tokens == 512
    # A threshold of the configuration is the most that a prompt gets beside others.
    assert scheduler.adaptive_long_prefill_threshold == (not configured)
    assert scheduler.scheduler_config.max_num_batched_tokens == 512
    assert scheduler.scheduler_config.long_prefill_token_threshold == (configured or 128)
    assert sizes.max_num_batched_tokens == 2048  # What the worker's buffers have room for.
