"""Measures what images cost: `python -m bench.images`.

An inference server with the embedded image model and its client both run in this process, so that
the longest gap of the event loop includes the client's work.
"""

from __future__ import annotations

import asyncio
import os
import time

import grpc

from bench import section
from inference.config import ModelConfig, ServerConfig
from inference.server import InferenceServer
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from launch.embedded import default_cache_directory, prepare_image_model

REPEATS = 5
# Denoising steps of an image, as in the built-in configuration.
STEPS = 20
# Sleep between two looks at the event loop's delay.
TICK_SECONDS = 0.002
# The largest gRPC message that the client accepts.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class LoopGaps:
    """The longest time for which the event loop did not run, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.longest = max(self.longest, time.perf_counter() - before - TICK_SECONDS)

    def stop(self) -> float:
        self._task.cancel()
        return self.longest


def request(side: int, **fields: int) -> GenerateImageRequest:
    return GenerateImageRequest(
        model="emoji", prompt="a red heart", width=side, height=side, seed=1, **fields
    )


async def generate(stub: InferenceServiceStub, **fields: int) -> tuple[float, int]:
    """Runs one request; returns its seconds and the bytes of its messages."""
    began, size = time.perf_counter(), 0
    async for message in stub.GenerateImage(request(**fields)):
        size += message.ByteSize()
    return time.perf_counter() - began, size


async def steps_after_cancel(stub: InferenceServiceStub, engine: object) -> int:
    """Cancels a call and returns how many passes through the UNet begin after that."""
    unet = engine._pipeline._pipe.unet  # type: ignore[attr-defined]
    begun: list[float] = []
    hook = unet.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
    call = stub.GenerateImage(request(128, steps=150))
    message: GenerateImageResponse
    async for message in call:
        if message.progress.step == 10:
            break
    call.cancel()
    cancelled_at = time.perf_counter()
    await asyncio.sleep(2)
    hook.remove()
    return sum(at > cancelled_at for at in begun)


async def measure(repeats: int) -> list[tuple[str, str, str]]:
    model = ModelConfig(
        id="emoji",
        engine="diffusers",
        source=str(prepare_image_model(default_cache_directory(), print)),
        engine_args={"steps": STEPS, "guidance_scale": 4.0, "guidance_rescale": 0.5},
    )
    server = InferenceServer(ServerConfig(listen="127.0.0.1:0", models=(model,)))
    began = time.perf_counter()
    await server.start()
    await server.load()
    loaded = time.perf_counter() - began
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        stub = InferenceServiceStub(channel)
        first, _ = await generate(stub, side=1024)
        rows = [
            ("load and warm up", f"{loaded:.1f} s", ""),
            ("first 1024x1024", f"{first:.2f} s", "10 s"),
        ]
        for name, fields in (
            ("128x128", {"side": 128}),
            ("1024x1024", {"side": 1024}),
            ("1024x1024, 3 previews", {"side": 1024, "partial_images": 3}),
            ("4 of 1024x1024", {"side": 1024, "n": 4}),
        ):
            gaps = LoopGaps()
            seconds = sorted([(await generate(stub, **fields))[0] for _ in range(repeats)])
            rows.append((name, f"{seconds[repeats // 2]:.2f} s", ""))
            rows.append(("  longest gap of the loop", f"{1000 * gaps.stop():.0f} ms", "50 ms"))
        late_steps = await steps_after_cancel(stub, server.registry.models[0].engine)
        rows.append(("steps begun after a cancel", str(late_steps), "1"))
    await server.close()
    return rows


def main() -> None:
    """Measures, writes the rows and prints the table."""
    options = section.parser("images", __doc__, repeats=REPEATS).parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = asyncio.run(measure(1 if options.quick else options.repeats))
    section.write(options, {"rows": rows})
    for what, value, bar in [("", "median", "bar"), *rows]:
        print(f"{what:30} {value:>9} {bar:>6}")


if __name__ == "__main__":
    main()
