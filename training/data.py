"""Latents of all pictures and embeddings of all captions, made once, before training.

python -m training.data
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import BertModel, BertTokenizer

from launch.embedded import default_cache_directory, prepare_image_model
from training import art

FILE: Final = art.WORK / "data.safetensors"
_BATCH: Final = 64


def embed(model: Path, texts: list[str]) -> torch.Tensor:
    """What the UNet is told of texts: (texts, tokens, 384), as the pipeline tells it."""
    tokenizer = BertTokenizer.from_pretrained(model / "tokenizer")
    encoder = BertModel.from_pretrained(model / "text_encoder").eval()
    rows = []
    for start in range(0, len(texts), _BATCH):
        tokens = tokenizer(
            texts[start : start + _BATCH],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            answer = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        rows.append(answer.last_hidden_state.bfloat16())
    return torch.cat(rows).contiguous()


def encode(vae: AutoencoderKL, emoji: list[art.Emoji]) -> torch.Tensor:
    """Latents of variance 1: (pictures, 4, 16, 16)."""
    rows = []
    for start in range(0, len(emoji), _BATCH):
        pixels = np.stack([one.pixels() for one in emoji[start : start + _BATCH]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            rows.append(vae.encode(batch).latent_dist.mode() * vae.config.scaling_factor)
    return torch.cat(rows).contiguous()


def load() -> dict[str, torch.Tensor]:
    """What `main` made.

    Returns:
        latents, weights (one a picture); captions, pictures (one a caption: its embedding and
        the index of its picture); nothing (the embedding of no words).
    """
    return load_file(FILE)


def main() -> None:
    """Fetches the art and writes FILE."""
    model = prepare_image_model(default_cache_directory(), print)
    emoji = art.load()
    print(f"{len(emoji)} pictures")
    captions = [caption for one in emoji for caption in one.captions]
    pictures = [index for index, one in enumerate(emoji) for _ in one.captions]
    print(f"{len(captions)} captions")
    tensors = {
        "latents": encode(AutoencoderKL.from_pretrained(model / "vae").eval(), emoji),
        "weights": torch.tensor([one.weight for one in emoji]),
        "captions": embed(model, captions),
        "pictures": torch.tensor(pictures),
        "nothing": embed(model, [""]),
    }
    save_file(tensors, FILE)
    print(f"latents have a standard deviation of {tensors['latents'].std():.3f}; {FILE} written")


if __name__ == "__main__":
    main()
