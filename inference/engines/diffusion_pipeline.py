"""A diffusers text-to-image pipeline: how it is loaded, what it can do, one batch of pictures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inference import refusals
from inference.engines.diffusion_preview import Previewer
from inference.engines.image_size import Size
from inference.engines.model_files import check_model_directory
from inference.refusals import unsafe_picture
from keys import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# Weights of the components in their folders, not those of other programs at the top.
_HUB_FILES: Final = ("*.json", "*.txt", "*.model", "*/*.safetensors")
# Other precisions of the same weights.
_HUB_VARIANTS: Final = ("*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema.safetensors")
_NEEDED: Final = ("prompt", "width", "height", "generator", "num_images_per_prompt", "output_type")
_NATIVE_SIDE: Final = 1024
_MULTIPLE: Final = 64
# What most pipelines check, whatever their model can do.
_EVERY: Final = 8
# What tokenizers say that have no limit.
_NO_LIMIT: Final = 10**6

Latents = Any
OnStep = Callable[[int, int, Latents], None]
"""Told after each step: steps done, steps in all, latents. May raise to stop the pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What all pictures of a request share.

    Attributes:
        size: To draw at.
        guidance_scale, guidance_rescale: None is the pipeline's own default.
    """

    prompt: str
    negative_prompt: str | None
    size: Size
    steps: int
    guidance_scale: float | None
    guidance_rescale: float | None


def find_directory(source: str, revision: str | None, variant: str | None) -> Path:
    """The directory of a pipeline, downloaded from the hub where it is no local one.

    Raises:
        ConfigError: There is none such, or it holds what may run code.
    """
    directory = Path(source)
    if not directory.is_dir():
        directory = _download(source, revision, variant)
    check_model_directory(directory)
    return directory


def _download(source: str, revision: str | None, variant: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        directory = snapshot_download(
            source,
            revision=revision,
            allow_patterns=list(_HUB_FILES),
            ignore_patterns=None if variant else list(_HUB_VARIANTS),
        )
    except ValueError as error:
        raise ConfigError(f"source: {source!r} is neither a directory nor a hub id") from error
    return Path(directory)


def load_pipeline(directory: Path, dtype: str | None, arguments: Mapping[str, Any]) -> Any:
    """Loads a pipeline onto the GPU where there is one.

    Args:
        directory: As `find_directory` found it.
        dtype: torch's name of it; None for what suits the device.
        arguments: Of diffusers' from_pretrained.

    Raises:
        ConfigError: There is no such dtype, or it is no text-to-image pipeline.
    """
    import torch
    from diffusers import AutoPipelineForText2Image
    from diffusers.utils import logging

    # Its warnings repeat prompts.
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
        str(directory),
        dtype=chosen,
        use_safetensors=True,
        local_files_only=True,
        **arguments,
    )
    if "device_map" not in arguments:
        pipe.to("cuda" if cuda else "cpu")
    pipe.set_progress_bar_config(disable=True)
    vae = getattr(pipe, "vae", None)
    if vae is not None and hasattr(vae, "enable_slicing"):
        # One picture at a time through the decoder, whose memory would grow with the batch.
        vae.enable_slicing()
    return pipe


class TextToImage:
    """A loaded pipeline and what it takes.

    Attributes:
        native: The size that it was trained for.
        multiple: Of which the sides that it draws must be multiples, in pixels.
        default_steps: Its own.
        previewer: Decodes unfinished pictures, where it can.

    Raises:
        ConfigError: It does not have what the engine needs of a pipeline.
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
        self._tokenizer, self.max_prompt_tokens = _longest_tokenizer(pipe, self._parameters)

    def takes(self, parameter: str) -> bool:
        """Whether callers of the pipeline may say it."""
        return parameter in self._parameters

    def count_tokens(self, text: str, param: str) -> int:
        """Tokens of a text, as the encoder that reads most of it counts them.

        Raises:
            InferenceError: The pipeline would silently cut the text.
        """
        if self._tokenizer is None:
            return 0
        # verbose=False: too long is our error to the caller, not the library's to the log.
        count = len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if count > self.max_prompt_tokens:
            raise refusals.prompt_too_long(param, self.max_prompt_tokens, count)
        return count

    def check(self, drawing: Drawing) -> int:
        """Tokens of the prompt; refuses what the pipeline would not do as it was asked.

        Raises:
            InferenceError: A text is too long, or a number is one that the pipeline cannot use.
        """
        if drawing.negative_prompt:
            self.count_tokens(drawing.negative_prompt, "negative_prompt")
            scale = drawing.guidance_scale
            if scale is None and self.takes("guidance_scale"):
                scale = self._parameters["guidance_scale"].default
            if scale is not None and scale <= 1:
                raise refusals.broken_rule(
                    "'negative_prompt' has no effect unless 'guidance_scale' is above 1.",
                    "negative_prompt",
                )
        scheduler = self._pipe.scheduler
        # Where the schedule depends on the picture's size it takes any number of steps.
        if not scheduler.config.get("use_dynamic_shifting"):
            try:
                scheduler.set_timesteps(drawing.steps)
            except ValueError as error:
                message = f"The model cannot draw in {drawing.steps} steps."
                raise refusals.invalid_value(message, "steps") from error
        return self.count_tokens(drawing.prompt, "prompt")

    def draw(
        self, drawing: Drawing, seeds: Sequence[int], on_step: OnStep, *, previews: bool
    ) -> list[Picture]:
        """Draws one picture a seed, in one batch; the same seed draws the same picture.

        Raises:
            InferenceError: A safety checker objects to a picture.
            Exception: Whatever `on_step` or the pipeline raises.
        """
        import torch

        arguments: dict[str, Any] = {
            "prompt": drawing.prompt,
            "negative_prompt": drawing.negative_prompt,
            "num_inference_steps": drawing.steps,
            "guidance_scale": drawing.guidance_scale,
            "guidance_rescale": drawing.guidance_rescale,
        }
        arguments = {name: value for name, value in arguments.items() if value is not None}
        # On the CPU the numbers are the same whatever the device that draws.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        watching = self.previewer.watching() if previews else nullcontext()
        with watching, self._precision_kept():
            result = self._pipe(
                **arguments,
                **self._callback(drawing.steps, on_step),
                height=drawing.size.height,
                width=drawing.size.width,
                num_images_per_prompt=len(seeds),
                generator=generators,
                output_type="pil",
            )
        for name in ("nsfw_content_detected", "nsfw_detected"):
            if any(getattr(result, name, None) or ()):
                raise unsafe_picture()
        return list(result.images)

    @contextmanager
    def _precision_kept(self) -> Iterator[None]:
        """SDXL's decoder is taken to float32 and, where that runs out of memory, left there."""
        vae = getattr(self._pipe, "vae", None)
        dtype = getattr(vae, "dtype", None)
        try:
            yield
        finally:
            if vae is not None and vae.dtype != dtype:
                vae.to(dtype=dtype)

    def _callback(self, steps: int, on_step: OnStep) -> dict[str, Any]:
        def total() -> int:
            # Some schedulers take more steps than they are asked for.
            return int(getattr(self._pipe, "num_timesteps", None) or steps)

        def step_end(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, max(total(), step + 1), tensors["latents"])
            return tensors

        def older(step: int, _time: Any, latents: Latents) -> None:
            on_step(step + 1, max(total(), step + 1), latents)

        if self.takes("callback_on_step_end"):
            return {"callback_on_step_end": step_end}
        return {"callback": older, "callback_steps": 1}


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
    return Size(*(side if isinstance(side, int) else _NATIVE_SIDE for side in sides))


