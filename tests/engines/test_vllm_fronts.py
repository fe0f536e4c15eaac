"""Two fronts with one engine of vLLM: answers, the death of one, that of the engine, the stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import psutil
import pytest
from aiohttp import ClientSession

from bench import tiny_model
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from tests.conftest import eventually
from tests.contract.programs import Program
from tests.engines.conftest import ENVIRONMENT
from tests.launch.test_fronts import channels, front, launched, ports, serves

TABLE = """
[[models]]
id = "m"
engine = "vllm"
source = "{source}"
fronts = 2
[models.engine_args]
dtype = "float32"
enforce_eager = true
max_model_len = 2048
max_num_seqs = 8
"""


@pytest.fixture(scope="module")
def model(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fronts") / "tiny"
    tiny_model.make(directory, tokenizer_of=smollm2_directory)
    return directory


class Stack:
    """`isthmus inference` with two fronts of the tiny model.

    Attributes:
        program: The launcher.
        both: A channel to each front.
        metrics: The port of the first front's metrics; the second has the next one.
    """

    def __init__(self, program: Program, both: list[grpc.aio.Channel], metrics: int) -> None:
        self.program = program
        self.both = both
        self.metrics = metrics

    async def serves(self) -> None:
        for channel in self.both:
            await serves(channel, self.program, 300)

    def log(self) -> str:
        return self.program.log.read_text()

    def core(self) -> psutil.Process:
        """vLLM's engine core."""
        processes = psutil.Process(self.program.process.pid).children(recursive=True)
        (found,) = (each for each in processes if "EngineCore" in " ".join(each.cmdline()))
        return found

    async def families(self, front: int) -> dict[str, float]:
        """The metrics of a front; those of one name are added up."""
        values: dict[str, float] = {}
        async with (
            ClientSession() as http,
            http.get(f"http://127.0.0.1:{self.metrics + front}/metrics") as response,
        ):
            for line in (await response.text()).splitlines():
                if not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    name = name.partition("{")[0]
                    values[name] = values.get(name, 0.0) + float(value)
        return values


def request(tokens: int, prompt: str = "Once upon a time") -> GenerateRequest:
    wanted = GenerateRequest(model="m", text=prompt)
    wanted.sampling.temperature = 0.0
    wanted.stopping.max_tokens = tokens
    wanted.stopping.ignore_eos = True
    return wanted


async def answer(channel: grpc.aio.Channel, tokens: int) -> str:
    parts = InferenceServiceStub(channel).Generate(request(tokens), timeout=60)
    return "".join([delta.text async for part in parts for delta in part.deltas])


async def begun(channel: grpc.aio.Channel, tokens: int) -> AsyncIterator[str]:
    """The texts of a call that has begun; the first is read."""
    parts = aiter(InferenceServiceStub(channel).Generate(request(tokens), timeout=120))
    async for part in parts:
        if part.deltas:
            break

    async def rest() -> AsyncIterator[str]:
        async for part in parts:
            for delta in part.deltas:
                yield delta.text

    return rest()


async def status_of(texts: AsyncIterator[str]) -> grpc.StatusCode:
    try:
        async for _ in texts:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.timeout(600)  # Two starts of an engine.
async def test_two_fronts_with_one_engine(one_vllm: None, model: Path, tmp_path: Path) -> None:
    first, metrics = ports(2), ports(2)
    command = ["inference", "--listen", f"127.0.0.1:{first}"]
    command += ["--metrics-listen", f"127.0.0.1:{metrics}"]
    async with (
        AsyncExitStack() as ends,
        launched(
            tmp_path, TABLE.format(source=model), *command, environment=ENVIRONMENT
        ) as program,
    ):
        stack = Stack(program, channels(ends, first), metrics)
        await stack.serves()
        processes = psutil.Process(program.process.pid).children(recursive=True)
        expected = await answers(stack)
        await front_dies(stack)
        assert await answers(stack) == expected
        await core_dies(stack)
        assert await answers(stack) == expected
        processes += psutil.Process(program.process.pid).children(recursive=True)
        program.send(signal.SIGTERM)
        assert await program.ended(60) == 0
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert not alive
        assert list(tmp_path.glob("isthmus-*")) == []


async def answers(stack: Stack) -> str:
    """Both fronts give the same answer, and count their own tokens and those of the engine."""
    before = [await stack.families(index) for index in (0, 1)]
    first, second = await asyncio.gather(*(answer(channel, 24) for channel in stack.both))
    assert first == second
    after = [await stack.families(index) for index in (0, 1)]
    own = "isthmus_output_tokens_total"
    assert [new[own] - old[own] for new, old in zip(after, before, strict=True)] == [24, 24]
    both = "vllm:generation_tokens_total"
    assert after[0][both] - before[0][both] == 48
    assert not [name for name in after[1] if name.startswith("vllm:")]
    return first


async def front_dies(stack: Stack) -> None:
    """Kills a front in a call: the other one's call goes on, and the engine drops the lost one."""
    going, lost = await begun(stack.both[0], 1900), await begun(stack.both[1], 1900)
    front(stack.program, 1).kill()
    assert await status_of(lost) is grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: "aborted 1 requests of front 1" in stack.log(), 10)
    assert await status_of(going) is grpc.StatusCode.OK
    assert "m-1: ended" not in stack.log()
    await stack.serves()


async def core_dies(stack: Stack) -> None:
    """Kills the engine core in calls: both fronts tell it, and all serve again."""
    calls = [await begun(channel, 1900) for channel in stack.both]
    log = len(stack.log())
    os.kill(stack.core().pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        codes = [await status_of(call) for call in calls]
    assert codes == [grpc.StatusCode.UNAVAILABLE] * 2
    for name in ("m-engine", "m-1", "m-2"):
        await eventually(lambda name=name: f"{name}: ended with status 1" in stack.log()[log:], 40)
    await eventually(lambda: stack.log()[log:].count(": ready") == 3, 300)
    await stack.serves()
