"""The simple server of sentence-transformers: each request is one call of `encode`.

    python -m bench.peers.encode_server DIRECTORY PORT KEY

A thread runs the calls one after another, so that the server reads and answers meanwhile, and
torch has one team of threads.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import orjson
import uvloop
from aiohttp import web
from sentence_transformers import SentenceTransformer

from bench.peers.openai_source import serve

_MAX_BODY_BYTES: Final = 16 * 1024 * 1024


class Embeddings:
    """The HTTP handler."""

    def __init__(self, directory: str, key: str) -> None:
        self._model = SentenceTransformer(directory, device="cpu")
        self._thread = ThreadPoolExecutor(1)
        self._authorization = f"Bearer {key}"

    async def create(self, request: web.Request) -> web.Response:
        """POST /v1/embeddings."""
        if request.headers.get("Authorization") != self._authorization:
            raise web.HTTPUnauthorized
        body = orjson.loads(await request.read())
        loop = asyncio.get_running_loop()
        document = await loop.run_in_executor(self._thread, self._document, body)
        return web.Response(body=document, content_type="application/json")

    def _document(self, body: dict[str, Any]) -> bytes:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = self._model.encode(texts, show_progress_bar=False)
        packed = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector).decode() if packed else vector,
            }
            for index, vector in enumerate(vectors)
        ]
        document = {"object": "list", "data": data, "model": body["model"]}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


if __name__ == "__main__":
    _directory, _port, _key = sys.argv[1:]
    _application = web.Application(client_max_size=_MAX_BODY_BYTES)
    _application.router.add_post("/v1/embeddings", Embeddings(_directory, _key).create)
    uvloop.run(serve(_application, int(_port)))
