"""Makes a Llama with random weights, so small that the work before the engine dominates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_SEED: Final = 0
# Standard deviation of the weights: so small that all logits are almost equal and the text random.
_DEVIATION: Final = 0.02
_HIDDEN: Final = 64
_INTERMEDIATE: Final = 128
_LAYERS: Final = 2
_HEADS: Final = 2
_HEAD_SIZE: Final = 32
_CONTEXT_LENGTH: Final = 2048
# The tokenizer's most frequent pieces are kept; with all 49,152, logits would be most of the work.
_FIRST_PIECES: Final = 2048
# The number of special tokens: <|endoftext|>, <|im_start|>, <|im_end|>.
_SPECIAL: Final = 3
# Byte-level BPE's letters for a space and a newline.
_SPACE, _NEWLINE = "\u0120", "\u010a"
_COPIED: Final = ("chat_template.jinja", "generation_config.json")


def make(directory: Path, tokenizer_of: Path) -> None:
    """Writes the model; its weights are the same each time.

    Args:
        directory: The directory to write; an existing one is replaced.
        tokenizer_of: SmolLM2's directory.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name in _COPIED:
        shutil.copy(tokenizer_of / name, directory)
    settings = _read(tokenizer_of / "tokenizer_config.json")
    settings.pop("additional_special_tokens", None)
    _write(directory / "tokenizer_config.json", settings)
    tokenizer = _read(tokenizer_of / "tokenizer.json")
    vocabulary = _shorten(tokenizer)
    _write(directory / "tokenizer.json", tokenizer)
    _write(directory / "config.json", _config(vocabulary))
    save_file(_weights(vocabulary), directory / "model.safetensors", {"format": "pt"})


def _shorten(tokenizer: dict[str, Any]) -> int:
    """Reduces the vocabulary to frequent ASCII pieces, so that every token is text.

    Args:
        tokenizer: The document of tokenizer.json, which is changed.

    Returns:
        The size of the vocabulary.
    """
    model = tokenizer["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)[:_FIRST_PIECES]
    special = pieces[:_SPECIAL]
    added = {token["content"] for token in tokenizer["added_tokens"]}
    plain = [piece for piece in pieces if piece not in added and _is_plain(piece)]
    kept = {piece: number for number, piece in enumerate([*special, *plain])}
    model["vocab"] = kept
    model["merges"] = [
        pair
        for pair in model["merges"]
        if pair[0] in kept and pair[1] in kept and "".join(pair) in kept
    ]
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:_SPECIAL]
    return len(kept)


def _is_plain(piece: str) -> bool:
    return piece.replace(_SPACE, " ").replace(_NEWLINE, "\n").isascii()


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": _CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def _weights(vocabulary: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(_SEED)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * _DEVIATION).astype(np.float32)

    def ones() -> NDArray[np.float32]:
        return np.ones(_HIDDEN, np.float32)

    attention = _HEADS * _HEAD_SIZE
    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, _HIDDEN),
        "model.norm.weight": ones(),
    }
    for layer in range(_LAYERS):
        parts = {
            "input_layernorm": ones(),
            "self_attn.q_proj": matrix(attention, _HIDDEN),
            "self_attn.k_proj": matrix(attention, _HIDDEN),
            "self_attn.v_proj": matrix(attention, _HIDDEN),
            "self_attn.o_proj": matrix(_HIDDEN, attention),
            "post_attention_layernorm": ones(),
            "mlp.gate_proj": matrix(_INTERMEDIATE, _HIDDEN),
            "mlp.up_proj": matrix(_INTERMEDIATE, _HIDDEN),
            "mlp.down_proj": matrix(_HIDDEN, _INTERMEDIATE),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    return weights


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")
