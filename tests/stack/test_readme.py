"""Every command that the README prints works as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.stack.conftest import ROOT, Up

BLOCKS = re.findall(
    r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
)


def run(up: Up, language: str, block: str) -> str:
    """Runs a block; the ports are this stack's, and tools are those beside this Python."""
    block = block.replace("127.0.0.1:8000", f"127.0.0.1:{up.port}")
    block = block.replace("127.0.0.1:50051", f"127.0.0.1:{up.grpc_port}")
    block = block.replace(".venv/bin/", f"{sys.prefix}/bin/")
    command = [sys.executable, "-c", block] if language == "python" else ["bash", "-ec", block]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said(stream: str, pattern: str) -> str:
    return "".join(json.loads(f'"{text}"') for text in re.findall(pattern, stream))


def test_the_readme_shows_every_way_in() -> None:
    shown = "".join(block for _, block in BLOCKS)
    for way in ("curl -s ", "curl -sN", "OpenAI(", "grpcurl", "buf curl", "stream=True"):
        assert way in shown


@pytest.mark.parametrize(
    ("language", "block"), BLOCKS, ids=[f"block-{n}" for n in range(len(BLOCKS))]
)
def test_block(up: Up, language: str, block: str) -> None:
    output = run(up, language, block)
    if language == "python":
        assert output.count("Paris") >= 2
        assert "3 vectors of 384" in output
    elif '"stream": true' in block:
        assert output.endswith("data: [DONE]\n\n")
        assert "Paris" in said(output, r'"content":"((?:[^"\\]|\\.)*)"')
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
        pytest.fail(f"nothing is known of this block:\n{block}")
