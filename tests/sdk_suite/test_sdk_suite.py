"""The official Python SDK's own tests, run against Isthmus."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import openai
import pytest

from inference.config import AliasConfig, ModelConfig
from tests.conftest import StartStack
from tests.sdk_suite.expected import FAILURES, REFUSED

FOLDER = "tests/api_resources/"
FILES = (
    "chat/test_completions.py",
    "test_completions.py",
    "test_embeddings.py",
    "test_images.py",
    "test_models.py",
)
TEXT = ModelConfig(
    id="scripted",
    engine="scripted",
    aliases=(AliasConfig(name="gpt-6-astra"), AliasConfig(name="gpt-3.5-turbo-instruct")),
)
EMBEDDING = ModelConfig(
    id="scripted-embedding",
    engine="scripted-embedding",
    aliases=(AliasConfig(name="text-embedding-3-small"),),
)
IMAGE = ModelConfig(
    id="scripted-image",
    engine="scripted-image",
    aliases=(AliasConfig(name="gpt-image-2.5-flare"),),
)


@pytest.fixture(scope="session")
def sdk_source() -> Path:
    """The source release of the installed SDK, from the package registry or from the cache."""
    name = f"openai-{openai.__version__}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isthmus" / "sdk"
    if not (cache / name).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", "openai", "--dest", scratch, f"openai=={openai.__version__}"),
                ],
                check=True,
                timeout=100,
            )
            with tarfile.open(Path(scratch) / f"{name}.tar.gz") as archive:
                archive.extractall(scratch, filter="data")
            (Path(scratch) / name).rename(cache / name)
    return cache / name


async def run_suite(source: Path, url: str, report: Path) -> None:
    """Runs the SDK's tests; writes each outcome and its refused parameters to `report`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "--quiet", "--tb=no", "-p", "no:cacheprovider"),
        *("--override-ini", "addopts=", "-p", "refusals_plugin", "--report", report),
        *(f"{FOLDER}{file}" for file in FILES),
        cwd=source,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTEST_ADDOPTS": "",
            "TEST_API_BASE_URL": url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode in (0, 1), output.decode()[-4000:]


def expected(file: str, function: str, variant: str) -> tuple[str, set[str]]:
    """The outcome of a test and its refused parameters, from the table."""
    failures = [failure for failure in FAILURES if failure.covers(file, function, variant)]
    assert len(failures) <= 1, f"{failures} all match {file} {function}"
    ended = failures[0].ended if failures else "passed"
    return ended, set(REFUSED.get((file, function), ()))


# The contract suite already runs over both transports, so this suite uses one.
@pytest.mark.parametrize("transport", ["session"])
@pytest.mark.timeout(600)
async def test_every_sdk_test_has_its_expected_outcome(
    sdk_source: Path, start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(TEXT, EMBEDDING, IMAGE)
    report = tmp_path / "report.json"
    await run_suite(sdk_source, f"{stack.url}/v1", report)
    results: dict[str, dict[str, Any]] = json.loads(report.read_text())
    tests = {node: _parts(node) for node in results}

    differences = {}
    for node, got in results.items():
        ended, refused = expected(*tests[node])
        if got["ended"] != ended or set(got["refused"]) != refused:
            differences[node] = {"got": got, "expected": (ended, refused)}
    assert not differences

    assert {file for file, _, _ in tests.values()} == set(FILES)
    idle = [entry for entry in FAILURES if not any(entry.covers(*test) for test in tests.values())]
    assert not idle, "entries that match no test"
    assert set(REFUSED) <= {(file, function) for file, function, _ in tests.values()}


def _parts(node: str) -> tuple[str, str, str]:
    """Splits a node id into file, function and variant."""
    file, *_, function = node.removeprefix(FOLDER).split("::")
    name, _, variant = function.partition("[")
    return file, name, variant.removesuffix("]")
