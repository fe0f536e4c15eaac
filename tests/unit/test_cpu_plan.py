"""Which data type and how many threads vLLM gets on which CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.config import ModelConfig
from inference.engines import cpu_plan
from inference.engines.cpu_plan import Cpu, plan

X86 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 {}\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


def cpu(*flags: str, cores: int = 2, quota: float | None = None) -> Cpu:
    return Cpu("A CPU", frozenset(flags), cores, quota)


@pytest.mark.parametrize(
    ("flags", "dtype", "reason"),
    [
        ((), "float32", "no instructions for bfloat16"),
        (("avx512f", "avx512_vnni"), "float32", "no instructions for bfloat16"),
        (("avx512_bf16",), "auto", "AVX512-BF16"),
        (("amx_bf16", "avx512_bf16"), "auto", "AMX"),
        (("bf16",), "auto", "ARM BF16"),
    ],
)
def test_cpu_without_bfloat16_instructions_uses_float32(
    flags: tuple[str, ...], dtype: str, reason: str
) -> None:
    made = plan(cpu(*flags))
    assert (made.dtype, made.reason) == (dtype, reason)


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [
        (1, None, 1),
        (2, None, 1),  # One is left to the other processes.
        (4, None, 3),
        (64, None, 63),
        (64, 2.0, 2),  # A container with the CPU time of two cores.
        (64, 2.5, 2),
        (64, 0.5, 1),
        (2, 8.0, 1),
    ],
)
def test_threads_are_those_of_cores_and_of_the_containers_cpu_time(
    cores: int, quota: float | None, threads: int
) -> None:
    assert plan(cpu(cores=cores, quota=quota)).threads == threads


@pytest.mark.parametrize(
    ("text", "quota"), [("max 100000", None), ("150000 100000", 1.5), ("", None)]
)
def test_quota_is_read_in_cores(text: str, quota: float | None) -> None:
    assert cpu_plan.quota(text) == quota


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (X86.format("avx512_bf16"), "A CPU", {"fpu", "avx2", "avx512_bf16"}),
        (ARM.format("bf16"), None, {"fp", "asimd", "bf16"}),
        (None, None, set()),
    ],
)
def test_cpu_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    name: str | None,
    flags: set[str],
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(cpu_plan, "_CPU_INFO", tmp_path / "cpuinfo")
    found = cpu_plan.this_cpu()
    assert found.flags == flags
    assert found.name == name or name is None
    assert found.cores >= 1


def test_two_threads_of_one_core_count_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 2},{number % 2 + 2}\n")
    monkeypatch.setattr(cpu_plan, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert cpu_plan.this_cpu().cores == 2


def test_configuration_and_environment_override_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_plan, "this_cpu", lambda: cpu("avx512_bf16"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert str(cpu_plan.plan_here()) == "the model's data type (AVX512-BF16), 1 thread"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    model = ModelConfig(id="m", engine="vllm", source="x", engine_args={"dtype": "float32"})
    assert str(cpu_plan.plan_here(model)) == "float32 (configured), 2 threads"
