"""Pictures of what a pipeline is about to draw, from the middle of its work."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from inference.engines.image_size import Size

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

# Decoders whose latents are told by scale and shift alone.
_DECODERS: Final = frozenset(("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"))


class Previewer:
    """Decodes what the scheduler expects in the end; the noisy latents where it does not say.

    Args:
        pipe: A diffusers pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._predicted: Any = None
        self.able = type(getattr(pipe, "vae", None)).__name__ in _DECODERS

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes the prediction of each step while a pipeline runs."""
        scheduler = self._pipe.scheduler
        original = scheduler.step

        # Pipelines look at the signature: `wraps` keeps it.
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

    def pictures(self, latents: Any, size: Size) -> Iterator[Picture | None]:
        """Decodes the step that has just ended, one by one; None where a safety checker objects.

        Args:
            latents: After the step.
            size: At which the pipeline draws.
        """
        pipe, vae = self._pipe, self._pipe.vae
        if self._predicted is not None and self._predicted.shape == latents.shape:
            latents = self._predicted
        if hasattr(pipe, "_unpack_latents"):
            latents = pipe._unpack_latents(latents, size.height, size.width, pipe.vae_scale_factor)
        for latent in latents.split(1):
            with _decoding(vae):
                tensor = vae.decode(_unscaled(vae, latent.to(vae.device, vae.dtype))).sample.float()
            yield None if self._unsafe(tensor) else self._picture(tensor)

    def _unsafe(self, tensor: Any) -> bool:
        pipe = self._pipe
        if getattr(pipe, "safety_checker", None) is None:
            return False
        _, flagged = pipe.run_safety_checker(tensor.clone(), tensor.device, pipe.dtype)
        return bool(flagged[0])

    def _picture(self, tensor: Any) -> Picture:
        (picture,) = self._pipe.image_processor.postprocess(tensor, output_type="pil")
        return cast("Picture", picture)


@contextmanager
def _decoding(vae: Any) -> Iterator[None]:
    """Some decoders overflow in half precision, and say so."""
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
    """The picture without noise that a step predicts, as latents; None where it cannot be told."""
    if isinstance(result, tuple):
        told = result[1] if len(result) > 1 else None
    else:
        told = getattr(result, "pred_original_sample", None)
    if told is not None:
        return told
    config = scheduler.config
    if config.get("algorithm_type", "").endswith("dpmsolver++") or config.get("predict_x0"):
        return scheduler.model_outputs[-1]
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        return sample - scheduler.sigmas[scheduler.step_index - 1] * model_output
    return None
