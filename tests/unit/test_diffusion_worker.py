"""The worker of the diffusion engine, with a scripted pipeline and a clock that the test moves."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as Pillow

from inference.engines.base import EngineDeadError, EngineHealth
from inference.engines.diffusion_pipeline import ImageJob
from inference.engines.diffusion_worker import (
    DaemonThread,
    DiffusionWorker,
    PreparedImage,
    Run,
)
from inference.engines.image_requests import Size
from inference.errors import InferenceError, internal_error
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse

SIZE = Size(8, 8)
JOB = ImageJob(
    prompt="x",
    negative_prompt=None,
    size=SIZE,
    steps=4,
    guidance_scale=None,
    guidance_rescale=None,
)


class DeviceError(Exception):
    """The GPU cannot be used any more."""


class Pipeline:
    """Makes grey images in steps, and is the clock; the test decides what happens."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step_seconds = 1.0
        self.steps = 4
        self.calls: list[tuple[ImageJob, list[int], bool]] = []
        self.errors: list[Exception | None] = []
        self.previewer = SimpleNamespace(supported=True, images=self._previews)
        self.preview_error: Exception | None = None
        self.previewed: list[tuple[object, Size]] = []
        self.missing_preview: int | None = None
        self.batch = 0

    def monotonic(self) -> float:
        return self.now

    def generate(
        self, job: ImageJob, seeds: Any, on_step: Any, *, previews: bool
    ) -> list[Pillow.Image]:
        self.calls.append((job, list(seeds), previews))
        self.batch = len(seeds)
        error = self.errors.pop(0) if self.errors else None
        for step in range(1, self.steps + 1):
            self.now += self.step_seconds
            on_step(step, self.steps, f"latents {step}")
            if error is not None:
                raise error
        return [Pillow.new("RGB", (8, 8), (seed % 256,) * 3) for seed in seeds]

    def _previews(self, latents: object, size: Size) -> Any:
        self.previewed.append((latents, size))
        if self.preview_error is not None:
            raise self.preview_error
        for index in range(self.batch):
            missing = index == self.missing_preview
            yield None if missing else Pillow.new("RGB", (8, 8), (100, 0, 0))


