"""One model over two machines: an answer, the death of the follower, a restart, and the stop.

The configuration and the commands are those of docs/operate.md.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.numpy import load_file, save_file

from bench import tiny_model
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from tests.conftest import eventually
from tests.contract.programs import ROOT, Program
from tests.engines.conftest import ENVIRONMENT
from tests.engines.machines import Machine, alive, two_machines

SECTION = (
    (ROOT / "docs" / "operate.md")
    .read_text()
    .partition("\n## One model over several machines\n")[2]
    .partition("\n## ")[0]
)
CONFIG = re.findall(r"^```toml\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)[0]
COMMANDS = re.findall(r"^isthmus (inference .*?) +#", SECTION, re.MULTILINE)
# So that the start is short.
SMALL = """
dtype = "float32"
enforce_eager = true
max_model_len = 2048
max_num_seqs = 2
"""
PROMPT = "Once upon a time there was"
TOKENS = 16


class Pair:
    """A head and its follower, each on its machine."""

    def __init__(self, machines: tuple[Machine, Machine], model: Path, folder: Path) -> None:
        self._machines = machines
        self._folder = folder
        self.socket = folder / "head.sock"
        self._sessions: list[int] = []
        self._config = folder / "isthmus.toml"
        text = CONFIG.replace("/srv/models/large", str(model)) + SMALL
        self._config.write_text(text.replace("10.0.0.1", machines[0].address))

    def start(self) -> None:
        """Starts both, as their supervisors do."""
        self.head, self.follower = (
            self._program(command, machine)
            for command, machine in zip(COMMANDS, self._machines, strict=True)
        )

    def _program(self, command: str, machine: Machine) -> Program:
        command = command.replace("isthmus.toml", str(self._config))
        command = command.replace("127.0.0.1:50051", f"unix:{self.socket}")
        log = self._folder / f"log-{len(self._sessions)}"
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
        program = Program(
            ["-m", "launch", *shlex.split(command)],
            0,
            log,
            environment,
            # A session of its own, in which all of its processes stay.
            ("setsid", *machine.prefix),
        )
        self._sessions.append(program.process.pid)
        return program

    async def ended(self) -> None:
        """Returns once nothing of either program is left, what vLLM made included."""
        async with asyncio.timeout(30):
            while alive(self._sessions):
                await asyncio.sleep(0.1)
        assert [machine.shared_memory() for machine in self._machines] == ["", ""]

    async def stop(self) -> None:
        await self.head.stop()
        await self.follower.stop()
        await self.ended()

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            yield channel


@pytest.fixture(scope="module")
def model(smollm2_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("nodes") / "tiny"
    tiny_model.make(directory, tokenizer_of=smollm2_directory)
    # Its layers add so little that it repeats the last token, whatever a machine computes.
    weights = load_file(directory / "model.safetensors")
    louder = {
        name: weight * 20 if "layers" in name and weight.ndim == 2 else weight
        for name, weight in weights.items()
    }
    save_file(louder, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    """The output of the whole model, in one process and without vLLM."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = tokenizer(PROMPT, return_tensors="pt")
    made = network.generate(**tokens, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    new = made[0, tokens["input_ids"].shape[1] :]
    assert len(set(new.tolist())) > TOKENS / 2
    return str(tokenizer.decode(new))


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    with two_machines() as both:
        yield both


def request(tokens: int) -> GenerateRequest:
    wanted = GenerateRequest(model="large", text=PROMPT)
    wanted.sampling.temperature = 0.0
    wanted.stopping.max_tokens = tokens
    wanted.stopping.ignore_eos = True
    return wanted


async def status(channel: grpc.aio.Channel) -> int:
    """The status of the model; NOT_SERVING, too, while nothing listens."""
    try:
        found = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="large"), timeout=5
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return int(health_pb2.HealthCheckResponse.NOT_SERVING)
    return int(found.status)


async def serves(pair: Pair, channel: grpc.aio.Channel) -> None:
    async with asyncio.timeout(300):
        while await status(channel) != health_pb2.HealthCheckResponse.SERVING:
            assert pair.head.process.poll() is None, pair.head.log.read_text()
            assert pair.follower.process.poll() is None, pair.follower.log.read_text()
            await asyncio.sleep(0.2)


async def answer(channel: grpc.aio.Channel) -> str:
    parts = InferenceServiceStub(channel).Generate(request(TOKENS), timeout=60)
    return "".join([delta.text async for part in parts for delta in part.deltas])


@pytest.mark.timeout(600)  # Two starts of two vLLMs.
async def test_model_on_two_machines(
    model: Path, expected: str, machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    pair = Pair(machines, model, tmp_path)
    pair.start()
    try:
        async with pair.channel() as channel:
            await serves(pair, channel)
            assert await answer(channel) == expected
            await follower_dies(pair, channel, machines[1].address)
        pair.start()
        async with pair.channel() as channel:
            await serves(pair, channel)
            assert await answer(channel) == expected
            pair.head.send(signal.SIGTERM)
            assert await pair.head.ended(40) == 0
            assert await pair.follower.ended(20) == 1
            assert "the head at" in pair.follower.log.read_text()
        await pair.ended()
    finally:
        await pair.stop()


async def follower_dies(pair: Pair, channel: grpc.aio.Channel, address: str) -> None:
    """Kills the follower in a call: the call, the health, the log and the head's end say so."""
    call = InferenceServiceStub(channel).Generate(request(1900), timeout=60)
    async for part in call:
        if part.deltas:
            break
    pair.follower.send(signal.SIGKILL)
    told = f"large: follower 1 ({address}) has ended"
    await eventually(lambda: told in pair.head.log.read_text(), 5)
    async with asyncio.timeout(5):
        while await status(channel) == health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async with asyncio.timeout(5):
            async for _ in call:
                pass
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await pair.follower.ended() == -signal.SIGKILL
    assert await pair.head.ended(30) == 1
    await pair.ended()
