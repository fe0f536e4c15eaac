"""The text that `isthmus up` prints when it is ready: addresses, and commands to try them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference.config import EMBEDDING_ENGINES, IMAGE_ENGINES, ModelConfig

_SERVICE: Final = "isthmus.v1.InferenceService"
_KEY: Final = "$ISTHMUS_API_KEY"
# With an address in the response, the image can be opened in a browser.
_IMAGE: Final = {"prompt": "a red heart", "response_format": "url"}


def text(
    models: Sequence[ModelConfig],
    *,
    base_url: str,
    grpc_addresses: Sequence[str],
    metrics_addresses: Sequence[str],
    with_key: bool,
) -> str:
    """Returns the addresses of the stack and commands that try each kind of model.

    Addresses are HOST:PORT, one for each model in order; those of metrics may be none. `base_url`
    is without /v1.
    """
    lines = ["", "Isthmus is ready.", f"  page  {base_url}", f"  REST  {base_url}/v1"]
    for model, address in zip(models, grpc_addresses, strict=True):
        aliases = ", ".join(alias.name for alias in model.aliases)
        lines.append(f"  gRPC  {address}   {model.id}" + (f" (also {aliases})" if aliases else ""))
    for model, address in zip(models, metrics_addresses, strict=bool(metrics_addresses)):
        lines.append(f"  metrics  http://{address}/metrics   {model.id}")
    if with_key:
        lines += ["", "  export ISTHMUS_API_KEY=...   # from `isthmus keys create`"]
    for model, address in zip(models, grpc_addresses, strict=True):
        if model.engine not in (*EMBEDDING_ENGINES, *IMAGE_ENGINES):
            lines += _chat(model.id, base_url, with_key) + _grpc(model.id, address, with_key)
            break
    for title, engines, path, body in (
        ("Embeddings", EMBEDDING_ENGINES, "embeddings", {"input": "Hello!"}),
        ("An image", IMAGE_ENGINES, "images/generations", _IMAGE),
    ):
        for model in models:
            if model.engine in engines:
                document = json.dumps({"model": model.id, **body})
                lines += ["", f"{title}:", _curl(f"{base_url}/v1/{path}", document, with_key)]
                break
    if metrics_addresses:
        metrics = "".join(f" --metrics {address}" for address in metrics_addresses)
        lines += ["", "What it does:", f"  {_program('isthmus')} status --url {base_url}{metrics}"]
    return "\n".join([*lines, "", "Stop with Ctrl-C.", ""])


def _chat(model: str, base_url: str, with_key: bool) -> list[str]:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    key = 'os.environ["ISTHMUS_API_KEY"]' if with_key else '"none"'
    imports = "import os; " if with_key else ""
    script = (
        f"{imports}from openai import OpenAI; "
        f'print(OpenAI(base_url="{base_url}/v1", api_key={key}).chat.completions.create('
        f'model="{model}", messages=[dict(role="user", content="Hello!")])'
        ".choices[0].message.content)"
    )
    return [
        "",
        "Chat with curl:",
        _curl(f"{base_url}/v1/chat/completions", json.dumps(body), with_key, "-N "),
        "",
        "Chat with the OpenAI SDK (pip install openai):",
        f"  {_program('python')} -c '{script}'",
    ]


def _grpc(model: str, address: str, with_key: bool) -> list[str]:
    message = {"role": "ROLE_USER", "parts": [{"text": "Hello!"}]}
    body = json.dumps({"model": model, "chat": {"messages": [message]}})
    key = f' -H "authorization: Bearer {_KEY}"' if with_key else ""
    # Reflection needs the key, too, and buf has an option of its own for headers of reflection.
    reflection = f' --reflect-header "authorization: Bearer {_KEY}"' if with_key else ""
    return [
        "",
        "gRPC, described by reflection:",
        f"  {_program('grpcurl')} -plaintext{key} -d '{body}' {address} {_SERVICE}/Generate",
        f"  {_program('buf')} curl --protocol grpc --http2-prior-knowledge{key}{reflection}"
        f" -d '{body}' http://{address}/{_SERVICE}/Generate",
    ]


def _curl(url: str, body: str, with_key: bool, options: str = "") -> str:
    key = f' -H "Authorization: Bearer {_KEY}"' if with_key else ""
    return f"  curl {options}{url} -H 'Content-Type: application/json'{key} -d '{body}'"


def _program(name: str) -> str:
    """The command of a program: that of this environment, which need not be on the PATH."""
    beside = Path(sys.executable).with_name(name)
    if not beside.exists() or shutil.which(name) == str(beside):
        return name
    return shlex.quote(min(str(beside), os.path.relpath(beside), key=len))
