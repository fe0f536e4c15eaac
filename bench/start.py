"""Measures how long the programs take to start: `python -m bench.start [--cold]`.

With --cold the default models are also fetched and prepared, in an empty cache.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench import section
from bench.processes import ROOT, free_port

REPEATS = 5


def seconds_until(url: str, process: subprocess.Popen[bytes], any_status: bool) -> float:
    """Waits for a response with status 200, or with `any_status` for any; returns the seconds."""
    started = time.perf_counter()
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                break
        except urllib.error.HTTPError:
            if any_status:
                break
        except OSError:
            pass
        time.sleep(0.01)
    else:
        sys.exit(f"the process ended with {process.returncode}")
    return time.perf_counter() - started


def import_seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return float(done.stdout)


def edge_seconds() -> float:
    """Measures the time from the start of an edge process to its first response."""
    port = free_port()
    command = [sys.executable, "-m", "edge", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        return seconds_until(f"http://127.0.0.1:{port}/health", process, any_status=True)
    finally:
        process.terminate()
        process.wait()


def stack_seconds(cache: str | None) -> float:
    """Measures the time from `isthmus up` until all default models are served.

    Args:
        cache: The cache directory; None is the user's.
    """
    port, grpc_port = free_port(), free_port()
    isthmus = Path(sys.executable).parent / "isthmus"
    command = [isthmus, "up", "--port", str(port), "--grpc-port", str(grpc_port)]
    process = subprocess.Popen(
        [*command, *(["--cache-dir", cache] if cache else [])],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
        start_new_session=True,
    )
    try:
        return seconds_until(f"http://127.0.0.1:{port}/ready", process, any_status=False)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def main() -> None:
    """Measures the times, writes them and prints the table."""
    parser = section.parser("start", __doc__, repeats=REPEATS)
    parser.add_argument("--cold", action="store_true", help="also measure with an empty cache")
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    rows = [
        ("import edge.app", [import_seconds("edge.app") for _ in range(repeats)], 1.0),
        ("edge responds", [edge_seconds() for _ in range(repeats)], 2.0),
        ("stack ready, models cached", [stack_seconds(None)], 90.0),
    ]
    if options.cold:
        with tempfile.TemporaryDirectory() as cache:
            rows.append(("stack ready, nothing cached", [stack_seconds(cache)], 240.0))
    section.write(options, {what: seconds for what, seconds, _ in rows})
    print(f"{'what':30} {'median s':>9} {'bar s':>6}")
    for what, seconds, bar in rows:
        print(f"{what:30} {statistics.median(seconds):9.2f} {bar:6.0f}")


if __name__ == "__main__":
    main()
