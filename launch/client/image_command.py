"""`isthmus image`: images of a prompt, as files."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from isthmus.v1.image_pb2 import GenerateImageRequest, Image
from isthmus.v1.models_pb2 import MODEL_KIND_IMAGE
from launch.client import services
from launch.client.options import count, seed, utf8
from launch.failure import CommandError

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus image`."""
    add = parser.add_argument
    add("prompt", nargs="+", type=utf8, help="what the image shows")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a number is added for each image after the first (default: image.png; standard "
        "output if that is a pipe)",
    )
    add("--negative-prompt", type=utf8, metavar="TEXT", help="what it must not show")
    add("--size", metavar="WxH", help="pixels, as 256x256 (default: the model's own)")
    add("-n", "--number", type=count, default=1, metavar="N", help="images (default: %(default)s)")
    add("--steps", type=count, metavar="N", help="denoising steps (default: the model's)")
    add("--guidance-scale", type=float, metavar="X", help="default: the model's")
    add("--seed", type=seed, metavar="N", help="the same seed makes the same image")
    add("--json", action="store_true", help="an object a line with file, seed, width and height")
    services.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the images and says where they are."""
    request = _request(arguments)
    to_pipe = arguments.output is None and not arguments.json and not sys.stdout.isatty()
    if to_pipe and arguments.number > 1:
        raise CommandError("Only one image fits into a pipe. Name files with --output.", 2)
    with services.services(arguments) as found:
        service = services.chosen(found, arguments.model, MODEL_KIND_IMAGE)
        request.model = service.name
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            task = progress.add_task("waiting", total=None)
            call = service.stub.GenerateImage(request, **service.options)
            try:
                with services.failures():
                    for part in call:
                        if part.HasField("progress"):
                            steps = part.progress
                            progress.update(
                                task,
                                description="steps",
                                completed=steps.step,
                                total=steps.total_steps,
                            )
                        if part.HasField("image"):
                            _keep(part.image, arguments, to_pipe=to_pipe)
            finally:
                call.cancel()
    return 0


def _keep(image: Image, arguments: argparse.Namespace, *, to_pipe: bool) -> None:
    if to_pipe:
        sys.stdout.buffer.write(image.data)
        return
    path: Path = arguments.output or Path("image.png")
    if image.index:
        path = path.with_stem(f"{path.stem}-{image.index + 1}")
    try:
        path.write_bytes(image.data)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}.") from error
    told = {"file": str(path), "seed": image.seed, "width": image.width, "height": image.height}
    print(json.dumps(told) if arguments.json else f"{path}  seed {image.seed}", flush=True)


def _request(arguments: argparse.Namespace) -> GenerateImageRequest:
    request = GenerateImageRequest(
        prompt=" ".join(arguments.prompt),
        negative_prompt=arguments.negative_prompt,
        n=arguments.number,
        steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
    )
    if arguments.size is not None:
        size = _SIZE.fullmatch(arguments.size)
        if size is None:
            raise CommandError(f"--size: {arguments.size} is not like 256x256.", 2)
        request.width, request.height = map(int, size.groups())
    return request
