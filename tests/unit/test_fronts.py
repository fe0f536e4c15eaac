"""The fronts of a model divide its limits, and share its keys' allowances and its state."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from inference import rate_table
from inference.__main__ import main
from inference.config import ModelConfig, ServerConfig
from inference.engines.engine_board import EngineBoard
from inference.engines.nodes import nodes_of
from inference.errors import InferenceError
from inference.fronts import METRICS_FOLDER, Front
from inference.rate_limits import RateLimiter
from inference.rate_table import RateTable
from inference.server import InferenceServer
from keys import ConfigError
from tests.contract.programs import ROOT
from tests.unit.test_rate_limits import Clock


def model(**settings: Any) -> ModelConfig:
    return ModelConfig(**{"id": "m", "engine": "scripted", "max_choices": 2, **settings})


def fronts(folder: Path, count: int) -> list[Front]:
    return [Front(folder=folder, index=index, count=count) for index in range(count)]


@pytest.mark.parametrize("count", [2, 3, 5, 64])
@pytest.mark.parametrize(("running", "queued"), [(256, 1024), (130, 1), (129, 0)])
def test_parts_of_all_fronts_are_the_limits_of_the_model(
    count: int, running: int, queued: int
) -> None:
    config = model(max_running=running, max_queued=queued, fronts=count)
    parts = [front.configured(config) for front in fronts(Path(), count)]
    assert sum(part.running_limit for part in parts) == running
    assert sum(part.max_queued for part in parts) == queued
    for number in ("running_limit", "max_queued"):
        values = {getattr(part, number) for part in parts}
        assert max(values) - min(values) <= 1


async def test_fronts_divide_the_default_memory_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.server.default_budget", lambda: 900 << 20)
    front = fronts(tmp_path, 3)[1]
    config = ServerConfig(listen="127.0.0.1:0", models=(model(),))
    assert InferenceServer(config, front).registry.memory.limit == 300 << 20
    assert InferenceServer(config).registry.memory.limit == 900 << 20


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fronts": 0}, "models.m.fronts: 0 is not a whole number from 1 to 64"),
        ({"fronts": -1}, "models.m.fronts: -1 is not a whole number from 1 to 64"),
        ({"fronts": 65}, "models.m.fronts: 65 is not"),
        ({"fronts": 2, "engine": "scripted-embedding"}, "models.m.fronts: only a text model"),
        ({"fronts": 2, "engine": "diffusers", "source": "x"}, "models.m.fronts: only a text"),
        ({"fronts": 4, "max_running": 3}, "models.m.fronts: 4 fronts cannot divide max_running"),
        (
            {"fronts": 2, "max_running": 3},
            "models.m.max_choices: 2 is above .* fronts has, 1.*to 4",
        ),
        (
            {"fronts": 4, "max_choices": 128},
            "models.m.max_choices: 128 .* raise max_running to 512",
        ),
    ],
)
def test_impossible_number_of_fronts_is_told_by_its_member(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        model(**settings)


@pytest.mark.parametrize("name", ["nnodes", "data_parallel_size"])
def test_fronts_of_several_engines_are_refused(name: str) -> None:
    config = model(engine="vllm", source="/m", fronts=2, engine_args={name: 2})
    with pytest.raises(ConfigError, match=f"models.m.fronts: .* engine_args.{name} is"):
        nodes_of(config)


@pytest.fixture(autouse=True)
def _this_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends its process, seconds after `main`."""
    monkeypatch.setattr("contract.process.end_soon", lambda _status: None)


