"""Trains the UNet on the output of training.data for a given time, and prints the loss.

    python -m training.unet --hours 2                  # starts from the weights in the project
    python -m training.unet --hours 2 --from-scratch

Every quarter of an hour, the weights are written to build/emoji/unet and a sheet of images to
build/emoji/samples.png. When the sheet is better than docs/images/emoji.png, move unet/ to
launch/emoji_model.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from launch.embedded import default_cache_directory, prepare_image_model
from launch.emoji import WEIGHTS
from training import art, data

PROMPTS: Final = (
    "a red heart",
    "a grinning face",
    "a cat",
    "a rocket",
    "smiling face with sunglasses",
    "a slice of pizza",
    "a green tree",
    "a red car",
    "a blue whale",
    "a crying face",
    "a birthday cake",
    "a house with garden",
    "a snowman",
    "a dog",
    "a guitar",
    "the sun",
    "a yellow star",
    "a ghost",
    "a strawberry",
    "a robot",
    "an airplane",
    "a unicorn",
    "an angry face",
    "a bicycle",
)
_COLUMNS: Final = 6
# Fraction of a batch that is trained without a caption, as classifier-free guidance needs it.
_NO_CAPTION: Final = 0.1
# Fraction of a batch at the noisiest step, 999, from which sampling starts. That step decides the
# background, and random steps would hardly ever include it.
_LAST_STEP: Final = 0.06
_LEARNING_RATE: Final = 6e-4
_WARM_UP_STEPS: Final = 50
# Steps between two printed lines, and seconds between two sheets.
_REPORT_STEPS: Final = 20
_SHEET_SECONDS: Final = 900.0


class Trainer:
    """A UNet in training, with its data and the running average of its weights.

    Args:
        model: The pipeline's directory.
        start: The directory of the UNet's first weights; None means random ones.
    """

    def __init__(self, model: Path, start: Path | None) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        tensors = data.load()
        self._latents = tensors["latents"]
        self._weights = tensors["weights"].double()
        self._captions = tensors["captions"]
        self._no_prompt = tensors["no_prompt"].float()
        owners = tensors["images"]
        self._own_captions = [(owners == i).nonzero()[:, 0] for i in range(len(self._latents))]
        self._prompts = data.embed(model, list(PROMPTS)).float()
        self._vae = AutoencoderKL.from_pretrained(model / "vae").eval()
        self.scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        if start is None:
            config = UNet2DConditionModel.load_config(model / "unet")
            self.unet = UNet2DConditionModel.from_config(config)
        else:
            self.unet = UNet2DConditionModel.from_pretrained(start, dtype=torch.float32)
        self.unet.to(self.device)
        # The backward pass of torch's fused attention is slow on a CPU.
        self.unet.set_attn_processor(AttnProcessor())
        self.average = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self._compiled = torch.compile(self.unet)
        self._optimizer = torch.optim.AdamW(
            self.unet.parameters(), betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )

    def step(self, batch: int, learning_rate: float, decay: float) -> float:
        """Trains on one batch and returns the loss.

        Args:
            batch: The number of images.
            learning_rate: The optimizer's learning rate.
            decay: The running average's share of its old weights, from 0 to 1.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        clean, captions = self._batch(batch)
        noise = torch.randn_like(clean)
        times = (torch.randn(batch).sigmoid() * 1000).long().clamp(0, 999)
        times[torch.rand(batch) < _LAST_STEP] = 999
        alpha = self.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast(self.device, torch.bfloat16):
            guess = self._compiled(
                noisy.to(self.device), times.to(self.device), captions.to(self.device)
            ).sample
        loss = F.mse_loss(guess.float(), velocity.to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.unet.parameters()), 1 - decay
        )
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Writes the running average as half-precision safetensors."""
        copy.deepcopy(self.average).half().save_pretrained(folder)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def sheet(self, steps: int = 20, guidance: float = 4.0, rescale: float = 0.5) -> Image.Image:
        """Returns images of PROMPTS, sampled as the pipeline does with the default settings."""
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(steps)
        count = len(self._prompts)
        latents = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        words = torch.cat([self._no_prompt.expand(count, -1, -1), self._prompts]).to(self.device)
        for time_step in scheduler.timesteps:
            with torch.autocast(self.device, torch.bfloat16):
                both = self.average(
                    torch.cat([latents, latents]).to(self.device), time_step, words
                ).sample
            without, prompted = both.float().cpu().chunk(2)
            guided = without + guidance * (prompted - without)
            factor = prompted.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
            guided = guided * (rescale * factor + 1 - rescale)
            latents = scheduler.step(guided, time_step, latents).prev_sample
        pixels = self._vae.decode(latents / self._vae.config.scaling_factor).sample
        rows = ((pixels.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).byte().numpy()
        return Image.fromarray(
            np.concatenate(
                [
                    np.concatenate(list(rows[start : start + _COLUMNS]), 1)
                    for start in range(0, count, _COLUMNS)
                ]
            )
        )

    def _batch(self, batch: int) -> tuple[Tensor, Tensor]:
        """Chooses images by weight; returns latents, and embeddings of a random caption or none."""
        chosen = torch.multinomial(self._weights, batch, replacement=True)
        rows = [self._own_captions[i] for i in chosen]
        captions = torch.stack(
            [self._captions[own[torch.randint(len(own), ())]] for own in rows]
        ).float()
        captions[torch.rand(batch) < _NO_CAPTION] = self._no_prompt
        return self._latents[chosen], captions


def train(trainer: Trainer, seconds: float, batch: int) -> None:
    """Trains for a time, in which the learning rate falls to 2 % of its start."""
    began = shown = time.monotonic()
    losses: list[float] = []
    while (done := (time.monotonic() - began) / seconds) < 1:
        step = len(losses)
        fall = 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2
        rate = _LEARNING_RATE * fall * min(1, (step + 1) / _WARM_UP_STEPS)
        losses.append(trainer.step(batch, rate, decay=min(0.999, (step + 10) / (step + 100))))
        now = time.monotonic()
        if step % _REPORT_STEPS == 0:
            recent = np.mean(losses[-_REPORT_STEPS:])
            pace = (now - began) / (step + 1)
            print(f"{done:6.1%}  step {step}  loss {recent:.4f}  {pace:.2f} s a step", flush=True)
        if now - shown > _SHEET_SECONDS:
            shown = now
            _write(trainer)
    _write(trainer)


def _write(trainer: Trainer) -> None:
    trainer.save(art.WORK / "unet")
    trainer.sheet().save(art.WORK / "samples.png")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m training.unet", description=__doc__)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--batch", type=int, default=256 if torch.cuda.is_available() else 32)
    parser.add_argument("--from-scratch", action="store_true")
    arguments = parser.parse_args()
    model = prepare_image_model(default_cache_directory(), print)
    trainer = Trainer(model, None if arguments.from_scratch else WEIGHTS / "unet")
    train(trainer, arguments.hours * 3600, arguments.batch)


if __name__ == "__main__":
    main()
