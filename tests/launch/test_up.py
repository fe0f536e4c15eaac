"""`isthmus up` and its sister commands, run as a user runs them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from inference.config import load_models
from inference.engines import cpu_plan
from keys import ConfigError, create_key, read_entries
from launch.__main__ import main
from launch.config import DEFAULT, load, write_resolved
from launch.environment import inference_environment
from tests.certificates import Authority
from tests.collector import collecting

ROOT = Path(__file__).parents[2]
SCRIPTED = """
[edge]
settle_seconds = 0.0

[[models]]
id = "sim"
engine = "scripted"
aliases = [{ name = "gpt-4", context_length = 100 }]

[[models]]
id = "vectors"
engine = "scripted-embedding"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "isthmus.toml"
    path.write_text(SCRIPTED)
    return path


def _free_ports() -> tuple[int, int]:
    """Returns a free port for REST, and the first of two consecutive free ports for gRPC.

    They are below the range from which the system takes ports for outgoing connections: another
    test could get one of those before the program binds it.
    """
    while True:
        rest, grpc = random.sample(range(20_000, 32_000), 2)
        with ExitStack() as sockets:
            try:
                for port in (rest, grpc, grpc + 1):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return rest, grpc


@dataclass
class Running:
    """`isthmus up` in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    output: list[str]

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if text in line:
                return
        pytest.fail(f"{text!r} never came:\n{''.join(self.output)}")

    def complete(self, model: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps({"model": model, "prompt": "x"}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)

    def get(self, path: str, key: str = "") -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def up(config: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*options: str) -> Running:
        port, grpc_port = _free_ports()
        command = [sys.executable, "-m", "launch", "up", "--config", str(config)]
        command += ["--port", str(port), "--grpc-port", str(grpc_port), *options]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(Running(process, port, []))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()
        assert running.process.stdout is not None
        running.process.stdout.close()


def _all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    assert not alive


def test_up_serves_all_models_and_one_interrupt_stops_it_cleanly(
    up: Callable[..., Running],
) -> None:
    running = up()
    running.read_until("Stop with Ctrl-C")
    banner = "".join(running.output)
    for command in ("curl ", "grpcurl ", "buf curl ", "from openai import OpenAI"):
        assert command in banner
    status, body = running.get("/v1/models")
    assert status == 200
    assert {model["id"] for model in json.loads(body)["data"]} == {"sim", "gpt-4", "vectors"}
    children = running.descendants()
    assert len(children) == 3
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    _all_gone(children)


def test_each_inference_process_has_metrics_on_the_port_that_is_printed(
    up: Callable[..., Running], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(f"{SCRIPTED}[up]\nmetrics_port = {_free_ports()[1]}\n")
    running = up()
    running.read_until("Stop with Ctrl-C")
    banner = "".join(running.output)
    shown = re.findall(r"^  metrics  http://(\S+)/metrics   (\w+)$", banner, re.MULTILINE)
    assert [model for _, model in shown] == ["sim", "vectors"]
    for address, model in shown:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as response:
            assert f'isthmus_model_ready{{model="{model}"}} 1.0' in response.read().decode()
    (command,) = re.findall(r"^  \S*isthmus (status .*)$", banner, re.MULTILINE)
    assert main([*command.split(), "--seconds", "0.5", "--json"]) == 0
    processes = json.loads(capsys.readouterr().out)["processes"]
    programs = {each["source"].removeprefix("http://"): each["program"] for each in processes}
    assert programs == {
        f"127.0.0.1:{running.port}": "edge",
        **{address: "inference" for address, _ in shown},
    }


def test_up_serves_https_once_its_probes_see_the_edge_ready(
    up: Callable[..., Running], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("127.0.0.1")
    running = up("--tls-certificate", str(pair.certificate), "--tls-key", str(pair.key))
    running.read_until("Stop with Ctrl-C")
    url = f"https://127.0.0.1:{running.port}"
    assert f"  REST  {url}/v1\n" in running.output
    with urllib.request.urlopen(
        f"{url}/v1/models", timeout=30, context=authority.client()
    ) as response:
        assert response.status == 200
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0


def test_stop_lets_requests_end_although_the_reader_of_the_output_has_left(
    up: Callable[..., Running], config: Path
) -> None:
    script = 'engine = "scripted"\nengine_args = { prefill_seconds = 1.0 }\n'
    config.write_text(SCRIPTED.replace('engine = "scripted"\n', script))
    running = up()
    running.read_until("Stop with Ctrl-C")
    assert running.process.stdout is not None
    running.process.stdout.close()  # As `| tee log`, which ends at Ctrl-C too.
    with ThreadPoolExecutor(1) as client:
        response = client.submit(running.complete, "sim")
        time.sleep(0.3)
        running.process.send_signal(signal.SIGINT)
        assert response.result() == 200
    assert running.process.wait(60) == 0


def test_stop_does_not_cut_the_time_in_which_load_balancers_notice(
    up: Callable[..., Running], config: Path
) -> None:
    text = SCRIPTED.replace("settle_seconds = 0.0", "settle_seconds = 5.0")
    config.write_text(text)
    running = up("--drain-seconds", "0")
    running.read_until("Stop with Ctrl-C")
    running.process.send_signal(signal.SIGINT)
    time.sleep(4.0)
    assert running.get("/health")[0] == 200
    assert running.process.wait(60) == 0


def test_requests_succeed_while_one_of_two_edges_is_down(up: Callable[..., Running]) -> None:
    running = up("--edges", "2")
    running.read_until("Stop with Ctrl-C")
    edges = [child for child in running.descendants() if "edge" in child.cmdline()]
    assert len(edges) == 2
    edges[0].kill()
    psutil.wait_procs(edges[:1], timeout=10)
    for _ in range(20):
        assert running.get("/v1/models")[0] == 200
    running.read_until("restarting in")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0


def test_isthmus_edge_runs_several_processes_on_one_port() -> None:
    port, _ = _free_ports()
    command = [sys.executable, "-m", "launch", "edge", "--processes", "3", "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        wanted = {f"edge-{number}" for number in (1, 2, 3)}
        listening: set[int] = set()
        deadline = time.monotonic() + 60
        while len(listening) < len(wanted):
            assert time.monotonic() < deadline
            listening = {
                child.pid
                for child in psutil.Process(process.pid).children(recursive=True)
                for connection in child.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            }
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert wanted <= {line.partition(":")[0] for line in output.splitlines()}
    finally:
        process.kill()
        process.wait()


def test_all_children_end_when_up_is_killed(up: Callable[..., Running]) -> None:
    running = up()
    running.read_until("Stop with Ctrl-C")
    children = running.descendants()
    running.process.kill()
    _all_gone(children)


def test_a_killed_inference_process_is_restarted(up: Callable[..., Running]) -> None:
    running = up()
    running.read_until("Stop with Ctrl-C")
    (victim,) = (p for p in running.descendants() if "sim" in p.cmdline())
    victim.kill()
    running.read_until("sim: ended with SIGKILL")
    running.read_until("sim: ready")
    deadline = time.monotonic() + 30
    while running.get("/ready")[0] != 200:
        assert time.monotonic() < deadline
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0


def test_with_keys_requests_need_one_and_no_process_has_it_among_its_arguments(
    up: Callable[..., Running], tmp_path: Path
) -> None:
    _, key = create_key(tmp_path / "keys.json", "alice")
    running = up("--keys", str(tmp_path / "keys.json"))
    running.read_until("Stop with Ctrl-C")
    assert running.get("/v1/models")[0] == 401
    assert running.get("/v1/models", key)[0] == 200
    for process in running.descendants():
        # A credential among the arguments could be read by every user of the machine.
        assert not any(key in argument for argument in process.cmdline())


def test_error_for_no_keys_off_loopback_shows_the_command_that_makes_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", "--config", str(config), "--host", "0.0.0.0"]) == 2
    message = capsys.readouterr().err
    assert "isthmus keys create NAME --keys keys.json" in message
    assert "isthmus up --host 0.0.0.0 --keys keys.json" in message


def test_error_for_a_missing_keys_file_shows_the_command_that_makes_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.json"
    assert main(["up", "--config", str(config), "--keys", str(path)]) == 2
    assert f"isthmus keys create NAME --keys {path}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--port", "--grpc-port", "--metrics-port"])
def test_error_for_a_taken_port_names_port_and_option(
    config: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port, grpc_port = _free_ports()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        ports = {"--port": port, "--grpc-port": grpc_port} | {option: taken}
        options = [str(part) for pair in ports.items() for part in pair]
        assert main(["up", "--config", str(config), *options]) == 2
    message = capsys.readouterr().err
    assert f":{taken}" in message
    assert option in message


def test_error_for_a_port_beyond_the_last_names_port_and_option(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, grpc_port = _free_ports()
    options = ["--port", str(port), "--grpc-port", str(grpc_port), "--metrics-port", "65535"]
    assert main(["up", "--config", str(config), *options]) == 2
    message = capsys.readouterr().err
    assert "127.0.0.1:65536: there is no such port" in message
    assert "--metrics-port" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[models]]\nid = 'x'\nengine = 'nonsense'", "nonsense"),
        ("[[models]]\nid = 'x'\nengine = 'vllm'\nsource = 'embedded:gpt5'", "embedded:smollm2"),
        ("", "no [[models]]"),
        ("[[models", "isthmus.toml"),
        (SCRIPTED + "[up]\nmetrics_port = 0", "up.metrics_port: 0"),
        (SCRIPTED + "[up]\nmetric_port = 1", "metric_port"),
    ],
)
def test_error_for_a_wrong_configuration_names_the_fault(
    config: Path, text: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    assert main(["up", "--config", str(config)]) == 2
    assert named in capsys.readouterr().err


def test_resolved_configuration_differs_only_in_the_source(tmp_path: Path) -> None:
    original = DEFAULT
    target = tmp_path / "resolved.toml"
    write_resolved(original, {"smollm2-135m-instruct": Path('/a "b"/é😀')}, target)
    before, after = load(original), load_models(target)
    assert after[0].source == '/a "b"/é😀'
    assert before[0].source == "embedded:smollm2"
    assert [m.engine_args for m in after] == [m.engine_args for m in before]
    assert [m.aliases for m in after] == [m.aliases for m in before]
    assert after[1] == before[1]


def test_resolved_configuration_keeps_values_of_every_type(config: Path, tmp_path: Path) -> None:
    arguments = r"""{ a = 1, b = 1e-5, c = true, d = ["x\n\"", "\u007f"], e = { "f.g" = -0.5 } }"""
    config.write_text(
        "[edge]\nport = 1\n[[models]]\nid = 'x'\nengine = 'vllm'\nsource = 's'\n"
        f"engine_args = {arguments}\n"
    )
    target = tmp_path / "resolved.toml"
    write_resolved(config, {}, target)
    assert load_models(target) == load(config)
    with pytest.raises(ConfigError):
        load(tmp_path / "missing.toml")


def test_environment_has_defaults_and_keeps_the_variables_of_the_user() -> None:
    model = load(DEFAULT)[0]
    environment = inference_environment(model, Path("/m"), {"VLLM_LOGGING_LEVEL": "DEBUG"})
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert int(environment["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    assert "HF_HUB_OFFLINE" not in inference_environment(model, None, {})


def test_libraries_log_errors_only_unless_verbose() -> None:
    model = load(DEFAULT)[0]
    levels = ("VLLM_LOGGING_LEVEL", "TRANSFORMERS_VERBOSITY")
    quiet = inference_environment(model, None, {})
    assert [quiet[name] for name in levels] == ["ERROR", "error"]
    assert not set(levels) & inference_environment(model, None, {}, verbose=True).keys()


def test_access_log_of_all_programs_and_each_name_once(up: Callable[..., Running]) -> None:
    running = up("--access-log", "text", "-v")
    running.read_until("Stop with Ctrl-C")
    assert running.complete("gpt-4") == 200
    for _ in range(2):
        running.read_until(" | time=")
    lines = [line for line in running.output if " | time=" in line]
    edge, service = sorted(lines)
    assert edge.startswith("edge | time=")
    assert "path=/v1/completions status=200" in edge
    assert service.startswith("sim | time=")
    (request_id,) = {re.findall(r"request_id=(\S+)", line)[0] for line in lines}
    assert request_id.startswith("req_")
    log = "".join(running.output)
    assert "sim | " in log
    assert not re.search(r"^(\S+) \| .*\b\1: ", log, re.MULTILINE)


def test_error_for_a_program_that_ends_shows_its_last_lines(
    up: Callable[..., Running], config: Path
) -> None:
    with config.open("a") as file:
        file.write("engine_args = { nothing = 1 }\n")
    for options in ([], ["-v"]):
        running = up(*options)
        assert running.process.wait(60) == 1
        assert running.process.stdout is not None
        said = running.process.stdout.read()
        assert "vectors ended once before it was ready" in said
        assert "unknown field `nothing`" in said
        assert ("isthmus up -v" in said) is not bool(options)


def test_spans_of_all_programs(up: Callable[..., Running]) -> None:
    with collecting() as collector:
        running = up("--otlp-endpoint", f"http://127.0.0.1:{collector.port}")
        running.read_until("Stop with Ctrl-C")
        assert running.complete("gpt-4") == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        first, second = collector.spans
    assert {first.service, second.service} == {"isthmus-edge", "isthmus-inference"}
    assert first.trace_id == second.trace_id


def test_a_key_can_be_created_and_listed_and_revoked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--keys", str(tmp_path / "keys.json")]
    assert main(["keys", "create", "alice", *file]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("sk-isthmus-")
    assert main(["keys", "list", *file]) == 0
    listing = capsys.readouterr().out
    assert "alice" in listing
    assert key not in listing
    (key_id,) = (word for word in listing.split() if word.startswith("key_"))
    assert main(["keys", "revoke", key_id, *file]) == 0
    assert main(["keys", "revoke", key_id, *file]) == 2
    assert key_id in capsys.readouterr().err


def test_a_key_can_have_allowances_of_at_least_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    create = ["keys", "create", "bob", "--keys", str(path)]
    assert main([*create, "--requests-per-minute", "60", "--tokens-per-minute", "9000"]) == 0
    (entry,) = read_entries(path)
    assert (entry.requests_per_minute, entry.tokens_per_minute) == (60, 9000)
    capsys.readouterr()
    assert main(["keys", "list", "--keys", str(path)]) == 0
    assert {"60", "9000"} <= set(capsys.readouterr().out.split())
    assert main([*create, "--tokens-per-minute", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_doctor_reports_each_subject_and_advises_to_prepare_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    main(["doctor", "--cache-dir", str(tmp_path)])
    report = capsys.readouterr().out
    for subject in ("python", "cores", "memory", "text engine", "registry", "model smollm2"):
        assert subject in report
    assert f"text models on it: {cpu_plan.plan_here()}" in report
    assert "isthmus models prepare" in report


@pytest.mark.parametrize(
    "command", ["up", "edge", "inference", "models", "keys", "status", "doctor"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"isthmus {command}" in capsys.readouterr().out
