"""Previews: images decoded between the steps of a pipeline's denoising loop.

The latents between two steps are noisy, but most schedulers also predict the final latents at each
step, which decode to a blurred version of the final image. While a pipeline runs with previews,
`Previewer` wraps its scheduler's `step` and keeps this prediction; without one it decodes the noisy
latents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from inference.engines.image_requests import Size

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Decoders whose input is the latents, scaled and shifted by factors of their configuration.
_DECODERS: Final = frozenset(("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"))


class Previewer:
    """Decodes unfinished images of one diffusers pipeline.

    `supported` is whether its latents can be decoded; False after the first failure.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._predicted: Any = None
        self.supported = type(getattr(pipe, "vae", None)).__name__ in _DECODERS

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps the prediction of each step while the context is open."""
        scheduler = self._pipe.scheduler
        original = scheduler.step

        # `wraps` keeps the signature, which pipelines inspect.
        @functools.wraps(original)
        def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(model_output, timestep, sample, *args, **kwargs)
            self._predicted = _prediction(scheduler, result, model_output, sample)
            return result

        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step
            self._predicted = None

    def images(self, latents: Any, size: Size) -> Iterator[PillowImage | None]:
        """Decodes the images of the batch after a step; None if a safety checker flags an image.

        Args:
            latents: The pipeline's latents: images x the pipeline's own shape.
            size: The size at which the pipeline works.
        """
        pipe, vae = self._pipe, self._pipe.vae
        if self._predicted is not None and self._predicted.shape == latents.shape:
            latents = self._predicted
        if hasattr(pipe, "_unpack_latents"):
            latents = pipe._unpack_latents(latents, size.height, size.width, pipe.vae_scale_factor)
        for latent in latents.split(1):
            with _decoding(vae):
                tensor = vae.decode(_unscaled(vae, latent.to(vae.device, vae.dtype))).sample.float()
            yield None if self._unsafe(tensor) else self._image(tensor)

    def _unsafe(self, tensor: Any) -> bool:
        pipe = self._pipe
        if getattr(pipe, "safety_checker", None) is None:
            return False
        _, flagged = pipe.run_safety_checker(tensor.clone(), tensor.device, pipe.dtype)
        return bool(flagged[0])

    def _image(self, tensor: Any) -> PillowImage:
        (image,) = self._pipe.image_processor.postprocess(tensor, output_type="pil")
        return cast("PillowImage", image)


@contextmanager
def _decoding(vae: Any) -> Iterator[None]:
    """Converts a float16 decoder to float32 if its configuration has `force_upcast`."""
    import torch

    if vae.dtype != torch.float16 or not getattr(vae.config, "force_upcast", False):
        yield
        return
    vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        vae.to(dtype=torch.float16)


def _unscaled(vae: Any, latents: Any) -> Any:
    config = vae.config
    mean, deviation = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is not None and deviation is not None:
        mean, deviation = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (mean, deviation))
        return latents * deviation / config.scaling_factor + mean
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def _prediction(scheduler: Any, result: Any, model_output: Any, sample: Any) -> Any:
    """The latents without noise that a step predicts; None if the scheduler predicts none."""
    if isinstance(result, tuple):
        predicted = result[1] if len(result) > 1 else None
    else:
        predicted = getattr(result, "pred_original_sample", None)
    if predicted is not None:
        return predicted
    config = scheduler.config
    if config.get("algorithm_type", "").endswith("dpmsolver++") or config.get("predict_x0"):
        return scheduler.model_outputs[-1]
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        return sample - scheduler.sigmas[scheduler.step_index - 1] * model_output
    return None
