"""Computes the latents of all images and the embeddings of all captions, once before training.

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
    """Returns the text encoder's output, as the pipeline passes it to the UNet.

    Args:
        model: The pipeline's directory.
        texts: The prompts.

    Returns:
        bfloat16 of shape (texts, tokens, 384).
    """
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
            output = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        rows.append(output.last_hidden_state.bfloat16())
    return torch.cat(rows).contiguous()


def encode(vae: AutoencoderKL, emoji: list[art.Emoji]) -> torch.Tensor:
    """Returns the images' latents, scaled to variance 1: (images, 4, 16, 16)."""
    rows = []
    for start in range(0, len(emoji), _BATCH):
        pixels = np.stack([one.pixels() for one in emoji[start : start + _BATCH]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            rows.append(vae.encode(batch).latent_dist.mode() * vae.config.scaling_factor)
    return torch.cat(rows).contiguous()


def load() -> dict[str, torch.Tensor]:
    """Reads FILE.

    Returns:
        "latents" and "weights", with a row for each image; "captions" and "images", with a row for
        each caption: its embedding and the index of its image; "no_prompt": the embedding of "".
    """
    return load_file(FILE)


def main() -> None:
    """Downloads the images and writes FILE."""
    model = prepare_image_model(default_cache_directory(), print)
    emoji = art.load()
    print(f"{len(emoji)} images")
    captions = [caption for one in emoji for caption in one.captions]
    images = [index for index, one in enumerate(emoji) for _ in one.captions]
    print(f"{len(captions)} captions")
    tensors = {
        "latents": encode(AutoencoderKL.from_pretrained(model / "vae").eval(), emoji),
        "weights": torch.tensor([one.weight for one in emoji]),
        "captions": embed(model, captions),
        "images": torch.tensor(images),
        "no_prompt": embed(model, [""]),
    }
    save_file(tensors, FILE)
    print(f"latents have a standard deviation of {tensors['latents'].std():.3f}; {FILE} written")


if __name__ == "__main__":
    main()