def _multiple(pipe: Any) -> int:
    factor = int(getattr(pipe, "vae_scale_factor", 8))
    if getattr(pipe, "unet", None) is not None:
        # Each level but the last halves the latents.
        return math.lcm(_EVERY, factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1))
    if getattr(pipe, "transformer", None) is not None:
        patch = getattr(pipe.transformer.config, "patch_size", None)
        # Where the model itself has no patches, the pipeline packs two by two.
        return math.lcm(_EVERY, factor * max(2, patch if isinstance(patch, int) else 2))
    return _MULTIPLE


def _longest_tokenizer(pipe: Any, parameters: Mapping[str, inspect.Parameter]) -> tuple[Any, int]:
    """Of several text encoders, the one that reads most; None where there is no tokenizer."""
    cut = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    longest, limit = None, 0
    for name, tokenizer in pipe.components.items():
        if "tokenizer" not in name or tokenizer is None:
            continue
        reads = int(getattr(tokenizer, "model_max_length", _NO_LIMIT))
        # A pipeline's own limit is for its large encoder; CLIP always reads what it can.
        if cut is not None and "CLIP" not in type(tokenizer).__name__:
            reads = min(reads, int(cut))
        if min(reads, _NO_LIMIT) > limit:
            longest, limit = tokenizer, min(reads, _NO_LIMIT)
    return longest, limit
