"""The commands of docs/operate.md: those of one machine are run, those of a cluster are looked up.

The blocks of language bash run in one shell in their order, with free ports; each has a check of
what it prints, in the same order. Blocks of language sh are for a cluster or for systemd.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.programs import ROOT, fixed_port

PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
BASH = [block for language, block in FENCED if language == "bash"]
CLUSTER, SYSTEMD = (block for language, block in FENCED if language == "sh")
PORTS = ("8000", "50051", "50052", "9465", "9466")
KINDS = {
    "deployment": "Deployment",
    "hpa": "HorizontalPodAutoscaler",
    "scaledobject": "ScaledObject",
    "service": "Service",
    "statefulset": "StatefulSet",
}
BIN = Path(sys.executable).parent
PATH = f"{BIN}:{os.environ['PATH']}"


class Walk:
    """A shell in a folder with `deploy`; `ports` maps the ports of the page to free ones."""

    def __init__(
        self, shell: asyncio.subprocess.Process, root: Path, ports: dict[str, str]
    ) -> None:
        self._shell = shell
        self.root = root
        self.ports = ports

    def in_page(self, text: str) -> str:
        """The text with the ports that the page has."""
        for shown, port in self.ports.items():
            text = text.replace(port, shown)
        return text

    async def run(self, block: str) -> str:
        """Runs a block; returns what it prints, or fails if a command of it fails."""
        # What the page leaves to the default.
        block = block.replace("isthmus status", "isthmus status --url http://127.0.0.1:8000")
        for shown, port in self.ports.items():
            block = re.sub(rf"\b{shown}\b", port, block)
        script = self.root / "block.sh"
        script.write_text(block, encoding="utf-8")
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(b". %b </dev/null; echo; echo END OF BLOCK\n" % bytes(script))
        try:
            async with asyncio.timeout(60):
                output = await self._shell.stdout.readuntil(b"\nEND OF BLOCK\n")
        except asyncio.IncompleteReadError as end:
            pytest.fail(f"a command failed:\n{block}\n{end.partial.decode()}")
        return self.in_page(output.decode().removesuffix("\nEND OF BLOCK\n"))


@asynccontextmanager
async def walking(root: Path) -> AsyncIterator[Walk]:
    (root / "deploy").symlink_to(ROOT / "deploy")
    ports = {shown: str(fixed_port()) for shown in PORTS}
    assert len(set(ports.values())) == len(PORTS)
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-e"),
        cwd=root,
        env={
            **os.environ,
            "PATH": PATH,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}",
            "COLUMNS": "120",
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Walk(shell, root, ports)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        await shell.wait()


def last_document(output: str) -> Any:
    return json.loads(output.strip().splitlines()[-1])


def rows(output: str, *beginning: str) -> list[list[str]]:
    """The words of each line that begins with these."""
    found = [line.split() for line in output.splitlines()]
    return [words for words in found if words[: len(beginning)] == list(beginning)]


def replica(port: str) -> list[str]:
    return [f"127.0.0.1:{port}", f"ipv4:127.0.0.1:{port}"]


def deployed(output: str, walk: Walk) -> None:
    assert last_document(output)["status"] == "ready"
    keys = json.loads((walk.root / "walk/keys.json").read_text())["keys"]
    assert [each["name"] for each in keys] == ["alice", "edge"]


def asked(output: str, _walk: Walk) -> None:
    status, answer = output.split(maxsplit=1)
    assert status == "200"
    assert json.loads(answer)["model"] == "demo"
    assert json.loads(answer)["choices"][0]["message"]["content"]


def looked(output: str, _walk: Walk) -> None:
    assert "● http://127.0.0.1:8000  ready" in output
    assert rows(output, "demo") == [["demo", "text", "ready", "0", "0", "0%"]]
    assert rows(output, *replica("50051")) == [[*replica("50051"), "serving", "0"]]
    assert len(rows(output, "inference", "127.0.0.1:9465")) == 1
    assert len(rows(output, "edge-1", "127.0.0.1:8000")) == 1


def scraped(output: str, _walk: Walk) -> None:
    found = dict(re.findall(r"^([\w:]+){.*} (\S+)$", output, re.MULTILINE))
    assert found == {
        "isthmus_replica_serving": "1.0",
        "vllm:num_requests_running": "0.0",
        "vllm:num_requests_waiting": "0.0",
    }


def scaled(output: str, _walk: Walk) -> None:
    for port in ("50051", "50052"):
        assert rows(output, *replica(port)) == [[*replica(port), "serving", "0"]]
    for port in ("9465", "9466"):
        assert len(rows(output, "inference", f"127.0.0.1:{port}")) == 1
    assert not rows(output, "edge-1")
    assert len(rows(output, "edge-2")) == 1


def rolled(output: str, walk: Walk) -> None:
    *_, counted = output.strip().splitlines()
    number, status = counted.split()
    assert status == "200"
    assert int(number) > 5
    assert len((walk.root / "walk/statuses.txt").read_text().splitlines()) == int(number)
    assert output.count('{"status":"ready"') == 2


def debugged(output: str, _walk: Walk) -> None:
    status, *lines = output.strip().splitlines()
    assert status == "200"
    (example,) = (block for _, block in FENCED if "request_id=walk-1" in block and "…" in block)
    shown = example.replace("\n  ", " ").splitlines()
    assert len(lines) == len(shown) == 2
    for line, pattern in zip(lines, shown, strict=True):
        assert re.fullmatch(re.escape(pattern).replace("…", r"\S+"), line)


def lost(output: str, _walk: Walk) -> None:
    assert "\n200\n" in f"\n{output}"
    assert rows(output, *replica("50051"))[0][2] == "serving"
    assert rows(output, *replica("50052"))[0][2:4] == ["not", "serving"]
    assert "exit status 1" in output
    answer = last_document(output)
    assert answer["status"] == "waiting for upstreams"
    assert list(answer["problems"]) == ["127.0.0.1:50052"]


def returned(output: str, _walk: Walk) -> None:
    assert "INFO inference.server ready" in output
    *_, answer, status = output.split()
    assert json.loads(answer)["status"] == "ready"
    assert status == "200"


def stopped(_output: str, walk: Walk) -> None:
    for port in walk.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(port)))
    logs = [path.read_text() for path in (walk.root / "walk").glob("*.log")]
    assert len(logs) == 4
    assert not [log for log in logs if "Traceback" in log or " ERROR " in log]


def scraping_prepared(_output: str, walk: Walk) -> None:
    folder = walk.root / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    (rules,) = (yaml.safe_load((folder / name).read_text()) for name in config["rule_files"])
    alerts = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yaml").read_text())
    assert rules == alerts["spec"]
    (sentence,) = re.findall(r"^Without Kubernetes: (.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    targets = [job["static_configs"][0]["targets"] for job in config["scrape_configs"]]
    assert [[each] for each in re.findall(r"--metrics-listen (\S+?)`", sentence)] == targets


CHECKS: list[Callable[[str, Walk], None]] = [
    *(deployed, asked, looked, scraped, scaled, rolled, debugged, lost, returned, stopped),
    scraping_prepared,
]


def test_each_block_has_a_language_that_says_whether_it_is_run() -> None:
    # Those of one model over several machines are run by tests/engines/test_vllm_nodes.py.
    assert {language for language, _ in FENCED} == {"bash", "sh", "text", "toml", "console", "ini"}
    assert len(FENCED) * 2 == len(re.findall(r"^\s*```", PAGE, re.MULTILINE))
    assert len(BASH) == len(CHECKS)


async def test_the_walk_does_what_the_page_says(tmp_path: Path) -> None:
    async with walking(tmp_path) as walk:
        for block, check in zip(BASH, CHECKS, strict=True):
            check(await walk.run(block), walk)


def commands(block: str) -> list[str]:
    return [line for line in block.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("command", commands(CLUSTER))
def test_kubectl_takes_each_command_until_it_needs_the_server(command: str, tmp_path: Path) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none"}}],
        "current-context": "none",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": PATH,
            "KUBECONFIG": f"{tmp_path}/config",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode
    assert "connection refused" in done.stderr or "was refused" in done.stderr, done.stderr


def test_kubernetes_has_the_objects_that_the_page_names() -> None:
    command = [BIN / "kubectl", "kustomize", ROOT / "deploy/kubernetes/example"]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    objects = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}
    named = re.findall(r"(?<![.\w])([a-z]+)/(isthmus-[\w-]+)", CLUSTER)
    assert len(named) > 10
    for kind, name in named:
        assert objects[KINDS[kind], name]["metadata"]["namespace"] == "isthmus"
    (image,) = re.findall(r"set image statefulset/(\S+) (\w+)=", CLUSTER)
    pod = objects["StatefulSet", image[0]]["spec"]["template"]["spec"]
    assert image[1] in {container["name"] for container in pod["containers"]}
    (scaled_by_hand,) = re.findall(r"scale statefulset/(\S+)", CLUSTER)
    targets = [
        each["spec"]["scaleTargetRef"]["name"]
        for (kind, _), each in objects.items()
        if kind in ("ScaledObject", "HorizontalPodAutoscaler")
    ]
    assert scaled_by_hand not in targets
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for (kind, _), each in objects.items()
        if kind in ("Deployment", "StatefulSet")
    ]
    selected = re.findall(r"--selector=(\S+)=(\S+)", CLUSTER)
    assert selected
    for name, value in selected:
        assert value in {each.get(name) for each in labels}
    ports = objects["Service", "isthmus-edge"]["spec"]["ports"]
    assert re.findall(r"port-forward service/isthmus-edge 8000:(\d+)", CLUSTER) == [
        str(each["port"]) for each in ports
    ]


def test_systemd_has_the_units_that_the_page_names(tmp_path: Path) -> None:
    units = {path.name for path in (ROOT / "deploy" / "systemd").glob("*.service")}
    named = re.findall(r"\b(isthmus-\w+@?)", SYSTEMD)
    assert {f"{name}.service" for name in named} == units
    tool = shutil.which("systemctl")
    if tool is None:
        pytest.skip("needs systemctl")
    folder = tmp_path / "etc/systemd/system"
    folder.mkdir(parents=True)
    for name in units:
        shutil.copy(ROOT / "deploy" / "systemd" / name, folder)
    (enable,) = (line for line in commands(SYSTEMD) if " enable " in line)
    options = enable.replace("systemctl enable --now", f"--root={tmp_path} enable").split()
    done = subprocess.run([tool, *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    enabled = {path.name for path in folder.glob("multi-user.target.wants/*")}
    assert enabled == {f"{name}.service" for name in options[2:]}
