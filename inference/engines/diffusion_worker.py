"""What the diffusion engine does in its thread: one request after another, step by step."""

from __future__ import annotations

import gc
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from inference.engines.base import EngineDeadError, EngineHealth
from inference.engines.diffusion_pipeline import Drawing, Latents, TextToImage
from inference.engines.image_requests import deliver
from inference.engines.image_size import Size, preview_steps
from inference.engines.memory_faults import (
    MemoryFaults,
    broke_the_device,
    ran_out_of_memory,
)
from inference.errors import InferenceError, internal_error
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Image, Progress

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_log = logging.getLogger(__name__)

# What one step may take at least before it counts as stuck; ten times the longest seen, if more.
_SLOW_STEP_SECONDS: Final = 60.0
_FORGETTING: Final = 0.95


class _StoppedError(Exception):
    """Leaves the pipeline between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedDrawing:
    """A request that the pipeline can do.

    Attributes:
        request: Says how the pictures are delivered.
        size: Of the pictures that the caller gets; `drawing` has the size to draw at.
        seeds: One a picture.
    """

    request: GenerateImageRequest
    prompt_tokens: int
    max_output_tokens: int = 0
    drawing: Drawing
    size: Size
    seeds: Sequence[int]


@dataclass(slots=True)
class Job:
    """A request at work: where its output goes, and whether anybody still wants it."""

    prepared: PreparedDrawing
    emit: Callable[[GenerateImageResponse], object]
    stopped: threading.Event = field(default_factory=threading.Event)


class DiffusionWorker:
    """Draws; all but `health` is called in one thread.

    Args:
        pipeline: What it draws with.
        batch_pixels: The most that is drawn together, if more than one picture.
    """

    def __init__(self, pipeline: TextToImage, batch_pixels: float) -> None:
        self._pipeline = pipeline
        self._batch_pixels = batch_pixels
        self._memory = MemoryFaults()
        self._running = False
        self._alive = True
        self._drawn = 0
        self._last_step = time.monotonic()
        self._longest_step = 0.0

    def health(self) -> EngineHealth:
        """Counts pictures where other engines count tokens."""
        age = time.monotonic() - self._last_step if self._running else 0.0
        slow = max(_SLOW_STEP_SECONDS, 10 * self._longest_step)
        return EngineHealth(self._alive, int(self._running), age, self._drawn, slow)

    def warm_up(self, drawing: Drawing) -> None:
        """Learns how long a step takes, and whether unfinished pictures can be decoded."""
        previewer = self._pipeline.previewer
        began = time.monotonic()

        def preview(_step: int, _total: int, latents: Latents) -> None:
            try:
                if previewer.able:
                    list(previewer.pictures(latents, drawing.size))
            except Exception:
                _log.warning("no previews of this pipeline", exc_info=True)
                previewer.able = False

        # What a few steps draw may well be what a safety checker objects to.
        with suppress(InferenceError):
            self._pipeline.draw(drawing, [0], preview, previews=previewer.able)
        self._longest_step = time.monotonic() - began

    def run(self, job: Job) -> Exception | None:
        """Draws all pictures of a request, and returns how it failed; None when stopped, too."""
        self._last_step = time.monotonic()
        self._running = True
        try:
            self._draw(job)
        except _StoppedError:
            pass
        except InferenceError as error:
            return error
        except Exception as error:
            return self._fault(error)
        finally:
            self._running = False
        return None

    def _fault(self, error: Exception) -> Exception:
        if not ran_out_of_memory(error):
            _log.error("drawing failed", exc_info=error)
            self._alive = not broke_the_device(error)
            return internal_error() if self._alive else EngineDeadError("the device failed")
        _log.error("out of memory: %s", error)
        # The frames hold what filled the memory.
        traceback.clear_frames(error.__traceback__)
        free_memory()
        told = self._memory.error()
        self._alive = not isinstance(told, EngineDeadError)
        return told

    def _draw(self, job: Job) -> None:
        prepared = job.prepared
        drawing, seeds = prepared.drawing, prepared.seeds
        previews = prepared.request.partial_images > 0
        room = max(1, int(self._batch_pixels // drawing.size.pixels))
        batches = range(0, len(seeds), room)
        for batch, start in enumerate(batches):
            self._step(job)

            def on_step(
                step: int, total: int, latents: Latents, batch: int = batch, start: int = start
            ) -> None:
                self._step(job)
                progress = Progress(step=batch * total + step, total_steps=len(batches) * total)
                job.emit(GenerateImageResponse(progress=progress))
                self._preview(job, start, step, total, latents)

            pictures = self._pipeline.draw(
                drawing, seeds[start : start + room], on_step, previews=previews
            )
            for index, picture in enumerate(pictures, start):
                self._step(job)
                image = _delivered(prepared, picture, index)
                job.emit(GenerateImageResponse(image=image))
                self._drawn += 1

    def _step(self, job: Job) -> None:
        now = time.monotonic()
        # One long pause (a machine that slept) is forgotten after some dozens of steps.
        self._longest_step = max(_FORGETTING * self._longest_step, now - self._last_step)
        self._last_step = now
        if job.stopped.is_set():
            raise _StoppedError

    def _preview(self, job: Job, start: int, step: int, total: int, latents: Latents) -> None:
        due = preview_steps(total, job.prepared.request.partial_images)
        if step not in due:
            return
        pictures = self._pipeline.previewer.pictures(latents, job.prepared.drawing.size)
        for index, picture in enumerate(pictures, start):
            self._step(job)
            if picture is not None:
                image = _delivered(job.prepared, picture, index)
                image.partial_index = due.index(step)
                job.emit(GenerateImageResponse(partial_image=image))


def _delivered(prepared: PreparedDrawing, picture: Picture, index: int) -> Image:
    image = deliver(picture, prepared.size, prepared.request)
    image.seed = prepared.seeds[index]
    image.index = index
    return image


def free_memory() -> None:
    """Gives back what nobody uses."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
