"""Which engine arguments and which model directories the vLLM engine accepts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from inference.config import ModelConfig
from keys import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from inference.engines import vllm_arguments
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


X86 = "processor\t: 0\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\nflags\t\t: fpu avx2 {}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("cpu_info", "dtype"),
    [
        (X86.format("", ""), "float32"),
        (X86.format("avx512f", "avx512f"), "float32"),
        (X86.format("avx512_bf16", "avx512_bf16"), "auto"),
        (X86.format("amx_bf16", "amx_bf16"), "auto"),
        (ARM.format(""), "float32"),
        (ARM.format("bf16"), "auto"),
        ("", "float32"),
    ],
)
def test_cpu_without_bfloat16_instructions_uses_float32(cpu_info: str, dtype: str) -> None:
    assert vllm_arguments.cpu_dtype(cpu_info) == dtype


def test_configured_data_type_is_kept(directory: Path) -> None:
    given = {"dtype": "bfloat16"}
    assert vllm_arguments.engine_arguments(config(directory, engine_args=given)).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("given", "step_tokens", "long_prompt_tokens"),
    [
        ({"max_model_len": 8192, "max_num_seqs": 32}, 256, 64),
        ({"max_model_len": 8192, "max_num_seqs": 400}, 400, 64),
        ({"max_model_len": 8192, "max_num_batched_tokens": 1024}, 1024, 64),
        ({"max_model_len": 8192, "long_prefill_token_threshold": 500}, 256, 500),
        ({"max_model_len": 32}, 256, 0),
        ({"max_model_len": 8192, "enable_chunked_prefill": False}, None, 0),
    ],
)
def test_steps_on_a_cpu_are_short_enough_for_other_requests(
    directory: Path, given: dict[str, Any], step_tokens: int | None, long_prompt_tokens: int
) -> None:
    arguments = vllm_arguments.engine_arguments(config(directory, engine_args=given))
    assert arguments.max_num_batched_tokens == step_tokens
    assert arguments.long_prefill_token_threshold == long_prompt_tokens
