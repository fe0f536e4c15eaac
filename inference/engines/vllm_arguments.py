"""vLLM's engine arguments from a model's configuration, and the arguments that are not allowed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

import vllm
from huggingface_hub import try_to_load_from_cache
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from contract.tracing import Tracing
from inference.config import ModelConfig
from inference.engines import cpu_plan
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
_CPU_WORKER: Final = "inference.engines.vllm_cpu_worker.SeedKeepingCpuWorker"
# vLLM runs a single worker on a CPU in a process of its own, to set its number of threads. That is
# set for all of them here, so the worker can run in the engine core's process: one import of torch
# less at the start, and no message between two processes in each step.
ONE_PROCESS: Final = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# With one of these vLLM starts several workers, or chooses threads and processes itself.
_OWN_PROCESSES: Final = (
    "data_parallel_size",
    "distributed_executor_backend",
    "nnodes",
    "pipeline_parallel_size",
    "tensor_parallel_size",
)
_OWN_THREADS: Final = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")
# Tokens of a step for which vLLM's buffers have room on a CPU; step_plan.py says how many it takes.
_CPU_STEP_TOKENS: Final = 2048


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
    given = config.engine_args
    defaults: dict[str, object] = {
        "worker_cls": _CPU_WORKER,
        "dtype": cpu_plan.plan_here(config).dtype,
    }
    if one_process(config):
        defaults["distributed_executor_backend"] = ONE_PROCESS
    if given.get("enable_chunked_prefill", True):
        # vLLM requires a token for each sequence of a step.
        defaults["max_num_batched_tokens"] = max(_CPU_STEP_TOKENS, given.get("max_num_seqs") or 0)
    return defaults


def one_process(config: ModelConfig) -> bool:
    """Whether vLLM's worker runs in the process of its engine core."""
    return (
        current_platform.is_cpu()
        and not any(name in config.engine_args for name in _OWN_PROCESSES)
        and not any(os.environ.get(name) for name in _OWN_THREADS)
    )


def use_cpu(config: ModelConfig, arguments: AsyncEngineArgs) -> str:
    """Sets the threads of vLLM's processes on a CPU; returns what is used, for the log."""
    if not current_platform.is_cpu():
        return f"data type {arguments.dtype}"
    plan = cpu_plan.plan_here(config)
    if not one_process(config):
        return f"{plan.data_type}, threads as vLLM chooses"
    # Too late for this process, whose OpenMP has started: only for those that vLLM starts.
    for name, value in plan.environment.items():
        os.environ.setdefault(name, value)
    return str(plan)


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
