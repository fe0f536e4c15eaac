"""Claude Code, as the binary of its Agent SDK, with a model that uses its tools."""

import json
import os
import subprocess
from pathlib import Path

import claude_agent_sdk
import pytest

BINARY = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
ANSWER = "The capital of France is Paris."


@pytest.fixture
def run(tmp_path: Path):
    """Runs `claude -p` in an empty folder and returns its JSON lines."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": os.environ["ISTHMUS_URL"],
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_MODEL": "gpt-4o-mini",
        "ANTHROPIC_SMALL_FAST_MODEL": "gpt-4o-mini",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }

    def call(prompt: str, *options: str) -> list[dict]:
        form = ("--output-format", "stream-json", "--verbose")
        done = subprocess.run(
            (BINARY, "-p", prompt, *form, *options),
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    call.folder = folder
    return call


def test_streamed_answer_is_shown(run) -> None:
    *_, last = run("What is the capital of France?")
    assert (last["type"], last["is_error"], last["result"]) == ("result", False, ANSWER)


def test_tools_run_and_their_results_come_back(run) -> None:
    lines = run(
        "Use Write with file_path = notes.txt, content = sunny.",
        *("--allowedTools", "Write", "--permission-mode", "acceptEdits"),
    )
    *_, last = lines
    assert (last["is_error"], last["num_turns"]) == (False, 2)
    assert (run.folder / "notes.txt").read_text() == "sunny"
    assert last["result"].startswith("The tools returned: File created successfully")
