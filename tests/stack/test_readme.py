"""Every code block of the README works as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.stack.conftest import ROOT, Up

BLOCKS = re.findall(
    r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)


def run(up: Up, language: str, block: str, folder: Path) -> str:
    """Runs a block in `folder`, with the ports of `up` and the tools of this environment."""
    block = block.replace("127.0.0.1:8000", f"127.0.0.1:{up.port}")
    for model in range(3):
        block = block.replace(f"127.0.0.1:{50051 + model}", f"127.0.0.1:{up.grpc_port + model}")
    block = block.replace(".venv/bin/", f"{sys.prefix}/bin/")
    command = [sys.executable, "-c", block] if language == "python" else ["bash", "-ec", block]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said(stream: str, pattern: str) -> str:
    return "".join(json.loads(f'"{text}"') for text in re.findall(pattern, stream))


def test_readme_shows_every_client() -> None:
    shown = "".join(block for _, block in BLOCKS)
    for way in (
        "curl -s ",
        "curl -sN",
        "OpenAI(",
        "grpcurl",
        "buf curl",
        "stream=True",
        "images/generations",
    ):
        assert way in shown


@pytest.mark.parametrize(
    ("language", "block"), BLOCKS, ids=[f"block-{n}" for n in range(len(BLOCKS))]
)
def test_readme_block_runs_and_prints_its_result(
    up: Up, language: str, block: str, tmp_path: Path
) -> None:
    output = run(up, language, block, tmp_path)
    if language == "python":
        assert output.count("Paris") >= 2
        assert "3 vectors of 384" in output
        assert re.search(r"^http://127\.0\.0\.1:\d+/files/[0-9a-f]{32}\.png$", output, re.MULTILINE)
    elif "images/generations" in block:
        with Image.open(tmp_path / "heart.png") as image:
            assert image.size == (256, 256)
    elif "GenerateImage" in block:
        kinds = re.findall(r'"(admitted|progress|partialImage|image|usage)":', output)
        assert kinds.count("progress") == 20
        assert kinds[0] == "admitted"
        assert [kinds.count(kind) for kind in ("partialImage", "image", "usage")] == [1, 1, 1]
    elif '"stream": true' in block:
        assert output.endswith("data: [DONE]\n\n")
        assert "Paris" in said(output, r'"content":"((?:[^"\\]|\\.)*)"')
    elif "/v1/responses" in block:
        assert "Paris" in json.loads(output)["output"][0]["content"][0]["text"]
    elif "capital" in block and "curl -s" in block:
        assert "Paris" in json.loads(output)["choices"][0]["message"]["content"]
    elif "/Generate" in block:
        assert output.count('"deltas"') > 3, "streamed, not one message"
        assert "Paris" in said(output, r'"text": "((?:[^"\\]|\\.)*)"')
    elif "ListModels" in block:
        names = {model["id"] for model in json.loads(output)["models"]}
        assert "smollm2-135m-instruct" in names
    elif " list" in block:
        assert {"isthmus.v1.InferenceService", "grpc.health.v1.Health"} <= set(output.split())
    elif "Health/Check" in block:
        assert json.loads(output) == {"status": "SERVING"}
    else:
        pytest.fail(f"no check for this block:\n{block}")
