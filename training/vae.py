"""Trains the VAE, which encodes 128 x 128 pixels as 4 x 16 x 16 latents and decodes them.

    python -m training.vae --hours 0.5

A UNet works only with the VAE of its training; for another VAE it must be trained from scratch. The
weights are written to build/emoji/vae, and some images with their reconstructions to
build/emoji/reconstructions.png.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from launch.emoji import WEIGHTS
from training import art

_BATCH: Final = 16
# Width and height of the squares that the VAE is trained on, in pixels.
_CROP: Final = 64
_LEARNING_RATE: Final = 1.2e-3
_KL_WEIGHT: Final = 2e-3
_REPORT_STEPS: Final = 50
# The number of reconstructions.
_SHOWN: Final = 24
_COLUMNS: Final = 4


def loss(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Returns the sum of the differences of pixels and of edges and the KL term of the latents."""
    distribution = vae.encode(pixels).latent_dist
    again = vae.decode(distribution.sample()).sample.float()
    edges = sum((pixels.diff(dim=axis) - again.diff(dim=axis)).abs().mean() for axis in (2, 3))
    return (pixels - again).abs().mean() + edges + _KL_WEIGHT * distribution.kl().mean() / 1024


def crops(images: Tensor) -> Tensor:
    """Returns random squares of random images: (_BATCH, 3, _CROP, _CROP), from -1 to 1."""
    corners = torch.randint(art.SIDE - _CROP + 1, (_BATCH, 2)).tolist()
    chosen = torch.randint(len(images), (_BATCH,)).tolist()
    squares = [
        images[index, :, top : top + _CROP, left : left + _CROP]
        for index, (top, left) in zip(chosen, corners, strict=True)
    ]
    return torch.stack(squares).float() / 127.5 - 1


@torch.no_grad()  # type: ignore[untyped-decorator]
def finish(vae: AutoencoderKL, images: Tensor) -> None:
    """Scales the latents to variance 1, and writes the weights and the reconstructions."""
    pixels = images[:: max(1, len(images) // 256)].float() / 127.5 - 1
    spread = float(vae.encode(pixels).latent_dist.mode().std())
    vae.register_to_config(scaling_factor=1 / spread)
    shown = pixels[:_SHOWN]
    again = vae.decode(vae.encode(shown).latent_dist.mode()).sample.clamp(-1, 1)
    pairs = ((torch.cat([shown, again], 3) + 1) * 127.5).permute(0, 2, 3, 1).byte().numpy()
    rows = [np.concatenate(list(pairs[i : i + _COLUMNS]), 1) for i in range(0, _SHOWN, _COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(art.WORK / "reconstructions.png")
    vae.half().save_pretrained(art.WORK / "vae")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m training.vae", description=__doc__)
    parser.add_argument("--hours", type=float, required=True)
    seconds = 3600 * parser.parse_args().hours
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = np.stack([one.pixels() for one in art.load()])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(WEIGHTS / "vae")).to(device)
    average = copy.deepcopy(vae).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), fused=True)
    began, step = time.monotonic(), 0
    while (done := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
        with torch.autocast(device, torch.bfloat16):
            value = loss(vae, crops(images).to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (step + 10) / (step + 100))
        torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
        if step % _REPORT_STEPS == 0:
            print(f"{done:6.1%}  step {step}  loss {float(value.detach()):.4f}", flush=True)
        step += 1
    finish(average.cpu(), images)


if __name__ == "__main__":
    main()
