"""The diffusion engine on pipelines of the common architectures, with random weights."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from PIL import Image as PillowImage

from inference.config import ModelConfig
from inference.engines.base import EngineDeadError, Prepared, Terms
from inference.engines.diffusion_engine import DiffusersEngine
from inference.errors import InferenceError
from inference.outbox import MessageOutbox
from inference.registry import Registry, ServedModel
from inference.rpc import CallContext
from inference.serve import run
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse, Image, ImageFormat
from keys import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and diffusers warn on import
    import torch
    from diffusers import AutoencoderKL, LCMScheduler

    from tests.engines import tiny_pipelines as tiny

# diffusers converts tensors to numpy in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sdxl-solver": lambda directory: tiny.stable_diffusion_xl(directory, solver=True),
    "sd3": tiny.stable_diffusion_3,
}


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pipeline directory for each architecture in MAKERS."""
    root = tmp_path_factory.mktemp("pipelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: make(root / name) for name, make in MAKERS.items()}


async def start(directory: Path, **engine_args: Any) -> DiffusersEngine:
    config = ModelConfig(id="m", engine="diffusers", source=str(directory), engine_args=engine_args)
    engine = DiffusersEngine(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await engine.start(lambda _: None)
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(MAKERS))
async def any_engine(
    request: pytest.FixtureRequest, directories: dict[str, Path]
) -> AsyncIterator[DiffusersEngine]:
    engine = await start(directories[request.param], steps=3)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(directories: dict[str, Path]) -> AsyncIterator[DiffusersEngine]:
    engine = await start(directories["sd"], steps=3, guidance_scale=3.0, guidance_rescale=0.5)
    yield engine
    await engine.close()
    await engine.close()
    assert not engine.health().alive


def asking(**fields: Any) -> GenerateImageRequest:
    return GenerateImageRequest(**{"prompt": "a red heart", "seed": 1} | fields)


async def prepare(engine: DiffusersEngine, request: GenerateImageRequest) -> Prepared:
    return await engine.prepare(request, Terms(context_length=0))


async def generated(
    engine: DiffusersEngine, prepared: Prepared
) -> AsyncGenerator[GenerateImageResponse, None]:
    """Yields the output of a request as it arrives; closing the generator cancels the request."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    work = asyncio.create_task(engine.generate(prepared, queue.put_nowait))
    work.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (part := await queue.get()) is not None:
            yield part
        await work
    finally:
        work.cancel()
        await asyncio.wait([work])


async def answer(engine: DiffusersEngine, **fields: Any) -> list[GenerateImageResponse]:
    prepared = await prepare(engine, asking(**fields))
    return [event async for event in generated(engine, prepared)]


async def images_of(engine: DiffusersEngine, **fields: Any) -> list[Image]:
    events = await answer(engine, **fields)
    return [event.image for event in events if event.HasField("image")]


def pixels(image: Image) -> NDArray[np.int16]:
    opened = PillowImage.open(io.BytesIO(image.data))
    assert opened.size == (image.width, image.height)
    return np.asarray(opened.convert("RGB"), dtype=np.int16)


def same(one: Image, other: Image) -> bool:
    """True if the images are equal up to rounding differences between batch sizes."""
    return bool(np.abs(pixels(one) - pixels(other)).max() <= 3)


@contextmanager
def each_forward(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` before each forward pass of the denoising model."""
    kinds = ("UNet2DConditionModel", "SD3Transformer2DModel")

    def hook(module: torch.nn.Module, _inputs: object) -> None:
        if type(module).__name__ in kinds:
            act()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# Every architecture


@pytest.mark.asyncio(loop_scope="module")
async def test_engine_describes_its_model(any_engine: DiffusersEngine) -> None:
    image = any_engine.model.image
    assert (image.native_width, image.native_height) == (tiny.NATIVE, tiny.NATIVE)
    assert (image.max_images, image.default_steps) == (10, 3)
    assert any_engine.model.created > 1_600_000_000
    assert any_engine.system_fingerprint.startswith("fp_")
    assert any_engine.health().alive


@pytest.mark.asyncio(loop_scope="module")
async def test_engine_sends_progress_previews_images_and_usage(any_engine: DiffusersEngine) -> None:
    events = await answer(any_engine, n=2, steps=4, partial_images=2)
    kinds = [event.ListFields()[0][0].name for event in events]
    assert kinds == [
        *("progress", "partial_image", "partial_image"),
        *("progress", "partial_image", "partial_image"),
        *("progress", "progress", "image", "image", "usage"),
    ]
    progress = [e.progress for e in events if e.HasField("progress")]
    assert [(p.step, p.total_steps) for p in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    previews = [e.partial_image for e in events if e.HasField("partial_image")]
    assert [(p.index, p.partial_index) for p in previews] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    images = [e.image for e in events if e.HasField("image")]
    assert [(i.index, i.seed, i.mime_type) for i in images] == [
        (0, 1, "image/png"),
        (1, 2, "image/png"),
    ]
    assert not any(image.HasField("partial_index") for image in images)
    assert not same(images[0], images[1])
    for image in (*images, *previews):
        assert pixels(image).shape == (tiny.NATIVE, tiny.NATIVE, 3)
    assert events[-1].usage.prompt_tokens > 0


@pytest.mark.asyncio(loop_scope="module")
async def test_later_previews_are_closer_to_the_final_image(any_engine: DiffusersEngine) -> None:
    """With random weights the previews still differ; they must not be decoded noise."""
    events = await answer(any_engine, steps=20, partial_images=3)
    (final,) = [pixels(e.image) for e in events if e.HasField("image")]
    previews = [pixels(e.partial_image) for e in events if e.HasField("partial_image")]
    distances = [float(np.abs(final - preview).mean()) for preview in previews]
    assert len(distances) == 3
    assert distances[2] < distances[0]


@pytest.mark.asyncio(loop_scope="module")
async def test_preview_shows_the_image_predicted_at_its_step(directories: dict[str, Path]) -> None:
    """The patched model predicts the same image at every step, so every preview equals it."""

    def predict_zeros(module: torch.nn.Module, _: object, inputs: Any, output: object) -> Any:
        if type(module).__name__ != "SD3Transformer2DModel":
            return output
        sigma = inputs["timestep"].view(-1, 1, 1, 1) / 1000
        return (inputs["hidden_states"] / sigma,)

    engine = await start(directories["sd3"], steps=4)
    with_inputs = torch.nn.modules.module.register_module_forward_hook(
        predict_zeros, with_kwargs=True
    )
    try:
        events = await answer(engine, partial_images=3)
    finally:
        with_inputs.remove()
    await engine.close()
    (final,) = [e.image for e in events if e.HasField("image")]
    previews = [e.partial_image for e in events if e.HasField("partial_image")]
    assert len(previews) == 3
    assert all(same(preview, final) for preview in previews)


@pytest.mark.asyncio(loop_scope="module")
async def test_seed_gives_the_same_image_alone_and_in_a_batch(
    any_engine: DiffusersEngine,
) -> None:
    batch = await images_of(any_engine, n=3, seed=41)
    (alone,) = await images_of(any_engine, seed=42)
    assert batch[1].seed == alone.seed == 42
    assert same(batch[1], alone)
    assert not same(batch[0], alone)


# Sizes and formats


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (1024, 1024), (300, 100), (65, 2048), (1792, 1024)]
)
@pytest.mark.asyncio(loop_scope="module")
async def test_image_has_the_requested_size(
    engine: DiffusersEngine, width: int, height: int
) -> None:
    (image,) = await images_of(engine, width=width, height=height)
    assert (image.width, image.height) == (width, height)
    assert pixels(image).shape == (height, width, 3)


