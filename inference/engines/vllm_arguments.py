"""vLLM's engine arguments from a model's configuration, and the arguments that are not allowed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import vllm
from huggingface_hub import try_to_load_from_cache
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from contract.tracing import Tracing
from inference.config import ModelConfig
from inference.engines.model_files import check_model_directory
from keys import ConfigError

# Formats that cannot carry code.
_SAFE_LOAD_FORMATS: Final = ("safetensors", "fastsafetensors", "runai_streamer")
# These would run a model's own code, log prompts, or fetch URLs from requests.
_FORBIDDEN: Final = (
    "trust_remote_code",
    "enable_log_requests",
    "allowed_local_media_path",
    "allowed_media_domains",
)
_PATH_ARGUMENTS: Final = ("tokenizer", "hf_config_path")
# One backend for all requests, because an engine core keeps that of its first one. vllm_grammars
# takes the place of this one. White space is fixed, because small models repeat free white space
# until the tokens run out.
_STRUCTURED_OUTPUTS: Final = {"backend": "xgrammar", "disable_any_whitespace": True}
_CPU_INFO: Final = Path("/proc/cpuinfo")
# Flags of x86 and of ARM CPUs with instructions for bfloat16.
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPU_WORKER: Final = "inference.engines.vllm_cpu_worker.SeedKeepingCpuWorker"
# Tokens of one step on a CPU, and those of one long prompt in a step that other requests share. A
# step of 256 tokens takes about a second with a small model on two cores, so the others get a token
# every second. vLLM's default of 2048 held them up for 12 s, and a short prompt behind a long one
# for all of it; the throughput of prompts was the same.
_CPU_STEP_TOKENS: Final = 256
_CPU_LONG_PROMPT_TOKENS: Final = 64


def engine_arguments(config: ModelConfig, tracing: Tracing | None = None) -> AsyncEngineArgs:
    """Checks the model's files and builds vLLM's arguments.

    Raises ConfigError if one is unknown or not allowed, or the model carries code or pickles.
    """
    given = config.engine_args
    where = f"models.{config.id}.engine_args"
    for name in _FORBIDDEN:
        if given.get(name):
            raise ConfigError(f"{where}.{name}: is not allowed")
    if "model" in given:
        raise ConfigError(f"{where}.model: belongs to models.{config.id}.source")
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    if unknown := sorted(given.keys() - known):
        raise ConfigError(f"{where}.{unknown[0]}: vLLM knows no such argument")
    load_format = given.get("load_format", "safetensors")
    if load_format not in _SAFE_LOAD_FORMATS:
        raise ConfigError(f"{where}.load_format: must be one of {', '.join(_SAFE_LOAD_FORMATS)}")
    for path in (config.source, *(str(given[name]) for name in _PATH_ARGUMENTS if name in given)):
        # A hub id passes: its files are fetched later, and loaded in safe formats only.
        if Path(path).is_dir():
            check_model_directory(Path(path))
    arguments: dict[str, object] = {
        "disable_log_stats": True,
        "reasoning_parser": config.reasoning_parser or "",
        # The label of vLLM's metrics, which is the path of the model otherwise.
        "served_model_name": config.id,
        **_platform_defaults(config),
        **(_tracing(tracing) if tracing is not None else {}),
        **given,
        "structured_outputs_config": _structured_outputs(given, where),
        "model": config.source,
        "load_format": load_format,
        "trust_remote_code": False,
    }
    return AsyncEngineArgs(**arguments)


def _tracing(tracing: Tracing) -> dict[str, object]:
    """The argument with which vLLM sends its spans to the same collector."""
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = tracing.protocol
    os.environ["OTEL_SERVICE_NAME"] = tracing.service
    return {"otlp_traces_endpoint": tracing.url}


def _structured_outputs(given: dict[str, Any], where: str) -> StructuredOutputsConfig:
    # An object, because vLLM sets the reasoning parser on it.
    members = given.get("structured_outputs_config") or {}
    where = f"{where}.structured_outputs_config"
    if not isinstance(members, dict) or members.keys() & _STRUCTURED_OUTPUTS.keys():
        fixed = " and ".join(_STRUCTURED_OUTPUTS)
        raise ConfigError(f"{where}: must be a table without {fixed}")
    try:
        return StructuredOutputsConfig(**members, **_STRUCTURED_OUTPUTS)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: vLLM does not accept it") from error


def _platform_defaults(config: ModelConfig) -> dict[str, object]:
    """Arguments for this machine, where the configuration sets none."""
    if not current_platform.is_cpu():
        return {}
    defaults: dict[str, object] = {"worker_cls": _CPU_WORKER}
    if _CPU_INFO.is_file():
        defaults["dtype"] = cpu_dtype(_CPU_INFO.read_text(encoding="utf-8"))
    given = config.engine_args
    if given.get("enable_chunked_prefill", True):
        # vLLM requires a token for each sequence of a step, and a threshold within the context.
        defaults["max_num_batched_tokens"] = max(_CPU_STEP_TOKENS, given.get("max_num_seqs") or 0)
        context = given.get("max_model_len")
        if isinstance(context, int) and context >= _CPU_LONG_PROMPT_TOKENS:
            defaults["long_prefill_token_threshold"] = _CPU_LONG_PROMPT_TOKENS
    return defaults


def cpu_dtype(cpu_info: str) -> str:
    """The fastest data type of the CPU in the text of /proc/cpuinfo, as vLLM spells it.

    Without instructions for bfloat16, each operation converts to float32 and back. On two AVX2
    cores with a small model, float32 was five times faster at prompts and at 32 streams.
    """
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpu_info, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    return "auto" if flags & _BFLOAT16_FLAGS else "float32"


def model_created(config: ModelConfig) -> int:
    """The modification time of config.json, in seconds since the Unix epoch; 0 if not known."""
    directory = _model_directory(config)
    return int((directory / "config.json").stat().st_mtime) if directory else 0


def system_fingerprint(config: ModelConfig) -> str:
    """A name ("fp_...") for weights and engine configuration, the same after a restart."""
    return _fingerprint(config, _model_directory(config))


def shared_fingerprint(config: ModelConfig) -> str:
    """A hash of the settings and files that all machines of one model must share.

    The files of a hub's cache are left out: a machine may not have fetched them yet.
    """
    directory = Path(config.source)
    return _fingerprint(config, directory if (directory / "config.json").is_file() else None)


def _fingerprint(config: ModelConfig, directory: Path | None) -> str:
    digest = hashlib.sha256()
    parts: list[object] = [
        config.source,
        vllm.__version__,
        sorted(config.engine_args.items()),
        config.generation_config,
        config.tool_parser,
        config.reasoning_parser,
        _platform_defaults(config),
    ]
    digest.update(json.dumps(parts, default=str).encode())
    if directory is not None:
        digest.update((directory / "config.json").read_bytes())
        for path in sorted(directory.glob("*.safetensors")):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return f"fp_{digest.hexdigest()[:10]}"


def _model_directory(config: ModelConfig) -> Path | None:
    """The directory of config.json: the local one, or the one in the hub's cache once filled."""
    if (Path(config.source) / "config.json").is_file():
        return Path(config.source)
    revision = config.engine_args.get("revision")
    cached = try_to_load_from_cache(config.source, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None
