"""The diffusion engine's thread and its worker, which runs one request after another, in steps.

A step is one denoising step of a batch, one decoded preview or one encoded image. Before each, the
worker checks whether the run was stopped and records the time. So a cancelled request frees the
model within one step. Steps last from milliseconds to minutes: in `health`, a step counts as stuck
after 60 s or ten times the longest previous step, whichever is more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from inference.engines.base import EngineDeadError, EngineHealth
from inference.engines.diffusion_pipeline import ImageJob, Latents, TextToImage
from inference.engines.image_requests import Size, deliver, preview_steps
from inference.engines.memory_faults import (
    MemoryFaults,
    broke_the_device,
    ran_out_of_memory,
    release_memory,
)
from inference.errors import InferenceError, internal_error
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Image, Progress

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_log = logging.getLogger(__name__)

# Minimum time after which a step counts as stuck.
_SLOW_STEP_SECONDS: Final = 60.0
# Factor by which the recorded longest step shrinks with each step: the effect of one long pause (a
# machine that slept) fades within some dozens of steps.
_LONGEST_STEP_DECAY: Final = 0.95


class DaemonThread(Executor):
    """An executor with one thread, which runs one call after another.

    Python waits for the threads of a ThreadPoolExecutor when it exits, and a model's step may take
    minutes; it does not wait for this thread.
    """

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._main, name=name, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._work.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Ends the thread after all submitted calls; does not wait for it."""
        self._work.put(None)

    def _main(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            # The next `get` may block for long while these names keep the call's objects alive.
            del work, future, call


class _StoppedError(Exception):
    """Ends the pipeline's loop between two steps, because the run was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """A checked request, with a seed (signed 64 bits) per image.

    The model works at `job.size`; the caller gets images of `size`. Images have no output tokens.
    """

    request: GenerateImageRequest
    prompt_tokens: int
    max_output_tokens: int = 0
    job: ImageJob
    size: Size
    seeds: Sequence[int]


@dataclass(slots=True)
class Run:
    """A request in the thread; any thread may set `stopped`, which ends it before its next step."""

    prepared: PreparedImage
    emit: Callable[[GenerateImageResponse], object]
    stopped: threading.Event = field(default_factory=threading.Event)


class DiffusionWorker:
    """Runs a pipeline; all methods except `health` are called in one thread.

    `batch_pixels` is the maximum of pixels in a batch of more than one image.
    """

    def __init__(self, pipeline: TextToImage, batch_pixels: float) -> None:
        self._pipeline = pipeline
        self._batch_pixels = batch_pixels
        self._memory = MemoryFaults()
        self._known_good: ImageJob | None = None
        self._running = False
        self._alive = True
        self._images_made = 0
        self._last_step = time.monotonic()
        self._longest_step = 0.0

    def health(self) -> EngineHealth:
        """The state; `generated_tokens` counts images."""
        age = time.monotonic() - self._last_step if self._running else 0.0
        slow = max(_SLOW_STEP_SECONDS, 10 * self._longest_step)
        return EngineHealth(self._alive, int(self._running), age, self._images_made, slow)

    def warm_up(self, job: ImageJob) -> None:
        """Generates one image to measure a step and to check whether previews work."""
        previewer = self._pipeline.previewer
        began = time.monotonic()

        def preview(_step: int, _total: int, latents: Latents) -> None:
            try:
                if previewer.supported:
                    list(previewer.images(latents, job.size))
            except Exception:
                _log.warning("this pipeline has no previews: decoding failed", exc_info=True)
                previewer.supported = False

        # A safety checker may flag the noise that two steps generate.
        with suppress(InferenceError):
            self._pipeline.generate(job, [0], preview, previews=previewer.supported)
        self._longest_step = time.monotonic() - began
        self._known_good = job
        self._memory.fitted(job.size.pixels)

    def run(self, run: Run) -> Exception | None:
        """Generates all images of a request; returns InferenceError or EngineDeadError, or None."""
        self._last_step = time.monotonic()
        self._running = True
        try:
            self._generate(run)
        except _StoppedError:
            pass
        except InferenceError as error:
            return error
        except Exception as error:
            return self._fault(error, run.prepared)
        finally:
            self._running = False
        return None

    def _fault(self, error: Exception, prepared: PreparedImage) -> Exception:
        if not ran_out_of_memory(error):
            _log.error("making images failed", exc_info=error)
            self._alive = not broke_the_device(error) and self._works()
            return internal_error() if self._alive else EngineDeadError("the device failed")
        _log.error("out of memory: %s", error)
        release_memory(error)
        pixels = self._batch_size(prepared) * prepared.job.size.pixels
        failure = self._memory.error("fewer or smaller pictures", pixels)
        self._alive = not isinstance(failure, EngineDeadError)
        return failure

    def _works(self) -> bool:
        """Whether the pipeline still makes the image of the warm-up."""
        if self._known_good is None:
            return True
        try:
            self._pipeline.generate(self._known_good, [0], lambda *_: None, previews=False)
        except InferenceError:
            return True  # A safety checker objected; the model works.
        except Exception:
            _log.exception("the model fails for an image that it has made before")
            return False
        return True

    def _generate(self, run: Run) -> None:
        prepared = run.prepared
        job, seeds = prepared.job, prepared.seeds
        previews = prepared.request.partial_images > 0
        batch_size = self._batch_size(prepared)
        batches = range(0, len(seeds), batch_size)
        for batch, start in enumerate(batches):
            self._step(run)

            def on_step(
                step: int, total: int, latents: Latents, batch: int = batch, start: int = start
            ) -> None:
                self._step(run)
                progress = Progress(step=batch * total + step, total_steps=len(batches) * total)
                run.emit(GenerateImageResponse(progress=progress))
                self._preview(run, start, step, total, latents)

            images = self._pipeline.generate(
                job, seeds[start : start + batch_size], on_step, previews=previews
            )
            for index, image in enumerate(images, start):
                self._step(run)
                run.emit(GenerateImageResponse(image=_encoded(prepared, image, index)))
                self._images_made += 1
        self._memory.fitted(batch_size * job.size.pixels)

    def _batch_size(self, prepared: PreparedImage) -> int:
        """Images of the request's largest batch."""
        fits = max(1, int(self._batch_pixels // prepared.job.size.pixels))
        return min(fits, len(prepared.seeds))

    def _step(self, run: Run) -> None:
        now = time.monotonic()
        self._longest_step = max(_LONGEST_STEP_DECAY * self._longest_step, now - self._last_step)
        self._last_step = now
        if run.stopped.is_set():
            raise _StoppedError

    def _preview(self, run: Run, start: int, step: int, total: int, latents: Latents) -> None:
        due = preview_steps(total, run.prepared.request.partial_images)
        if step not in due:
            return
        images = self._pipeline.previewer.images(latents, run.prepared.job.size)
        for index, image in enumerate(images, start):
            self._step(run)
            if image is not None:
                preview = _encoded(run.prepared, image, index)
                preview.partial_index = due.index(step)
                run.emit(GenerateImageResponse(partial_image=preview))


def _encoded(prepared: PreparedImage, image: PillowImage, index: int) -> Image:
    message = deliver(image, prepared.size, prepared.request)
    message.seed = prepared.seeds[index]
    message.index = index
    return message
