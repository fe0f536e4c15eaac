"""Finding, fetching and loading a pipeline's files: safetensors only, no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inference.engines.model_files import check_model_directory
from keys import ConfigError

# Files to download: configurations, and the weights in the components' folders. Files at the top
# are whole checkpoints for other programs.
_HUB_FILES: Final = ("*.json", "*.txt", "*.model", "*/*.safetensors")


# Other precisions of the same weights, not downloaded unless a variant is configured.
_HUB_VARIANTS: Final = ("*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema.safetensors")


def find_directory(source: str, revision: str | None, variant: str | None) -> Path:
    """The directory of a pipeline; downloads it if `source` is a hub id.

    Args:
        source: A local directory or a hub id.
        revision: Of the hub's repository; None for the newest.
        variant: Name of a precision of the weights ("fp16"); None for the usual one.

    Raises:
        ConfigError: `source` is neither, or the directory holds files that may run code.
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
    """Loads a pipeline, onto the GPU where there is one.

    Args:
        directory: From `find_directory`.
        dtype: torch's name of the data type; None for bfloat16 or float16 on a GPU, float32 on a
            CPU.
        arguments: Further arguments of diffusers' from_pretrained.

    Raises:
        ConfigError: torch has no such data type.
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
        # Decodes one image at a time, because the decoder's memory grows with the batch.
        vae.enable_slicing()
    return pipe
