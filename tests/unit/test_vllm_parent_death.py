"""A vLLM process ends when its parent process dies."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import psutil
import pytest

from inference.engines.vllm_parent_death import die_with_parent

# A parent that starts a child as vLLM does, from a thread that stays alive, and prints its pid.
_PARENT = """
import multiprocessing, sys, threading, time
from inference.engines.vllm_parent_death import die_with_parent

def child(connection, late):
    if late:
        connection.send(multiprocessing.current_process().pid)
        while multiprocessing.parent_process().is_alive():
            time.sleep(0.01)
    if {guarded}:
        die_with_parent()
    if not late:
        connection.send(multiprocessing.current_process().pid)
    time.sleep(600)

def start():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=child, args=(theirs, {late})).start()
    print(ours.recv(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
"""


def _orphan(directory: Path, *, guarded: bool, late: bool) -> psutil.Process:
    """Starts parent and child, kills the parent and returns the child."""
    script = directory / "parent.py"
    script.write_text(_PARENT.format(guarded=guarded, late=late))
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": root},
    )
    try:
        assert parent.stdout is not None
        with parent.stdout as output:
            return psutil.Process(int(output.readline()))
    finally:
        parent.kill()
        parent.wait()


def _ends(child: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
@pytest.mark.parametrize("late", [False, True], ids=["guarded-in-time", "parent-already-dead"])
def test_guarded_child_ends_when_its_parent_is_killed(tmp_path: Path, late: bool) -> None:
    assert _ends(_orphan(tmp_path, guarded=True, late=late), 30)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_unguarded_child_survives_its_parent(tmp_path: Path) -> None:
    child = _orphan(tmp_path, guarded=False, late=False)
    assert not _ends(child, 1)
    child.kill()


def test_die_with_parent_keeps_a_process_whose_parent_lives() -> None:
    die_with_parent()


def test_guard_is_registered_as_a_vllm_plugin() -> None:
    named = entry_points(group="vllm.general_plugins")["isthmus_die_with_parent"]
    assert named.load() is die_with_parent
