"""A diffusers text-to-image pipeline: loading, capabilities, and generation of one batch.

diffusers has some dozens of text-to-image pipelines with different signatures. Each property that
the engine needs is read from the loaded pipeline, from the first source that has it:

    property            sources
    native size         sample size of the pipeline, else of its unet or transformer, times the
                        decoder's factor; else the defaults of `width` and `height`; else 1024
    multiple of sides   unet: the decoder's factor, doubled at each level that halves the latents;
                        transformer: the factor times the patch size (2 or more); else 64. The
                        result is always a multiple of 8, too
    prompt limit        the tokenizer that reads the most tokens, cut at the default of
                        `max_sequence_length` except for CLIP
    callback            `callback_on_step_end`, else `callback` of older pipelines

diffusers cuts prompts that are too long, ignores a negative prompt without guidance, and replaces
images that its safety checker flags by black ones; in all three cases this module raises an error.
The noise of each image comes from a CPU generator with the image's seed, so an image does not
depend on the device or on its batch, up to rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inference.engines.diffusion_preview import Previewer
from inference.engines.image_requests import Size
from inference.engines.model_files import check_model_directory
from inference.errors import broken_rule, invalid_value, prompt_too_long, unsafe_image
from keys import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Files to download: configurations, and the weights in the components' folders. Weights at the top
# level are whole checkpoints for other programs.
_HUB_FILES: Final = ("*.json", "*.txt", "*.model", "*/*.safetensors")
# Other precisions of the same weights, not downloaded unless a variant is configured.
_HUB_VARIANTS: Final = ("*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema.safetensors")
# Parameters of `__call__` that a pipeline must have.
_NEEDED: Final = ("prompt", "width", "height", "generator", "num_images_per_prompt", "output_type")
# Pixels of each native side if none of the sources has it.
_DEFAULT_NATIVE_SIDE: Final = 1024
# Pixels: the multiple of sides for a pipeline with neither unet nor transformer.
_DEFAULT_MULTIPLE: Final = 64
# Pixels: most pipelines refuse sides that are not multiples of this, even if the model allows them.
_CHECKED_MULTIPLE: Final = 8
# Tokens: `model_max_length` is above this for tokenizers without a limit.
_NO_LIMIT: Final = 10**6

Latents = Any
OnStep = Callable[[int, int, Latents], None]
"""Called after each step with steps done, total steps and latents; raises to stop the pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJob:
    """The parameters that all images of a request share; None is the pipeline's default.

    `size` is the size at which the model works.
    """

    prompt: str
    negative_prompt: str | None
    size: Size
    steps: int
    guidance_scale: float | None
    guidance_rescale: float | None


