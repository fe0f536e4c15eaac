"""How long a step of vLLM may take before it counts as stuck."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from inference.config import ModelConfig
from inference.engines.answer_check import Promise
from inference.engines.base import Terms
from isthmus.v1.generate_pb2 import GenerateRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn on import.
    from inference.engines import vllm_engine
    from inference.engines.vllm_engine import VllmEngine
    from inference.engines.vllm_progress import StepClock


@pytest.mark.parametrize(
    ("prefilling", "seconds"),
    [
        (0, 10.0),  # Only single tokens.
        (50, 10.0),  # 20 x 0.01 x 50 is less than the least bound, or as much.
        (100, 20.0),
        (256, 51.2),
        (7000, 51.2),  # A step takes at most 256 of them.
    ],
)
def test_step_with_a_long_prompt_may_take_longer(prefilling: int, seconds: float) -> None:
    clock = StepClock()
    clock.token_seconds, clock.step_tokens = 0.01, 256
    clock.prefilling = prefilling
    assert clock.slow_step_seconds() == pytest.approx(seconds)


def test_each_step_sets_the_clock() -> None:
    clock = StepClock()
    clock.last_step = 0.0
    clock.record(scheduler_stats=None, iteration_stats=None)
    assert clock.last_step > 0.0


class FakeVllm:
    """Gives `steps` outputs to each request, and then waits, fails, or ends."""

    def __init__(self, steps: int, then: str) -> None:
        self.steps, self.then = steps, then
        self.waits = asyncio.Event()

    def get_num_unfinished_requests(self) -> int:
        return 1

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        for _ in range(self.steps):
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1])])
        self.waits.set()
        if self.then == "fail":
            raise RuntimeError
        if self.then == "wait":
            await asyncio.Event().wait()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("then", ["wait", "fail", "end"])
async def test_no_tokens_are_left_in_prefill_after_a_call(
    steps: int, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeVllm(steps, then)
    engine = VllmEngine(ModelConfig(id="m", engine="vllm", source="m"))
    translator = SimpleNamespace(opening=lambda: None, feed=lambda _: None)
    monkeypatch.setattr(vllm_engine, "OutputTranslator", lambda *_: translator)
    monkeypatch.setattr(engine, "_started", lambda: (fake, None, None))
    prepared: Any = SimpleNamespace(
        plan=SimpleNamespace(discard=False, request=GenerateRequest()),
        params=None,
        terms=Terms(8000),
        prompt_tokens=7000,
        prompt=SimpleNamespace(engine_input=None, reasoning={}),
        promise=Promise(),
    )
    engine.clock.prefilling = 100  # Of other calls.
    call = asyncio.create_task(engine.generate(prepared, lambda _: None))
    await fake.waits.wait()
    if then == "wait":
        assert engine.clock.prefilling == (100 if steps else 7100)
        call.cancel()
    await asyncio.wait([call])
    assert engine.clock.prefilling == 100