class Engine:
    """A worker and what it emits."""

    def __init__(self, pipeline: Any, images_a_batch: float) -> None:
        self.pipeline: Pipeline = pipeline
        self.worker = DiffusionWorker(pipeline, images_a_batch * SIZE.pixels)
        self.emitted: list[GenerateImageResponse] = []

    def prepared(
        self, images: int = 1, previews: int = 0, size: Size = SIZE, job: ImageJob = JOB
    ) -> PreparedImage:
        request = GenerateImageRequest(partial_images=previews)
        seeds = [10 * (n + 1) for n in range(images)]
        return PreparedImage(request=request, prompt_tokens=1, job=job, size=size, seeds=seeds)

    def run(self, prepared: PreparedImage) -> Exception | None:
        return self.worker.run(Run(prepared, self.emitted.append))

    def seen(self) -> list[str]:
        """The emitted parts, as short texts."""
        lines = []
        for message in self.emitted:
            if message.HasField("progress"):
                lines.append(f"step {message.progress.step}/{message.progress.total_steps}")
            elif message.HasField("partial_image"):
                part = message.partial_image
                lines.append(f"preview {part.partial_index} of {part.index}, seed {part.seed}")
            else:
                lines.append(f"image {message.image.index}, seed {message.image.seed}")
        return lines


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The light environment has no torch, which only these three functions need."""
    module = "inference.engines.diffusion_worker"
    monkeypatch.setattr(f"{module}.ran_out_of_memory", lambda e: isinstance(e, MemoryError))
    monkeypatch.setattr(f"{module}.broke_the_device", lambda e: isinstance(e, DeviceError))
    monkeypatch.setattr(f"{module}.release_memory", released.append)
    released.clear()


released: list[Exception] = []


def engine(monkeypatch: pytest.MonkeyPatch, images_a_batch: float = 2) -> Engine:
    pipeline = Pipeline()
    monkeypatch.setattr("inference.engines.diffusion_worker.time", pipeline)
    monkeypatch.setattr("inference.engines.memory_faults.time", pipeline)
    return Engine(pipeline, images_a_batch)


# Emitted progress and images


def test_steps_and_images_are_emitted_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    assert made.run(made.prepared()) is None
    assert made.seen() == ["step 1/4", "step 2/4", "step 3/4", "step 4/4", "image 0, seed 10"]
    assert made.pipeline.calls == [(JOB, [10], False)]
    assert made.prepared().max_output_tokens == 0
    assert made.worker.health().generated_tokens == 1
    image = made.emitted[-1].image
    assert (image.mime_type, image.width, image.height) == ("image/png", 8, 8)


def test_images_beyond_a_batch_are_made_in_further_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(monkeypatch)
    made.pipeline.steps = 2
    assert made.run(made.prepared(images=5)) is None
    assert [seeds for _, seeds, _ in made.pipeline.calls] == [[10, 20], [30, 40], [50]]
    assert made.seen() == [
        *("step 1/6", "step 2/6", "image 0, seed 10", "image 1, seed 20"),
        *("step 3/6", "step 4/6", "image 2, seed 30", "image 3, seed 40"),
        *("step 5/6", "step 6/6", "image 4, seed 50"),
    ]
    assert made.worker.health().generated_tokens == 5


@pytest.mark.parametrize(("fits", "batches"), [(0.5, [1, 1, 1]), (1, [1, 1, 1]), (2.9, [2, 1])])
def test_batch_holds_whole_images_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, fits: float, batches: list[int]
) -> None:
    made = engine(monkeypatch, fits)
    made.run(made.prepared(images=3))
    assert [len(seeds) for _, seeds, _ in made.pipeline.calls] == batches


def test_previews_are_spread_over_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.pipeline.steps = 6
    assert made.run(made.prepared(images=3, previews=2)) is None
    assert made.pipeline.calls[0][2]
    assert [line for line in made.seen() if not line.startswith("step")] == [
        *("preview 0 of 0, seed 10", "preview 0 of 1, seed 20"),
        *("preview 1 of 0, seed 10", "preview 1 of 1, seed 20"),
        *("image 0, seed 10", "image 1, seed 20"),
        *("preview 0 of 2, seed 30", "preview 1 of 2, seed 30", "image 2, seed 30"),
    ]
    assert made.pipeline.previewed == [(f"latents {n}", SIZE) for n in (2, 4)] * 2
    assert made.seen().index("preview 0 of 0, seed 10") == 2


def test_preview_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.pipeline.missing_preview = 0
    assert made.run(made.prepared(images=2, previews=1)) is None
    assert made.pipeline.calls[0][2]
    previews = [line for line in made.seen() if line.startswith("preview")]
    assert previews == ["preview 0 of 1, seed 20"]


@pytest.mark.parametrize("stops_at", ["step 2/4", "preview 0 of 0, seed 10", "image 0, seed 10"])
def test_stopped_run_ends_before_its_next_step(
    monkeypatch: pytest.MonkeyPatch, stops_at: str
) -> None:
    made = engine(monkeypatch)

    def emit(message: GenerateImageResponse) -> None:
        made.emitted.append(message)
        if made.seen()[-1] == stops_at:
            run.stopped.set()

    run = Run(made.prepared(images=2, previews=1), emit)
    assert made.worker.run(run) is None
    after = made.seen()[made.seen().index(stops_at) + 1 :]
    assert after == []
    assert made.worker.health().alive
    assert not made.worker.health().running


def test_run_that_was_stopped_before_it_began_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(monkeypatch)
    run = Run(made.prepared(), made.emitted.append)
    run.stopped.set()
    assert made.worker.run(run) is None
    assert made.pipeline.calls == []


# Health


def test_step_is_stuck_after_a_minute_or_ten_times_the_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(monkeypatch)
    assert made.worker.health() == EngineHealth(True, 0, 0.0, 0, 60.0)
    seen: list[EngineHealth] = []

    def emit(message: GenerateImageResponse) -> None:
        made.pipeline.now += 2
        seen.append(made.worker.health())

    made.pipeline.now += 500
    made.worker.run(Run(made.prepared(), emit))
    assert {(h.alive, h.running, h.last_step_age_seconds) for h in seen} == {(True, 1, 2.0)}
    assert {h.slow_step_seconds for h in seen} == {60.0}
    made.pipeline.now += 500
    assert made.worker.health() == EngineHealth(True, 0, 0.0, 1, 60.0)
    made.pipeline.step_seconds = 100.0
    made.run(made.prepared())
    # The next step, which made the image, took no time.
    assert made.worker.health().slow_step_seconds == pytest.approx(1000 * 0.95)
    made.pipeline.step_seconds = 1.0
    for _ in range(20):
        made.run(made.prepared())
    assert made.worker.health().slow_step_seconds == 60.0


def test_warm_up_measures_an_image_and_tries_a_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.pipeline.step_seconds = 5.0
    made.worker.warm_up(JOB)
    assert made.pipeline.calls == [(JOB, [0], True)]
    assert made.pipeline.previewed[0] == ("latents 1", SIZE)
    assert made.pipeline.previewer.supported
    assert made.worker.health().slow_step_seconds == 200.0
    assert made.worker.health().generated_tokens == 0


def test_pipeline_whose_preview_fails_has_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine(monkeypatch)
    made.pipeline.preview_error = RuntimeError()
    made.worker.warm_up(JOB)
    assert not made.pipeline.previewer.supported
    assert len(made.pipeline.previewed) == 1
    assert caplog.messages == ["this pipeline has no previews: decoding failed"]
    assert caplog.records[0].exc_info


def test_pipeline_without_previews_is_not_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.pipeline.previewer.supported = False
    made.worker.warm_up(JOB)
    assert made.pipeline.calls == [(JOB, [0], False)]
    assert made.pipeline.previewed == []


def test_warm_up_may_be_flagged_but_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.pipeline.errors = [InferenceError("content_policy_violation", "x")]
    made.worker.warm_up(JOB)
    made.pipeline.errors = [RuntimeError("broken")]
    with pytest.raises(RuntimeError, match="broken"):
        made.worker.warm_up(JOB)


# Failures


def test_refusal_is_the_callers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    refusal = InferenceError("content_policy_violation", "x")
    made.pipeline.errors = [refusal]
    assert made.run(made.prepared()) is refusal
    assert made.worker.health().alive
    assert caplog.messages == []
    assert len(made.pipeline.calls) == 2


def test_failure_of_one_request_leaves_the_engine_alive(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [RuntimeError("bad")]
    error = made.run(made.prepared())
    assert isinstance(error, InferenceError)
    assert (error.reason, error.message) == ("server_error", internal_error().message)
    assert made.worker.health().alive
    assert not made.worker.health().running
    # It tried the image of the warm-up, without previews.
    assert made.pipeline.calls[2:] == [(JOB, [0], False)]
    assert caplog.messages == ["making images failed"]
    assert released == []


def test_failure_before_any_warm_up_leaves_the_engine_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(monkeypatch)
    made.pipeline.errors = [RuntimeError("bad")]
    assert isinstance(made.run(made.prepared()), InferenceError)
    assert made.worker.health().alive
    assert len(made.pipeline.calls) == 1


def test_engine_that_fails_for_the_image_of_the_warm_up_is_dead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [RuntimeError("bad"), RuntimeError("bad")]
    assert isinstance(made.run(made.prepared()), EngineDeadError)
    assert not made.worker.health().alive
    assert caplog.messages == [
        "making images failed",
        "the model fails for an image that it has made before",
    ]


def test_flagged_image_of_the_warm_up_shows_that_the_engine_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [RuntimeError("bad"), InferenceError("content_policy_violation", "x")]
    assert isinstance(made.run(made.prepared()), InferenceError)
    assert made.worker.health().alive


def test_broken_device_is_dead_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [DeviceError()]
    error = made.run(made.prepared())
    assert isinstance(error, EngineDeadError)
    assert str(error) == "the device failed"
    assert not made.worker.health().alive
    assert len(made.pipeline.calls) == 2


def test_second_lack_of_memory_within_a_minute_ends_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [first := MemoryError("full"), None, MemoryError(), MemoryError()]
    error = made.run(made.prepared())
    assert isinstance(error, InferenceError)
    assert (error.reason, error.retry_after_ms) == ("out_of_memory", 5000)
    assert "ask for fewer or smaller pictures." in error.message
    assert released == [first]
    assert caplog.messages == ["out of memory: full"]
    made.pipeline.now += 60
    assert made.run(made.prepared()) is None
    assert isinstance(made.run(made.prepared()), InferenceError)
    assert made.worker.health().alive
    assert isinstance(made.run(made.prepared()), EngineDeadError)
    assert not made.worker.health().alive


def test_image_of_the_warm_up_has_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [MemoryError(), MemoryError()]
    assert isinstance(made.run(made.prepared()), InferenceError)
    assert isinstance(made.run(made.prepared()), EngineDeadError)


def test_lack_of_memory_for_more_than_ever_fitted_never_ends_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine(monkeypatch)
    made.worker.warm_up(JOB)
    made.pipeline.errors = [MemoryError()] * 3
    for _ in range(3):
        assert isinstance(made.run(made.prepared(images=2)), InferenceError)
        assert made.worker.health().alive
    assert made.run(made.prepared(images=2)) is None  # now this has fitted
    made.pipeline.errors = [MemoryError()] * 2
    assert isinstance(made.run(made.prepared(images=2)), InferenceError)
    assert isinstance(made.run(made.prepared(images=2)), EngineDeadError)


# DaemonThread


def test_calls_run_one_after_another_in_one_thread() -> None:
    thread = DaemonThread("images")
    gate = threading.Event()
    order: list[tuple[str, str, bool]] = []

    def note(name: str, *, wait: bool = False) -> str:
        if wait:
            gate.wait(10)
        here = threading.current_thread()
        order.append((name, here.name, here.daemon))
        return name

    first = thread.submit(note, "a", wait=True)
    second = thread.submit(note, "b")
    assert not second.done()
    gate.set()
    assert (first.result(10), second.result(10)) == ("a", "b")
    assert order == [("a", "images", True), ("b", "images", True)]
    thread.shutdown()


def test_exception_of_a_call_is_its_result_and_the_thread_goes_on() -> None:
    thread = DaemonThread("images")

    def fail() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        thread.submit(fail).result(10)
    assert thread.submit(lambda: 1).result(10) == 1
    thread.shutdown()


def test_cancelled_call_does_not_run() -> None:
    thread = DaemonThread("images")
    gate = threading.Event()
    thread.submit(gate.wait, 10)
    ran: list[int] = []
    cancelled: Future[Any] = thread.submit(ran.append, 1)
    kept = thread.submit(ran.append, 2)
    assert cancelled.cancel()
    gate.set()
    kept.result(10)
    assert ran == [2]
    thread.shutdown()


def test_shutdown_ends_the_thread_after_what_was_submitted() -> None:
    thread = DaemonThread("to be ended")
    gate = threading.Event()
    thread.submit(gate.wait, 10)
    last = thread.submit(lambda: 1)
    thread.shutdown()
    gate.set()
    assert last.result(10) == 1
    for running in threading.enumerate():
        if running.name == "to be ended":
            running.join(10)
    assert "to be ended" not in [running.name for running in threading.enumerate()]


def test_thread_keeps_nothing_of_a_call_that_has_ended() -> None:
    import gc
    import weakref

    class Large:
        pass

    thread = DaemonThread("images")
    large = Large()
    seen = weakref.ref(large)
    thread.submit(lambda _: None, large).result(10)
    del large
    for _ in range(1000):
        gc.collect()
        if seen() is None:
            break
        threading.Event().wait(0.001)
    assert seen() is None
    thread.shutdown()
