"""Killed processes are restarted, and stopped stacks leave no process behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from tests.stack.conftest import STOP_SECONDS, Up, end, gone, start_up, wait_until

QUESTION = {
    "messages": [{"role": "user", "content": "Tell me a very long story about the sea."}],
    "stream": True,
}


def stream_until_error(up: Up, model: str, started: threading.Event, heard: list[str]) -> None:
    """Reads a stream's lines into `heard`; sets `started` at the ninth line."""
    with httpx.stream(
        "POST", f"{up.url}/v1/chat/completions", json=QUESTION | {"model": model}, timeout=100
    ) as response:
        for line in response.iter_lines():
            heard.append(line)
            if len(heard) > 8:
                started.set()


def kill_in_mid_stream(up: Up, model: str) -> list[str]:
    """Kills the model's inference process during a stream; returns the lines received."""
    started, heard = threading.Event(), []
    reader = threading.Thread(target=stream_until_error, args=(up, model, started, heard))
    reader.start()
    assert started.wait(100)
    victim = up.inference(model)
    family = [victim, *victim.children(recursive=True)]
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(
        lambda: all(gone(process) for process in family),
        10,
        "the inference process and its children have ended",
    )
    reader.join(30)
    assert not reader.is_alive(), "the stream has an end"
    return heard


def check_error_event(heard: list[str]) -> None:
    events = [line for line in heard if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "data: [DONE]" not in events


def answers(up: Up, model: str) -> bool:
    response = httpx.post(
        f"{up.url}/v1/completions",
        json={"model": model, "prompt": "Once", "max_tokens": 2},
        timeout=100,
    )
    if response.status_code == 503:
        assert "retry-after" in response.headers
        return False
    assert response.status_code == 200, response.text
    return True


def test_killed_vllm_process_leaves_no_engine_core_and_is_restarted(up: Up) -> None:
    heard = kill_in_mid_stream(up, "smollm2-135m-instruct")
    check_error_event(heard)
    wait_until(lambda: answers(up, "gpt-4"), 200, "the restarted engine answers")


def test_ctrl_c_ends_every_process_of_the_stack(dying_up: Up) -> None:
    up = dying_up
    family = up.processes()
    assert len(family) >= 5, "edge, three services, and vLLM's engine core"
    assert up.stop() == 0, up.output()
    assert all(gone(process) for process in family)
    said = up.log.read_text().partition("Stopping:")[2].splitlines()
    assert all("draining:" in line for line in said if " | " in line), "a stop is no failure"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_no_engine_core_outlives_its_inference_process(dying_example_up: Up) -> None:
    up = dying_example_up
    server = up.inference("smollm2-135m-instruct")
    # The engine core, which holds the memory, must be among them.
    cores = [
        process
        for process in server.children(recursive=True)
        if process.memory_info().rss > 200 << 20
    ]
    assert cores
    # The kernel alone is left to end the core: the supervisor would kill its whole family.
    up.process.send_signal(signal.SIGSTOP)
    server.kill()
    wait_until(lambda: all(gone(core) for core in cores), 30, "the engine core has gone")
    end(up)


def test_killed_inference_process_is_restarted_under_the_same_edge(
    scripted_up: Callable[..., Up],
) -> None:
    up = scripted_up(step_seconds=0.02, tokens=1000)
    edge = next(p for p in up.processes() if "edge" in p.cmdline())
    check_error_event(kill_in_mid_stream(up, "scripted"))
    wait_until(lambda: answers(up, "scripted"), 60, "the restarted engine answers")
    assert edge.is_running()


def test_killed_edge_is_restarted(scripted_up: Callable[..., Up]) -> None:
    up = scripted_up()
    edge = next(p for p in up.processes() if "edge" in p.cmdline())
    edge.kill()
    wait_until(lambda: gone(edge) and up.ready(), 60, "another edge serves")
    assert answers(up, "scripted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_lets_running_requests_finish(
    scripted_up: Callable[..., Up], number: signal.Signals
) -> None:
    up = scripted_up(step_seconds=0.02, tokens=100)
    results: list[httpx.Response] = []

    def ask() -> None:
        body = {"model": "scripted", "prompt": "x", "max_tokens": 100}
        results.append(httpx.post(f"{up.url}/v1/completions", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # all five requests run for another 1.5 s
    family = up.processes()
    up.process.send_signal(number)
    assert up.process.wait(STOP_SECONDS) == 0, up.output()
    for thread in threads:
        thread.join(10)
    assert [result.status_code for result in results] == [200] * 5
    assert all(gone(process) for process in family)


def test_children_end_when_the_supervisor_is_killed(scripted_up: Callable[..., Up]) -> None:
    up = scripted_up()
    family = up.processes()
    up.process.kill()
    up.process.wait()
    wait_until(lambda: all(gone(process) for process in family), 20, "the children have gone")


def test_start_off_loopback_without_keys_is_refused() -> None:
    up = start_up("--host", "0.0.0.0")
    assert up.process.wait(30) != 0
    assert "isthmus keys create" in up.output()
