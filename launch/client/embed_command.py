"""`isthmus embed`: vectors of texts."""

from __future__ import annotations

import argparse

import numpy as np
import orjson

from isthmus.v1.embed_pb2 import EmbedRequest
from isthmus.v1.models_pb2 import MODEL_KIND_EMBEDDING
from launch.client import services
from launch.client.options import count, piped, utf8
from launch.failure import CommandError

# Texts of one request.
_BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus embed`."""
    add = parser.add_argument
    add(
        "text", nargs="*", type=utf8, help="a text; without one, each line of standard input is one"
    )
    add("--dimensions", type=count, metavar="N", help="leading components to keep")
    add("--json", action="store_true", help="an object a line with the text and its vector")
    services.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints one line for each text: its vector as a JSON array."""
    texts = arguments.text
    if not texts:
        texts = [line for line in piped().splitlines() if line.strip()]
    if not texts:
        raise CommandError("There is no text. Pass one, or pipe lines in.", 2)
    if not all(texts):
        raise CommandError("A text is empty.", 2)
    with services.services(arguments) as found:
        service = services.chosen(found, arguments.model, MODEL_KIND_EMBEDDING)
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            request = EmbedRequest(model=service.name, dimensions=arguments.dimensions)
            for text in batch:
                request.inputs.add(text=text)
            with services.failures():
                response = service.stub.Embed(request, **service.options)
            rows = np.frombuffer(response.vectors, dtype="<f4").reshape(len(batch), -1)
            for text, row in zip(batch, rows, strict=True):
                line = {"text": text, "vector": row} if arguments.json else row
                # The shortest decimals of float32, as over REST.
                print(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY).decode(), flush=True)
    return 0