class TextToImage:
    """A loaded pipeline; ConfigError if it lacks a parameter that the engine needs.

    Attributes:
        native: The size that the model was trained for.
        multiple: Sides at which the model works are multiples of this number of pixels.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._parameters = inspect.signature(type(pipe).__call__).parameters
        missing = [name for name in _NEEDED if name not in self._parameters]
        if missing or not (self.takes("callback_on_step_end") or self.takes("callback")):
            raise ConfigError(f"{type(pipe).__name__} is no text-to-image pipeline of ours")
        self.native = _native_size(pipe, self._parameters)
        self.multiple = _multiple(pipe)
        self.default_steps = int(self._parameters["num_inference_steps"].default)
        self.previewer = Previewer(pipe)
        self._tokenizer, self._max_tokens = _longest_tokenizer(pipe, self._parameters)

    def takes(self, parameter: str) -> bool:
        """Whether the pipeline's `__call__` has the parameter."""
        return parameter in self._parameters

    def _count_tokens(self, text: str, param: str) -> int:
        """Tokens of the text, special ones included, for the encoder with the highest limit."""
        if self._tokenizer is None:
            return 0
        # verbose=False: the library must not log that the text is too long; that is an error below.
        count = len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if count > self._max_tokens:
            raise prompt_too_long(param, self._max_tokens, count)
        return count

    def check(self, job: ImageJob) -> int:
        """Refuses parameters that the pipeline would ignore; returns the prompt's token count."""
        if job.negative_prompt:
            self._count_tokens(job.negative_prompt, "negative_prompt")
            scale = job.guidance_scale
            if scale is None and self.takes("guidance_scale"):
                scale = self._parameters["guidance_scale"].default
            if scale is not None and scale <= 1:
                raise broken_rule(
                    "'negative_prompt' has no effect unless 'guidance_scale' is above 1.",
                    "negative_prompt",
                )
        scheduler = self._pipe.scheduler
        # Schedules that depend on the image's size support any number of steps.
        if not scheduler.config.get("use_dynamic_shifting"):
            try:
                scheduler.set_timesteps(job.steps)
            except ValueError as error:
                message = f"The model cannot draw in {job.steps} steps."
                raise invalid_value(message, "steps") from error
        return self._count_tokens(job.prompt, "prompt")

    def generate(
        self, job: ImageJob, seeds: Sequence[int], on_step: OnStep, *, previews: bool
    ) -> list[PillowImage]:
        """Generates one image per seed (signed 64 bits), in one batch and at the job's size.

        `previews` is whether `on_step` may call `previewer.images`. Raises InferenceError if a
        safety checker flags an image, and exceptions of `on_step` and of the pipeline.
        """
        import torch

        names = ("negative_prompt", "guidance_scale", "guidance_rescale")
        optional = {name: getattr(job, name) for name in names if getattr(job, name) is not None}
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        recording = self.previewer.recording() if previews else nullcontext()
        with recording, self._restored_decoder():
            result = self._pipe(
                prompt=job.prompt,
                num_inference_steps=job.steps,
                **optional,
                **self._callback(job.steps, on_step),
                height=job.size.height,
                width=job.size.width,
                num_images_per_prompt=len(seeds),
                generator=generators,
                output_type="pil",
            )
        for name in ("nsfw_content_detected", "nsfw_detected"):
            if any(getattr(result, name, None) or ()):
                raise unsafe_image()
        return list(result.images)

    @contextmanager
    def _restored_decoder(self) -> Iterator[None]:
        """Restores the decoder's data type when the context closes.

        SDXL's decoder overflows in float16. diffusers converts it to float32 while it decodes, and
        does not convert it back if decoding runs out of memory.
        """
        vae = getattr(self._pipe, "vae", None)
        dtype = getattr(vae, "dtype", None)
        try:
            yield
        finally:
            if vae is not None and vae.dtype != dtype:
                vae.to(dtype=dtype)

    def _callback(self, steps: int, on_step: OnStep) -> dict[str, Any]:
        def callback(step: int, _time: Any, latents: Latents) -> None:
            # Some schedulers take more steps than requested.
            total = int(getattr(self._pipe, "num_timesteps", None) or steps)
            on_step(step + 1, max(total, step + 1), latents)

        def step_end(_pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            callback(step, time, tensors["latents"])
            return tensors

        if self.takes("callback_on_step_end"):
            return {"callback_on_step_end": step_end}
        return {"callback": callback, "callback_steps": 1}


def find_directory(source: str, revision: str | None, variant: str | None) -> Path:
    """The directory of a pipeline, downloaded from the hub if `source` is a hub id.

    `variant` names a precision of the weights ("fp16"). Raises ConfigError if `source` is neither,
    or the directory holds files that may run code.
    """
    directory = Path(source)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        skipped = None if variant else list(_HUB_VARIANTS)
        try:
            downloaded = snapshot_download(
                source,
                revision=revision,
                allow_patterns=list(_HUB_FILES),
                ignore_patterns=skipped,
            )
        except ValueError as error:
            raise ConfigError(f"source: {source!r} is neither a directory nor a hub id") from error
        directory = Path(downloaded)
    check_model_directory(directory)
    return directory


def load_pipeline(directory: Path, dtype: str | None, arguments: Mapping[str, Any]) -> Any:
    """Loads a pipeline, onto the GPU if there is one, with arguments of from_pretrained.

    Raises ConfigError if torch has no such data type.
    """
    import torch
    from diffusers import AutoPipelineForText2Image
    from diffusers.utils import logging

    # Its warnings contain prompts, which must not be logged.
    logging.set_verbosity_error()
    cuda = torch.cuda.is_available()
    if dtype is None:
        half = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float16
        chosen = half if cuda else torch.float32
    else:
        chosen = getattr(torch, dtype, None)
    if not isinstance(chosen, torch.dtype):
        raise ConfigError(f"engine_args.dtype: {dtype!r} is no dtype of torch")
    pipe = AutoPipelineForText2Image.from_pretrained(
        str(directory), dtype=chosen, use_safetensors=True, local_files_only=True, **arguments
    )
    if "device_map" not in arguments:
        pipe.to("cuda" if cuda else "cpu")
    pipe.set_progress_bar_config(disable=True)
    vae = getattr(pipe, "vae", None)
    if vae is not None and hasattr(vae, "enable_slicing"):
        # Decodes one image at a time, because the decoder's memory grows with the batch.
        vae.enable_slicing()
    return pipe


def _native_size(pipe: Any, parameters: Mapping[str, inspect.Parameter]) -> Size:
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    model = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    sample = getattr(pipe, "default_sample_size", None) or (
        model and getattr(model.config, "sample_size", None)
    )
    if isinstance(sample, int):
        return Size(sample * factor, sample * factor)
    if isinstance(sample, list | tuple):
        height, width = sample
        return Size(width * factor, height * factor)
    sides = (parameters["width"].default, parameters["height"].default)
    return Size(*(side if isinstance(side, int) else _DEFAULT_NATIVE_SIDE for side in sides))


def _multiple(pipe: Any) -> int:
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    if getattr(pipe, "unet", None) is not None:
        # Each level except the last halves the latents.
        halvings = len(pipe.unet.config.block_out_channels) - 1
        return math.lcm(_CHECKED_MULTIPLE, factor * 2**halvings)
    if getattr(pipe, "transformer", None) is not None:
        patch = getattr(pipe.transformer.config, "patch_size", None)
        # If the model has no patch size, the pipeline packs latents two by two.
        return math.lcm(_CHECKED_MULTIPLE, factor * max(2, patch if isinstance(patch, int) else 2))
    return _DEFAULT_MULTIPLE


def _longest_tokenizer(pipe: Any, parameters: Mapping[str, inspect.Parameter]) -> tuple[Any, int]:
    """The tokenizer with the highest limit and this limit in tokens; None and 0 without one."""
    cut = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    longest, limit = None, 0
    for name, tokenizer in pipe.components.items():
        if "tokenizer" not in name or tokenizer is None:
            continue
        own_limit = int(getattr(tokenizer, "model_max_length", _NO_LIMIT))
        # The pipeline's limit applies to its large encoder; CLIP has its own limit.
        if cut is not None and "CLIP" not in type(tokenizer).__name__:
            own_limit = min(own_limit, int(cut))
        if min(own_limit, _NO_LIMIT) > limit:
            longest, limit = tokenizer, min(own_limit, _NO_LIMIT)
    return longest, limit