TABLE = '[[models]]\nid = "m"\nengine = "scripted"\nfronts = 2\n'


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        (TABLE, "models.m.fronts: needs `isthmus inference`"),
        (
            TABLE + '[[models]]\nid = "n"\nengine = "scripted"\n',
            "models.m.fronts: fronts serve one model; choose it with --model",
        ),
    ],
)
def test_program_that_cannot_run_the_fronts_says_what_can(
    tables: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "isthmus.toml"
    config.write_text(tables)
    assert main(["--config", str(config)]) == 2
    assert capsys.readouterr().err == f"isthmus inference: {told}\n"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limiters(folder: Path, clock: Clock, **limits: int) -> list[RateLimiter]:
    config = model(**{f"{kind}_per_minute": limit for kind, limit in limits.items()})
    paths = [front.rates for front in fronts(folder, 2)]
    return [RateLimiter(config, None, clock, RateTable(path, clock)) for path in paths]


def spend(limiter: RateLimiter, principal: str = "a", tokens: int = 0) -> bool:
    """Whether a call is taken that uses so many tokens."""
    try:
        with limiter.charge(principal) as charge:
            charge.reserve(tokens)
            charge.used_tokens = tokens
    except InferenceError:
        return False
    return True


def test_key_has_one_allowance_at_all_fronts(tmp_path: Path, clock: Clock) -> None:
    first, second = limiters(tmp_path, clock, requests=3)
    assert [spend(limiter) for limiter in (first, second, first, second, first)] == [
        *(True, True, True),
        *(False, False),
    ]
    assert spend(second, "b")
    clock.pass_(20)
    assert [spend(second), spend(first)] == [True, False]


def test_unused_tokens_of_a_call_are_available_to_the_other_front(
    tmp_path: Path, clock: Clock
) -> None:
    first, second = limiters(tmp_path, clock, tokens=100)
    with first.charge("a") as charge:
        charge.reserve(90)
        assert not spend(second, tokens=20)
        charge.used_tokens = 30
    assert spend(second, tokens=20)
    left = charge.rate_limits()
    assert left is not None
    assert left.tokens.remaining == 50


def test_allowance_outlives_a_front(tmp_path: Path, clock: Clock) -> None:
    assert spend(limiters(tmp_path, clock, requests=1)[0])
    assert not spend(limiters(tmp_path, clock, requests=1)[0])


def test_table_counts_the_keys_of_a_large_service(tmp_path: Path, clock: Clock) -> None:
    first, second = limiters(tmp_path, clock, requests=1)
    keys = [f"key {number}" for number in range(1000)]
    assert all(spend(first, key) for key in keys)
    assert not any(spend(second, key) for key in keys)
    clock.pass_(60)
    assert all(spend(second, key) for key in keys)


def test_full_table_forgets_keys_that_have_used_little(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_table, "SLOTS", 64)
    first, second = limiters(tmp_path, clock, requests=2)
    assert [spend(first, "spent"), spend(first, "spent")] == [True, True]
    assert all(spend(first, f"key {number}") for number in range(1000))
    assert not spend(second, "spent")


def _spend_all(path: Path, taken: Any, begin: Any) -> None:
    limiter = RateLimiter(model(requests_per_minute=1000), None, Clock(), RateTable(path))
    begin.wait()
    taken.put(sum(spend(limiter) for _ in range(1000)))


def test_processes_that_charge_at_the_same_time_take_no_more_than_there_is(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    taken, begin = context.Queue(), context.Barrier(3)
    arguments = (tmp_path / "rates", taken, begin)
    processes = [context.Process(target=_spend_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    counts = [taken.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(counts) == 1000


def test_waiting_requests_are_divided_by_the_requests_of_each_front(tmp_path: Path) -> None:
    boards = [EngineBoard(tmp_path / "board", index, 3) for index in range(3)]
    for board, running in zip(boards, (5, 0, 2), strict=True):
        board.running = running
    seen: Counter[int] = Counter()
    for waiting in range(8):
        boards[1].tell(waiting, 0.25)
        shares = [board.waiting for board in boards]
        assert sum(shares) == waiting
        assert all(share <= board.running for share, board in zip(shares, boards, strict=True))
        seen[shares[1]] += 1
    assert seen == {0: 8}
    boards[0].tell(100, 0.5)  # More than the fronts have told of yet.
    assert sum(board.waiting for board in boards) == 7
    assert [board.cache for board in boards] == [0.5] * 3


COUNT = """
import sys
from pathlib import Path
from prometheus_client import Counter
from inference.fronts import Front
Counter("vllm:things", "Things.").inc(int(sys.argv[1]))
index = int(sys.argv[2])
families = Front(folder=Path(), index=index, count=2).engine_metrics()
print([sample.value for family in families for sample in family.samples])
"""


def test_first_front_has_what_the_library_of_the_engine_counts_in_all(tmp_path: Path) -> None:
    def counted(things: int, index: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", COUNT, str(things), str(index)],
            capture_output=True,
            check=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, METRICS_FOLDER: str(tmp_path)},
        ).stdout

    assert [counted(1, 1), counted(10, 0), counted(100, 1)] == ["[]\n", "[11.0]\n", "[]\n"]


def test_front_that_starts_again_has_no_work(tmp_path: Path) -> None:
    path = tmp_path / "board"
    first, second = (EngineBoard(path, index, 2) for index in range(2))
    first.prefilling, second.prefilling = 100, 20
    first.running, second.running = 1, 1
    second.step(12.5)
    assert (first.last_step, first.all_prefilling) == (12.5, 120)
    again = EngineBoard(path, 0, 2)
    assert (again.prefilling, again.running, again.all_prefilling) == (0, 0, 20)
    assert again.last_step == 12.5