@pytest.mark.parametrize(
    ("format", "mime_type"),
    [
        (ImageFormat.IMAGE_FORMAT_PNG, "image/png"),
        (ImageFormat.IMAGE_FORMAT_JPEG, "image/jpeg"),
        (ImageFormat.IMAGE_FORMAT_WEBP, "image/webp"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_image_has_the_requested_format_and_quality(
    engine: DiffusersEngine, format: ImageFormat, mime_type: str
) -> None:
    (plain,) = await images_of(engine)
    (image,) = await images_of(engine, format=format)
    (low,) = await images_of(engine, format=format, quality=0)
    assert image.mime_type == mime_type
    assert PillowImage.open(io.BytesIO(image.data)).get_format_mimetype() == mime_type
    distance, distance_of_low = (np.abs(pixels(i) - pixels(plain)).mean() for i in (image, low))
    if mime_type == "image/png":
        assert distance == distance_of_low == 0
    else:
        # The image is noise, which these formats compress with large errors.
        assert distance < 20
        assert distance_of_low > distance
        assert len(low.data) < len(image.data) / 2


# Batches and seeds


@pytest.mark.asyncio(loop_scope="module")
async def test_batches_stay_within_max_batch_megapixels(directories: dict[str, Path]) -> None:
    two = 2 * tiny.NATIVE * tiny.NATIVE / 1e6
    engine = await start(directories["sd"], steps=3, max_batch_megapixels=two)
    passes = 0

    def count() -> None:
        nonlocal passes
        passes += 1

    with each_forward(count):
        events = await answer(engine, n=5)
    await engine.close()
    assert passes == 3 * 3
    progress = [event.progress for event in events if event.HasField("progress")]
    assert [p.step for p in progress] == list(range(1, 10))
    assert {p.total_steps for p in progress} == {9}
    images = [event.image for event in events if event.HasField("image")]
    assert [image.index for image in images] == [0, 1, 2, 3, 4]
    assert [image.seed for image in images] == [1, 2, 3, 4, 5]


@pytest.mark.asyncio(loop_scope="module")
async def test_random_seed_is_returned_and_repeats_the_image(engine: DiffusersEngine) -> None:
    async def draw(**fields: Any) -> Image:
        request = GenerateImageRequest(prompt="a heart", **fields)
        events = generated(engine, await prepare(engine, request))
        (image,) = [event.image async for event in events if event.HasField("image")]
        return image

    first, second = await draw(), await draw()
    assert first.seed != second.seed
    assert same(first, await draw(seed=first.seed))


@pytest.mark.asyncio(loop_scope="module")
async def test_seed_after_the_largest_int64_wraps_around(engine: DiffusersEngine) -> None:
    highest = 2**63 - 1
    images = await images_of(engine, n=2, seed=highest)
    assert [image.seed for image in images] == [highest, -(2**63)]


@pytest.mark.asyncio(loop_scope="module")
async def test_each_parameter_changes_the_image(engine: DiffusersEngine) -> None:
    (plain,) = await images_of(engine)
    for fields in (
        {"prompt": "word"},
        {"negative_prompt": "word"},
        {"guidance_scale": 9.0},
        {"steps": 5},
        {"seed": 2},
    ):
        (other,) = await images_of(engine, **fields)
        assert not np.array_equal(pixels(plain), pixels(other)), fields


# Refusals


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
@pytest.mark.asyncio(loop_scope="module")
async def test_prompt_beyond_the_token_limit_is_refused(engine: DiffusersEngine, name: str) -> None:
    within = " ".join(["word"] * (tiny.BERT_TOKENS - 2))
    prepared = await prepare(engine, asking(**{name: within}))
    assert prepared.prompt_tokens == (tiny.BERT_TOKENS if name == "prompt" else 5)
    with pytest.raises(InferenceError) as caught:
        await prepare(engine, asking(**{name: within + " word"}))
    assert (caught.value.reason, caught.value.param) == ("string_above_max_length", name)
    assert "12 tokens" in caught.value.message


@pytest.mark.asyncio(loop_scope="module")
async def test_too_long_prompt_is_refused_by_every_architecture(
    any_engine: DiffusersEngine,
) -> None:
    with pytest.raises(InferenceError) as caught:
        await prepare(any_engine, asking(prompt="word " * tiny.T5_TOKENS))
    assert caught.value.param == "prompt"
    limits = (tiny.BERT_TOKENS, tiny.CLIP_TOKENS, tiny.T5_TOKENS)
    assert any(f"{limit} tokens" in caught.value.message for limit in limits)


@pytest.mark.asyncio(loop_scope="module")
async def test_negative_prompt_without_guidance_is_refused(engine: DiffusersEngine) -> None:
    with pytest.raises(InferenceError) as caught:
        await prepare(engine, asking(negative_prompt="word", guidance_scale=1.0))
    assert caught.value.param == "negative_prompt"
    assert await prepare(engine, asking(negative_prompt="word", guidance_scale=1.5))


async def test_more_steps_than_the_scheduler_supports_are_refused(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    directory = shutil.copytree(directories["sd"], tmp_path / "lcm")
    index = json.loads((directory / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    (directory / "model_index.json").write_text(json.dumps(index))
    LCMScheduler().save_pretrained(directory / "scheduler")
    engine = await start(directory, steps=4)
    with pytest.raises(InferenceError) as caught:
        await prepare(engine, asking(steps=100))
    assert (caught.value.reason, caught.value.param) == ("invalid_value", "steps")
    assert await images_of(engine)
    await engine.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_safety_checker_rejects_images_and_previews(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = await start(tiny.stable_diffusion(tmp_path / "unsafe", unsafe=True), steps=4)
        events = generated(engine, await prepare(engine, asking(partial_images=2)))
        for step in range(1, 5):
            assert (await anext(events)).progress.step == step
        with pytest.raises(InferenceError) as caught:
            await anext(events)
        await engine.close()
    assert caught.value.reason == "content_policy_violation"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("unet/evil.py", "raise SystemExit"),
        ("pipeline.py", "raise SystemExit"),
        ("vae/diffusion_pytorch_model.bin", "x"),
        ("unet/config.json", '{"auto_map": {"AutoModel": "evil.Model"}}'),
        ("model_index.json", '{"_class_name": ["evil", "Pipeline"]}'),
        ("model_index.json", {"unet": ["evil", "Model"]}),
        ("model_index.json", {"scheduler": ["os", "system"]}),
    ],
)
async def test_directory_that_could_run_code_is_refused(
    directories: dict[str, Path], tmp_path: Path, file: str, text: str | dict[str, Any]
) -> None:
    directory = shutil.copytree(directories["sd"], tmp_path / "copy")
    if isinstance(text, dict):
        text = json.dumps(json.loads((directory / file).read_text()) | text)
    (directory / file).write_text(text)
    with pytest.raises(ConfigError, match=r"code|pickle|loaded"):
        await start(directory)


@pytest.mark.parametrize("name", ["custom_pipeline", "trust_remote_code", "use_safetensors"])
def test_argument_that_could_run_code_is_refused(name: str) -> None:
    config = ModelConfig(id="m", engine="diffusers", source="x", engine_args={name: "x"})
    with pytest.raises(ConfigError, match=name):
        DiffusersEngine(config)


@pytest.mark.parametrize(
    "engine_args",
    [
        {"steps": 0},
        {"steps": "x"},
        {"max_batch_megapixels": -1.0},
        {"max_batch_megapixels": float("inf")},
        {"guidance_scale": float("nan")},
        {"guidance_rescale": 2.0},
        {"stpes": 20},
    ],
)
def test_invalid_engine_argument_is_refused(engine_args: dict[str, Any]) -> None:
    config = ModelConfig(id="m", engine="diffusers", source="x", engine_args=engine_args)
    with pytest.raises(ConfigError, match=r"m\.engine_args"):
        DiffusersEngine(config)


async def test_missing_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a directory nor a hub id"):
        await start(Path("/no/such/model"))


async def test_unknown_dtype_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        await start(directories["sd"], dtype="nonsense")


async def test_bfloat16_generates_an_image(directories: dict[str, Path]) -> None:
    engine = await start(directories["sd"], steps=2, dtype="bfloat16")
    (image,) = await images_of(engine)
    assert pixels(image).shape == (tiny.NATIVE, tiny.NATIVE, 3)
    await engine.close()


# Cancellation, memory and failures


@pytest.mark.asyncio(loop_scope="module")
async def test_closing_the_output_stops_within_a_step(engine: DiffusersEngine) -> None:
    passes = 0

    def count() -> None:
        nonlocal passes
        passes += 1

    with each_forward(count):
        async with aclosing(generated(engine, await prepare(engine, asking(steps=150)))) as events:
            async for event in events:
                if event.progress.step == 2:
                    break
            before = passes
        # The running step ends, and one more may begin before the thread sees the cancellation.
        assert passes <= before + 2
        assert engine.health().running == 0
        stopped = passes
        assert await images_of(engine, steps=3)
        assert passes == stopped + 3


@pytest.mark.asyncio(loop_scope="module")
async def test_cancelling_the_task_stops_the_engine(engine: DiffusersEngine) -> None:
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    with each_forward(lambda: loop.call_soon_threadsafe(began.set)):
        work = asyncio.create_task(answer(engine, steps=150))
        await began.wait()
        assert engine.health().running == 1
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert engine.health().running == 0
    assert engine.health().alive


@pytest.mark.asyncio(loop_scope="module")
async def test_permit_is_held_until_the_thread_stops_after_two_cancellations(
    engine: DiffusersEngine,
) -> None:
    """At a deadline the service and gRPC both cancel; the permit must outlast both."""
    served = ServedModel(ModelConfig(id="m", engine="diffusers", source="x"), engine)
    served.started = True
    began = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> None:
        loop.call_soon_threadsafe(began.set)
        time.sleep(0.3)

    with each_forward(slow):
        outbox, context = MessageOutbox(), CallContext("r", None)
        work = asyncio.create_task(run(Registry([served]), asking(model="m"), context, outbox))
        await began.wait()
        work.cancel()
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        while engine.health().running:
            assert served.admission.running == 1
            await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while served.admission.running:
            await asyncio.sleep(0.01)


@pytest.mark.asyncio(loop_scope="module")
async def test_cancellation_stops_decoding_previews(engine: DiffusersEngine) -> None:
    decoded = 0

    def decode(module: torch.nn.Module, _inputs: object) -> None:
        nonlocal decoded
        decoded += type(module).__name__ == "Decoder"

    handle = torch.nn.modules.module.register_module_forward_pre_hook(decode)
    try:
        prepared = await prepare(engine, asking(n=10, steps=2, partial_images=1))
        async with aclosing(generated(engine, prepared)) as events:
            async for event in events:
                if event.HasField("partial_image"):
                    break
            before = decoded
    finally:
        handle.remove()
    assert decoded <= before + 2, "at most two of the other nine previews are decoded"


@pytest.mark.asyncio(loop_scope="module")
async def test_image_generation_does_not_block_the_event_loop(engine: DiffusersEngine) -> None:
    """A task ticks during generation, previews, resizing and encoding of large images."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    await images_of(engine, n=2, width=2048, height=1152, steps=10, partial_images=1)
    ticking.cancel()
    # Work on the event loop would leave a few long gaps; bench/ measures their exact length.
    assert len(gaps) > 100
    assert max(gaps) < sum(gaps) / 4


def _exhaust_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. canary")


def _exhaust_machine() -> None:
    torch.empty(2**60)


@pytest.mark.parametrize("exhaust", [_exhaust_gpu, _exhaust_machine])
async def test_first_out_of_memory_is_an_error_and_the_second_ends_the_engine(
    directories: dict[str, Path], exhaust: Callable[[], None]
) -> None:
    engine = await start(directories["sd"], steps=3)
    with each_forward(exhaust), pytest.raises(InferenceError) as caught:
        await images_of(engine)
    assert caught.value.reason == "out_of_memory"
    assert caught.value.retry_after_ms
    assert "canary" not in caught.value.message
    assert await images_of(engine)
    assert engine.health().alive
    with each_forward(exhaust), pytest.raises(EngineDeadError):
        await images_of(engine)
    assert not engine.health().alive
    await engine.close()


async def test_batch_that_never_fits_ends_no_engine(directories: dict[str, Path]) -> None:
    engine = await start(directories["sd"], steps=2)
    for _ in range(3):  # Clients repeat a request that failed.
        with each_forward(_exhaust_gpu), pytest.raises(InferenceError) as caught:
            await images_of(engine, n=2)
        assert caught.value.reason == "out_of_memory"
    assert await images_of(engine)
    await engine.close()


@pytest.mark.filterwarnings("ignore:`upcast_vae`:FutureWarning")
async def test_decoder_precision_is_restored_after_out_of_memory(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(directories["sdxl"], steps=2, dtype="float16")
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKL, "_decode", lambda *_, **__: _exhaust_gpu())
        with pytest.raises(InferenceError) as caught:
            await images_of(engine)
    assert caught.value.reason == "out_of_memory"
    assert await images_of(engine)
    await engine.close()


async def test_gpu_failure_ends_the_engine(directories: dict[str, Path]) -> None:
    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    engine = await start(directories["sd"], steps=2)
    with each_forward(fail), pytest.raises(EngineDeadError):
        await images_of(engine)
    assert not engine.health().alive
    await engine.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_other_exception_is_a_server_error_without_details(
    engine: DiffusersEngine, caplog: pytest.LogCaptureFixture
) -> None:
    failures = ["canary"]

    def fail() -> None:
        if failures:
            raise ValueError(failures.pop())

    with each_forward(fail), pytest.raises(InferenceError) as caught:
        await images_of(engine)
    assert caught.value.reason == "server_error"
    assert "canary" not in caught.value.message
    assert "canary" in caplog.text
    assert "heart" not in caplog.text
    assert await images_of(engine)


async def test_device_that_fails_for_every_image_ends_the_engine(
    directories: dict[str, Path],
) -> None:
    def fail() -> None:
        raise RuntimeError("the device is broken")

    engine = await start(directories["sd"], steps=2)
    with each_forward(fail), pytest.raises(EngineDeadError):
        await images_of(engine)
    assert not engine.health().alive
    await engine.close()


async def test_closed_engine_fails_running_and_new_requests(directories: dict[str, Path]) -> None:
    engine = await start(directories["sd"], steps=150)
    prepared = await prepare(engine, asking())
    with pytest.raises(EngineDeadError):
        async for event in generated(engine, prepared):
            if event.progress.step == 1:
                await engine.close()
    with pytest.raises(EngineDeadError):
        await prepare(engine, asking())
