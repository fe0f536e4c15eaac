"""Converts SmolLM2's GGUF file to a directory that vLLM loads.

    python -m launch.convert_smollm2 MODEL.gguf DIRECTORY

The conversion is a process of its own, so that its memory is freed at its end. It reads the file
once with gguf and numpy. Loading the file through transformers gives the same numbers bit for bit,
but takes five times as long: it imports torch and reads the header four times.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# transformers' names of GGUF's tensors outside the layers.
_OUTER: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# transformers' names of the parts of GGUF's layers.
_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL: Final = 3  # GGUF's token type of control tokens

# ChatML like the model's own template, with three additions: tools in Hermes form, messages of
# tools, and messages without content. The default system message of the original is left out: with
# four-bit weights it makes the model answer plain questions in changing languages, and callers
# would be charged for tokens that they did not send.
CHAT_TEMPLATE: Final = r"""{%- if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] or '' %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- set turns = messages %}
{%- endif %}
{%- if system or tools %}
{{- '<|im_start|>system\n' + system }}
{%- if tools %}
{{- '\n\n' if system else '' }}
{{- 'You may call the functions listed between <tools></tools>:\n<tools>\n' }}
{%- for tool in tools %}
{{- tool | tojson + '\n' }}
{%- endfor %}
{{- '</tools>\nFor each call write a JSON object between tags:\n<tool_call>\n' }}
{{- '{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in turns %}
{%- if message['role'] == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + (message['content'] or '') }}
{{- '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}
{{- '\n' if message['content'] or not loop.first }}
{{- '<tool_call>\n{"name": ' + call['function']['name'] | tojson + ', "arguments": ' }}
{{- call['function']['arguments'] | tojson + '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
"""


def main(argv: list[str]) -> int:
    """Converts the file argv[0] to the directory argv[1]; prints a line for each stage."""
    source, target = Path(argv[0]), Path(argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print("reading the weights", flush=True)
    reader = GGUFReader(source)
    config = _config(reader)
    _write_json(target / "config.json", config)
    _write_json(
        target / "generation_config.json",
        {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    print("writing the tokenizer", flush=True)
    _write_tokenizer(reader, config, target)
    _write_weights(reader, config, target / "model.safetensors")
    return 0


def _config(reader: GGUFReader) -> dict[str, Any]:
    heads = _field(reader, "llama.attention.head_count")
    width = _field(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_size": width,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "rope_theta": _field(reader, "llama.rope.freq_base"),
            "rope_type": "default",
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _write_tokenizer(reader: GGUFReader, config: dict[str, Any], target: Path) -> None:
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ", 1)) for pair in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # GGUF's pre-tokenizer "smollm": each digit is split off, then GPT-2's rules apply.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.save(str(target / "tokenizer.json"))
    _write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "bos_token": tokens[config["bos_token_id"]],
            "eos_token": tokens[config["eos_token_id"]],
            "pad_token": tokens[config["pad_token_id"]],
            "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
            "additional_special_tokens": special,
        },
    )
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_weights(reader: GGUFReader, config: dict[str, Any], path: Path) -> None:
    """Writes a safetensors file: length of the header, the header, then the tensors in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        start, end = end, end + 2 * int(tensor.n_elements)
        header[_transformers_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": [int(side) for side in reversed(tensor.shape)],
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, tensor in enumerate(reader.tensors, start=1):
            values = dequantize(tensor.data, tensor.tensor_type)
            if ".attn_q." in tensor.name:
                values = _restore_rotary_order(values, config["num_attention_heads"])
            elif ".attn_k." in tensor.name:
                values = _restore_rotary_order(values, config["num_key_value_heads"])
            file.write(_bfloat16(values).data)
            if done % 30 == 0 or done == len(reader.tensors):
                print(f"converting: {done} of {len(reader.tensors)} tensors", flush=True)


def _transformers_name(name: str) -> str:
    """Returns transformers' name of a GGUF tensor; raises KeyError if it is unknown."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.weight"


def _restore_rotary_order(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorders rows: GGUF interleaves the halves of a head's rotary pairs, transformers does not.

    `values` are the weights of attn_q or attn_k, (heads * head size, hidden size).
    """
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, values.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Returns the bits of float32 values as bfloat16, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise KeyError(name)
    return field.contents()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
