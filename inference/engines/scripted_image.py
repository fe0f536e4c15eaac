"""A deterministic image engine without a model: its images are gradients, brighter with each step.

`engine_args` sets duration and failures; for one request, a JSON object as its prompt does:

    {"steps": 5, "fail": "mid"}
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from contract.limits import MAX_IMAGES
from inference.config import ModelConfig
from inference.engines import engine_args
from inference.engines.base import Emit, EngineDeadError, EngineHealth, ImageEngine, Report, Terms
from inference.engines.image_requests import (
    Size,
    deliver,
    image_seed,
    preview_steps,
    requested_size,
)
from inference.engines.memory_faults import MemoryFaults
from inference.engines.script import HangError, ScriptedFaultError, overridden, raise_fault
from inference.errors import prompt_too_long, unsafe_image
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Image, Progress
from isthmus.v1.models_pb2 import ImageCapabilities, Model, ModelKind
from isthmus.v1.usage_pb2 import Usage

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


class ImageScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The script of an image engine.

    Attributes:
        steps: Steps of a request that does not set them.
        step_seconds: The duration of a step.
        width, height: The native size, in pixels.
        noise: Whether images are noise, whose PNG is as large as its pixels.
        max_prompt_words: Words of a prompt; longer prompts are refused.
        fail: "start" raises before the first step, "late" after the last image, "unsafe" like a
            safety checker before the first image. After two steps "mid" raises, "hang" stops
            without an end, "die" raises EngineDeadError, "exit" kills the process, "memory" runs
            out of memory.
    """

    steps: int = 4
    step_seconds: float = 0.0
    width: int = 64
    height: int = 64
    noise: bool = False
    max_prompt_words: int = 64
    fail: Literal["start", "mid", "late", "hang", "die", "exit", "memory", "unsafe"] | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: GenerateImageRequest
    script: ImageScript
    prompt_tokens: int
    max_output_tokens: int = 0


class ScriptedImageEngine(ImageEngine):
    """An image engine that follows its script."""

    def __init__(self, config: ModelConfig) -> None:
        self._script = engine_args.settings(config, ImageScript)
        self._running = 0
        self._last_step = time.monotonic()
        self._alive = True
        self._images_made = 0
        self._memory = MemoryFaults()
        self.steps_done = 0
        self.system_fingerprint = "fp_scripted"
        self.model = Model(
            kind=ModelKind.MODEL_KIND_IMAGE,
            created=1_700_000_000,
            image=ImageCapabilities(
                native_width=self._script.width,
                native_height=self._script.height,
                max_images=MAX_IMAGES,
                default_steps=self._script.steps,
            ),
        )

    async def start(self, report: Report) -> None:
        report("ready")

    def health(self) -> EngineHealth:
        age = time.monotonic() - self._last_step if self._running else 0.0
        return EngineHealth(self._alive, self._running, age, self._images_made)

    async def close(self) -> None:
        """Does nothing: there is nothing to free."""

    async def prepare(self, request: GenerateImageRequest, _terms: Terms) -> _Prepared:
        """Counts words as tokens; a prompt that is a JSON object overrides the script."""
        script = overridden(self._script, request.prompt, "prompt")
        words = len(request.prompt.split())
        if words > script.max_prompt_words:
            raise prompt_too_long("prompt", script.max_prompt_words, words)
        return _Prepared(request, script, words)

    async def generate(self, prepared: _Prepared, emit: Emit) -> None:
        """Generates all images of the request in one batch."""
        script, request = prepared.script, prepared.request
        steps = request.steps or script.steps
        count = request.n or 1
        previews = preview_steps(steps, request.partial_images)
        self._running += 1
        self._last_step = time.monotonic()
        try:
            for step in range(1, steps + 1):
                await self._fault(script, step)
                await asyncio.sleep(script.step_seconds)
                self._last_step = time.monotonic()
                self.steps_done += 1
                emit(GenerateImageResponse(progress=Progress(step=step, total_steps=steps)))
                if step in previews:
                    for index in range(count):
                        image = await self._image(request, index, step / steps)
                        image.partial_index = previews.index(step)
                        emit(GenerateImageResponse(partial_image=image))
            if script.fail == "unsafe":
                raise unsafe_image()
            for index in range(count):
                emit(GenerateImageResponse(image=await self._image(request, index, 1.0)))
                self._images_made += 1
            if script.fail == "late":
                raise ScriptedFaultError("canary-late")
            emit(GenerateImageResponse(usage=Usage(prompt_tokens=prepared.prompt_tokens)))
        finally:
            self._running -= 1

    async def _image(self, request: GenerateImageRequest, index: int, brightness: float) -> Image:
        seed = image_seed(request.seed, index)
        native = Size(self._script.width, self._script.height)
        size = requested_size(request, native)
        picture = _noise(native) if self._script.noise else _gradient(native, seed, brightness)
        image = await asyncio.to_thread(deliver, picture, size, request)
        image.seed = seed
        image.index = index
        return image

    async def _fault(self, script: ImageScript, step: int) -> None:
        if script.fail == "memory" and step == 3:
            raise self._memory.error("fewer or smaller pictures")
        try:
            raise_fault(script.fail, step - 1)
        except HangError:
            await asyncio.Event().wait()
        except EngineDeadError:
            self._alive = False
            raise


def _gradient(size: Size, seed: int, brightness: float) -> PillowImage:
    import PIL.Image

    shade = PIL.Image.linear_gradient("L").resize((size.width, size.height))
    colours = [brightness * (seed >> shift & 255) / 255 for shift in (0, 8, 16)]
    return PIL.Image.merge("RGB", [shade.point(lambda v, c=c: int(v * c)) for c in colours])


def _noise(size: Size) -> PillowImage:
    import PIL.Image

    return PIL.Image.frombytes(
        "RGB", (size.width, size.height), os.urandom(size.width * size.height * 3)
    )
