"""GET /files/{name}: an image that a response named by URL.

The route needs no API key: the random name in the URL serves as the credential.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from edge.openai.errors.http import file_not_found, invalid_host
from edge.state import EdgeRequest

_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


async def get_file(request: EdgeRequest) -> web.StreamResponse:
    """GET /files/{name}.

    Raises:
        OpenAIError: 404, the file does not exist or has expired.
    """
    file = await request.edge.files.find(request.match_info["name"])
    if file is None:
        raise file_not_found()
    headers = {
        "content-type": file.content_type,
        "cache-control": f"private, max-age={int(file.remaining_seconds)}",
        # A browser that renders the file as a page runs no script and loads nothing.
        "content-security-policy": "default-src 'none'; sandbox",
        "x-content-type-options": "nosniff",
    }
    return web.FileResponse(file.path, headers=headers)


def files_url(request: EdgeRequest) -> str:
    """The base of image URLs, with a final slash, as this client can reach it.

    Raises:
        OpenAIError: 400, the Host header is malformed and no `public_url` is configured.
    """
    base = request.edge.config.public_url
    if base is None:
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise invalid_host()
        base = f"{request.scheme}://{host}"
    return f"{base.rstrip('/')}/files/"
