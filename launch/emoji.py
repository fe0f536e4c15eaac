"""The embedded image model: its own UNet and VAE, and all-MiniLM-L6-v2 as text encoder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

NAME: Final = "emoji"
WEIGHTS: Final = Path(__file__).with_name("emoji_model")
"""A diffusers pipeline without its text encoder; its README.md describes the training."""

_PARTS: Final = ("model_index.json", "scheduler", "unet", "vae")
_TOKENIZER_FILES: Final = ("tokenizer.json", "vocab.txt")
# Tokens of a prompt in the UNet's training. Shorter prompts are padded and masked, longer refused.
_PROMPT_TOKENS: Final = 24


def digest() -> str:
    """Returns a hash of all files, so that other weights make another model directory."""
    digest = hashlib.sha256()
    for path in sorted(WEIGHTS.rglob("*.*")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def assemble(text_encoder: Path, target: Path) -> None:
    """Writes a directory for StableDiffusionPipeline; `text_encoder` is that of MiniLM."""
    target.mkdir()
    for part in _PARTS:
        copy = shutil.copytree if (WEIGHTS / part).is_dir() else shutil.copyfile
        copy(WEIGHTS / part, target / part)
    encoder = target / "text_encoder"
    config = _read(text_encoder / "config.json") | {"use_attention_mask": True}
    _write(encoder / "config.json", config)
    weights, linked = (path / "model.safetensors" for path in (text_encoder, encoder))
    try:
        os.link(weights, linked)
    except OSError:  # The file system has no hard links.
        shutil.copyfile(weights, linked)
    config = _read(text_encoder / "tokenizer_config.json") | {"model_max_length": _PROMPT_TOKENS}
    _write(target / "tokenizer" / "tokenizer_config.json", config)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(text_encoder / name, target / "tokenizer" / name)


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
