"""An image engine for any diffusers text-to-image pipeline; it runs one request at a time."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import msgspec

from contract.limits import MAX_GUIDANCE_SCALE, MAX_IMAGES, MAX_STEPS
from contract.refusals import unsupported_by_model
from inference.config import ModelConfig
from inference.engines import engine_args
from inference.engines.base import Emit, EngineDeadError, EngineHealth, ImageEngine, Report, Terms
from inference.engines.diffusion_pipeline import (
    ImageJob,
    TextToImage,
    find_directory,
    load_pipeline,
)
from inference.engines.diffusion_worker import (
    DaemonThread,
    DiffusionWorker,
    PreparedImage,
    Run,
)
from inference.engines.image_requests import Size, image_seed, render_size, requested_size
from inference.engines.memory_faults import release_memory
from inference.engines.model_files import fingerprint, newest_mtime
from inference.errors import InferenceError
from isthmus.v1.image_pb2 import GenerateImageRequest, GenerateImageResponse
from isthmus.v1.models_pb2 import MODEL_KIND_IMAGE, ImageCapabilities, Model
from isthmus.v1.usage_pb2 import Usage
from keys import ConfigError

# Arguments of from_pretrained that the engine sets itself or that would load code.
_FORCED: Final = (
    "custom_pipeline",
    "custom_revision",
    "local_files_only",
    "torch_dtype",
    "trust_remote_code",
    "use_safetensors",
)
# Defaults of `max_batch_megapixels`.
_BATCH_MEGAPIXELS_CPU: Final = 1.0
_BATCH_MEGAPIXELS_GPU: Final = 4.0
# Arguments of from_pretrained that `engine_args` may set. Any other is refused, because
# from_pretrained ignores unknown arguments.
_LOADING: Final = frozenset(
    (
        "device_map",
        "low_cpu_mem_usage",
        "max_memory",
        "offload_folder",
        "quantization_config",
        "revision",
        "variant",
    )
)
# Maximum seconds that `close` waits for the thread.
_CLOSE_SECONDS: Final = 15.0
# Maximum of `max_batch_megapixels`.
_MOST_MEGAPIXELS: Final = 1000.0
# Bits of a seed that the engine chooses for a request without one.
_SEED_BITS: Final = 32


class DiffusionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries of `engine_args` that are not arguments of from_pretrained.

    Attributes:
        steps, guidance_scale, guidance_rescale: Defaults for requests that do not set them; unset
            is the pipeline's default.
        max_batch_megapixels: Maximum pixels of a batch, at the size at which the model works;
            a batch has at least one image.
        dtype: torch's name; unset is bfloat16 or float16 on a GPU, float32 on a CPU.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    max_batch_megapixels: float | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= (1 if self.steps is None else self.steps) <= MAX_STEPS:
            raise ValueError(f"steps: must be 1 to {MAX_STEPS}")
        for name, most in (
            ("guidance_scale", MAX_GUIDANCE_SCALE),
            ("guidance_rescale", 1.0),
            ("max_batch_megapixels", _MOST_MEGAPIXELS),
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise ValueError(f"{name}: must be 0 to {most:g}")


class DiffusersEngine(ImageEngine):
    """An `ImageEngine`; see DiffusionSettings for its `engine_args`."""

    def __init__(self, config: ModelConfig) -> None:
        engine_args.refuse(config, _FORCED)
        arguments = dict(config.engine_args)
        unknown = arguments.keys() - _LOADING - set(DiffusionSettings.__struct_fields__)
        if unknown:
            raise ConfigError(f"models.{config.id}.engine_args: unknown: {', '.join(unknown)}")
        known = [name for name in DiffusionSettings.__struct_fields__ if name in arguments]
        given = {name: arguments.pop(name) for name in known}
        self._settings = engine_args.settings(config, DiffusionSettings, given)
        self._source = config.source
        self._arguments = arguments
        self._thread = DaemonThread("diffusion")
        self._pipeline: TextToImage | None = None
        self._worker: DiffusionWorker | None = None
        self._run: Run | None = None
        self._closed = False
        self.model = Model(kind=MODEL_KIND_IMAGE)
        self.system_fingerprint = "fp_unloaded"

    async def start(self, report: Report) -> None:
        """Loads the pipeline and generates one image."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load, report)

    def health(self) -> EngineHealth:
        """The state; `generated_tokens` counts images."""
        if self._worker is None:
            return EngineHealth(False, 0, 0.0, 0)
        return self._worker.health()

    async def close(self) -> None:
        """Stops after the current step and frees the model."""
        if self._closed:
            return
        self._closed = True
        self._pipeline = self._worker = None
        if self._run is not None:
            self._run.stopped.set()
        last = asyncio.get_running_loop().run_in_executor(self._thread, release_memory)
        self._thread.shutdown()
        await asyncio.wait([last], timeout=_CLOSE_SECONDS)

    async def prepare(self, request: GenerateImageRequest, _terms: Terms) -> PreparedImage:
        """Checks the parameters and the prompt's length against the pipeline."""
        pipeline = self._pipeline
        if pipeline is None:
            raise EngineDeadError
        for name in ("negative_prompt", "guidance_scale"):
            if request.HasField(name) and not pipeline.takes(name):
                raise InferenceError.of(unsupported_by_model(name))
        if request.partial_images and not pipeline.previewer.supported:
            raise InferenceError.of(unsupported_by_model("partial_images"))
        size = requested_size(request, pipeline.native)
        job = self._image_job(request, render_size(size, pipeline.native, pipeline.multiple))
        tokens = await asyncio.get_running_loop().run_in_executor(self._thread, pipeline.check, job)
        first = request.seed if request.HasField("seed") else secrets.randbits(_SEED_BITS)
        return PreparedImage(
            request=request,
            prompt_tokens=tokens,
            job=job,
            size=size,
            seeds=[image_seed(first, index) for index in range(request.n or 1)],
        )

    async def generate(self, prepared: PreparedImage, emit: Emit) -> None:
        """Runs the request in the pipeline's thread; `emit` is called on the event loop."""
        if self._worker is None or not self._worker.health().alive:
            raise EngineDeadError
        loop = asyncio.get_running_loop()
        run = Run(prepared, lambda part: loop.call_soon_threadsafe(emit, part))
        self._run = run
        # The loop runs callbacks in order, so all output is emitted before the future is done.
        work = loop.run_in_executor(self._thread, self._worker.run, run)
        try:
            error = await asyncio.shield(work)
            if error is not None:
                raise error
            if run.stopped.is_set():
                raise EngineDeadError
            emit(GenerateImageResponse(usage=Usage(prompt_tokens=prepared.prompt_tokens)))
        finally:
            run.stopped.set()
            await _finished(work)
            self._run = None

    def _load(self, report: Report) -> None:
        report("importing diffusers")
        arguments = dict(self._arguments)
        directory = find_directory(
            self._source, arguments.pop("revision", None), arguments.get("variant")
        )
        report("loading weights")
        pipe = load_pipeline(directory, self._settings.dtype, arguments)
        pipeline = TextToImage(pipe)
        if self._settings.guidance_rescale is not None and not pipeline.takes("guidance_rescale"):
            raise ConfigError(f"{type(pipe).__name__} takes no guidance_rescale")
        self.model.created = newest_mtime(directory)
        self.model.image.CopyFrom(
            ImageCapabilities(
                native_width=pipeline.native.width,
                native_height=pipeline.native.height,
                max_images=MAX_IMAGES,
                default_steps=self._settings.steps or pipeline.default_steps,
            )
        )
        device = pipe.device.type
        self.system_fingerprint = fingerprint(directory, type(pipe).__name__, pipe.dtype, device)
        default = _BATCH_MEGAPIXELS_CPU if device == "cpu" else _BATCH_MEGAPIXELS_GPU
        worker = DiffusionWorker(pipeline, 1e6 * (self._settings.max_batch_megapixels or default))
        report("warming up")
        first = GenerateImageRequest(prompt="warm", steps=2)
        worker.warm_up(self._image_job(first, pipeline.native))
        self._pipeline, self._worker = pipeline, worker

    def _image_job(self, request: GenerateImageRequest, size: Size) -> ImageJob:
        settings = self._settings
        has_scale = request.HasField("guidance_scale")
        return ImageJob(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            size=size,
            steps=request.steps or self.model.image.default_steps,
            guidance_scale=request.guidance_scale if has_scale else settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
        )


async def _finished(work: asyncio.Future[Exception | None]) -> None:
    """Waits until the thread has ended the run; the next request must not be admitted earlier.

    A cancellation that arrives while this waits is raised afterwards.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
