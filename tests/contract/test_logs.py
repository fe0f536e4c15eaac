"""What the logs say, and that prompts, outputs and keys never appear in them."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

import pytest

from keys import create_key
from tests.conftest import TEXT, StartStack, eventually
from tests.contract import programs
from tests.contract.test_http import post

CANARY = "canary-7f3a"


async def test_no_prompt_output_or_key_is_logged(
    start_stack: StartStack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = tmp_path / "keys.json"
    _, key = create_key(keys, "test")
    _, edge_key = create_key(keys, "edge", scope="edge")
    stack = await start_stack(keys=keys, key=key, upstream_token=edge_key)
    cues = [{"text": f"{CANARY} said"}, {"fail": "start"}, {"fail": "mid"}, {"fail": "refuse"}]
    for stream in (False, True):
        for cue in cues:
            messages = [
                {"role": "user", "content": f"{CANARY} asked"},
                {"role": "user", "content": json.dumps(cue)},
            ]
            body = {"model": "scripted", "messages": messages, "stream": stream}
            async with stack.http.post("/v1/chat/completions", json=body) as response:
                await response.read()
    await post(stack, "/v1/embeddings", json={"input": CANARY})
    await post(stack, "/v1/chat/completions", json={CANARY: 1})
    await post(stack, "/v1/models", headers={"authorization": f"Bearer {CANARY}"})
    assert "ScriptedFaultError" in caplog.text, "faults are logged"
    for secret in (CANARY, key, edge_key):
        assert secret not in caplog.text


async def test_the_log_has_the_address_of_a_unix_socket() -> None:
    # The path of a socket is short, and that of tmp_path may not be.
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/isthmus"
        async with programs.service(TEXT, options=("--listen", address)) as service:
            await eventually(lambda: "listening on" in service.log.read_text())
            assert f"listening on {address}\n" in service.log.read_text()
