"""POST /v1/images/generations over real HTTP and real gRPC, with the scripted image engine."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from aiohttp import ClientSession
from google.rpc.status_pb2 import Status
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image
from yarl import URL

from edge.app import serving
from edge.config import EdgeConfig
from edge.image_files import open_file_store
from edge.openai.errors import overloaded
from edge.state import Edge
from inference.config import AliasConfig, ModelConfig
from inference.engines.image_requests import deliver
from inference.engines.scripted_image import ScriptedImageEngine
from inference.errors import InferenceError
from inference.server import InferenceServer
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.image_pb2 import Image as ImageMessage
from isthmus.v1.usage_pb2 import Admitted
from keys import ConfigError, create_key
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually, running_server

PATH = "/v1/images/generations"
PLATFORM_C = Path(__file__).parents[1] / "golden" / "platforms" / "c" / "image.json"
SMALL = {"prompt": "a red heart", "size": "64x64"}
SLOW = json.dumps({"step_seconds": 0.01, "steps": 4000})
HANG = json.dumps({"fail": "hang"})


@pytest.fixture
def transport() -> str:
    """Images do not use the session, so one transport is enough."""
    return "session"


@pytest.fixture
async def stack(start_stack: StartStack) -> Stack:
    return await start_stack(TEXT, EMBEDDING, IMAGE)


def engine(stack: Stack) -> Any:
    """The scripted image engine of the stack."""
    return next(m for m in stack.server.registry.models if m.config.id == IMAGE.id).engine


async def generate(stack: Stack, **parameters: Any) -> tuple[int, dict[str, Any]]:
    async with stack.http.post(PATH, json=parameters) as response:
        return response.status, await response.json()


def opened(entry: str | bytes) -> Image.Image:
    """Decodes an image from its file's bytes, or from their base64 text."""
    data = base64.b64decode(entry, validate=True) if isinstance(entry, str) else entry
    return Image.open(io.BytesIO(data))


def events_of(body: bytes) -> list[tuple[str | None, dict[str, Any]]]:
    """Returns (event name or None, data) of each SSE event."""
    events: list[tuple[str | None, dict[str, Any]]] = []
    for event in body.decode().split("\n\n")[:-1]:
        name, _, data = event.rpartition("\ndata: ") if "\n" in event else ("", "", event[6:])
        events.append((name.removeprefix("event: ") or None, json.loads(data)))
    return events


# Plain responses


async def test_plain_response_holds_image_seed_usage_and_settings(stack: Stack) -> None:
    before = int(time.time())
    status, answer = await generate(stack, **SMALL, seed=5)
    assert status == 200
    assert before <= answer["created"] <= time.time()
    image = opened(answer["data"][0].pop("b64_json"))
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert answer["data"] == [{"url": None, "seed": 5}]
    assert answer["usage"] == {
        "input_tokens": 3,
        "output_tokens": 0,
        "total_tokens": 3,
        "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
    }
    told = {name: answer[name] for name in ("background", "output_format", "quality", "size")}
    assert told == {
        "background": "opaque",
        "output_format": "png",
        "quality": "medium",
        "size": "64x64",
    }


async def test_images_of_one_request_differ_and_their_seeds_reproduce_them(
    start_stack: StartStack,
) -> None:
    # Neighbouring seeds differ by one shade, which is lost in the smallest images.
    native = {"width": 256, "height": 256}
    stack = await start_stack(msgspec.structs.replace(IMAGE, engine_args=native))
    _, answer = await generate(stack, prompt="x", size="auto", n=3)
    images = [entry["b64_json"] for entry in answer["data"]]
    assert len(set(images)) == 3
    for entry in answer["data"]:
        _, again = await generate(stack, prompt="x", size="auto", seed=entry["seed"])
        assert again["data"][0]["b64_json"] == entry["b64_json"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, (1024, 1024)),
        ({"size": None}, (1024, 1024)),
        ({"size": "auto"}, (64, 64)),
        ({"size": "1536x1024"}, (1536, 1024)),
        ({"size": "100*65"}, (100, 65)),
    ],
)
async def test_image_has_the_requested_size(
    stack: Stack, given: dict[str, Any], wanted: tuple[int, int]
) -> None:
    status, answer = await generate(stack, prompt="x", **given)
    assert status == 200
    assert opened(answer["data"][0]["b64_json"]).size == wanted
    assert answer["size"] == "{}x{}".format(*wanted)


@pytest.mark.parametrize(
    ("output_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")]
)
async def test_output_format_and_compression_are_applied(
    stack: Stack, output_format: str, kind: str
) -> None:
    sizes = []
    for compression in (100,) if output_format == "png" else (100, 5):
        parameters = {"output_format": output_format, "output_compression": compression}
        status, answer = await generate(stack, prompt="x", size="256x256", seed=99, **parameters)
        assert status == 200
        assert opened(answer["data"][0]["b64_json"]).format == kind
        assert answer["output_format"] == output_format
        sizes.append(len(answer["data"][0]["b64_json"]))
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("parameters", "steps"),
    [
        ({}, 4),
        ({"quality": "low"}, 2),
        ({"quality": "hd"}, 6),
        ({"quality": "max"}, 12),
        ({"quality": "max", "steps": 3}, 3),
        ({"num_inference_steps": 5}, 5),
    ],
)
async def test_quality_sets_the_number_of_steps(
    stack: Stack, parameters: dict[str, Any], steps: int
) -> None:
    status, _ = await generate(stack, **SMALL, **parameters)
    assert (status, engine(stack).steps_done) == (200, steps)


async def test_platform_c_image_sample_gets_the_documented_response(
    start_stack: StartStack,
) -> None:
    sample = json.loads(PLATFORM_C.read_text())
    model = ModelConfig(id=sample["request"]["model"], engine="scripted-image")
    stack = await start_stack(TEXT, model)
    status, answer = await generate(stack, **sample["request"])
    assert status == 200
    assert answer.keys() >= sample["answer"].keys()
    (entry,) = answer["data"]
    assert entry.keys() >= sample["answer"]["data"][0].keys()
    assert entry["url"] is None
    assert opened(entry["b64_json"]).size == (1024, 1024)
    del sample["request"]["size"], sample["request"]["response_format"], sample["request"]["n"]
    _, bare = await generate(stack, **sample["request"])
    assert [opened(e["b64_json"]).size for e in bare["data"]] == [(1024, 1024)]


@pytest.mark.parametrize("stream", [False, True])
async def test_large_images_do_not_block_the_event_loop(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Encoding ten images of 7 MB in one turn would block the loop for half a second."""
    data = os.urandom(7_000_000)

    async def draw(receiver: Any) -> None:
        for index in range(10):
            image = ImageMessage(data=data, index=index, width=2000, height=1200)
            await asyncio.sleep(0)
            receiver.on_part(GenerateImageResponse(admitted=Admitted(), image=image))
        receiver.on_end(Status())

    def open_call(_request: Any, receiver: Any, _options: Any) -> Any:
        return asyncio.create_task(draw(receiver))

    async def watch() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - before)

    monkeypatch.setattr(stack.edge.router, "open", open_call)
    turns: list[float] = []
    size = 0
    watcher = asyncio.create_task(watch())
    async with stack.http.post(PATH, json={"prompt": "x", "n": 10, "stream": stream}) as response:
        async for chunk in response.content.iter_any():
            size += len(chunk)
    watcher.cancel()
    assert size > 90_000_000
    # No turn of the loop does more than a fifth of the work, that is two images.
    assert max(turns) < sum(turns) / 5


# Images by URL


async def test_image_url_needs_no_key(start_stack: StartStack, tmp_path: Path) -> None:
    _, key = create_key(tmp_path / "keys.json", "someone")
    stack = await start_stack(IMAGE, keys=tmp_path / "keys.json", key=key)
    status, answer = await generate(
        stack, **SMALL, n=2, response_format="url", output_format="jpeg"
    )
    assert status == 200
    urls = [entry["url"] for entry in answer["data"]]
    assert len(set(urls)) == 2
    assert [entry["b64_json"] for entry in answer["data"]] == [None, None]
    for url in urls:
        assert url.startswith(f"{stack.url}/files/")
        name = url.rpartition("/")[2]
        assert len(name.removesuffix(".jpg")) == 32
        async with stack.http.get(URL(url).path, headers={"authorization": "Bearer x"}) as response:
            assert response.status == 200
            assert response.content_type == "image/jpeg"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert response.headers["cache-control"].startswith("private, max-age=3")
            assert opened(await response.read()).size == (64, 64)


async def status_of(stack: Stack, url: str) -> int:
    async with stack.http.get(URL(url, encoded=True).path) as response:
        if response.status != 200:
            error = (await response.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
        return response.status


async def urls_of(stack: Stack, count: int = 1, **parameters: Any) -> list[str]:
    status, answer = await generate(stack, **SMALL, n=count, response_format="url", **parameters)
    assert status == 200
    return [entry["url"] for entry in answer["data"]]


@pytest.mark.parametrize(
    ("model", "parameters", "form"),
    [
        ("dall-e-2", {}, "url"),
        ("dall-e-3", {"response_format": None}, "url"),
        ("dall-e-3", {"response_format": "b64_json"}, "b64_json"),
        ("gpt-image-1", {}, "b64_json"),
        ("gpt-image-1", {"response_format": "url"}, "url"),
        ("scripted-image", {}, "b64_json"),
        (None, {}, "b64_json"),
    ],
)
async def test_form_of_images_is_what_clients_of_the_name_read(
    start_stack: StartStack, model: str | None, parameters: dict[str, Any], form: str
) -> None:
    names = [AliasConfig(name=name) for name in ("dall-e-2", "dall-e-3", "gpt-image-1")]
    stack = await start_stack(msgspec.structs.replace(IMAGE, aliases=tuple(names)))
    status, answer = await generate(stack, **SMALL, model=model, **parameters)
    assert status == 200
    (entry,) = answer["data"]
    other = "url" if form == "b64_json" else "b64_json"
    assert entry[form]
    assert entry[other] is None


async def test_stream_of_a_dall_e_name_has_the_images_themselves(start_stack: StartStack) -> None:
    aliases = (AliasConfig(name="dall-e-3"),)
    stack = await start_stack(msgspec.structs.replace(IMAGE, aliases=aliases))
    body = SMALL | {"model": "dall-e-3", "stream": True}
    async with stack.http.post(PATH, json=body) as response:
        text = await response.text()
    assert response.status == 200
    assert json.loads(text.partition("data: ")[2].partition("\n")[0])["b64_json"]


async def test_expired_image_url_is_404_and_the_next_image_removes_its_file(
    start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(IMAGE, files_dir=tmp_path / "files")
    (url,) = await urls_of(stack)
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700
    file = tmp_path / "files" / URL(url).name
    assert file.stat().st_mode & 0o777 == 0o600
    assert await status_of(stack, url) == 200
    long_ago = time.time() - 3601
    os.utime(file, (long_ago, long_ago))
    assert await status_of(stack, url) == 404
    # Storing the next image removes the expired file.
    await urls_of(stack)
    assert not file.exists()


async def test_expired_file_is_removed_without_further_requests(
    start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(IMAGE, files_dir=tmp_path / "files", files_seconds=0.1)
    (url,) = await urls_of(stack)
    await eventually(lambda: not (tmp_path / "files" / URL(url).name).exists())
    assert await status_of(stack, url) == 404


async def test_oldest_files_are_removed_at_the_count_limit(
    start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(IMAGE, files_dir=tmp_path / "files", files_max_count=10)
    (tmp_path / "files" / "not-ours.txt").write_text("kept")
    first = await urls_of(stack, 1)
    then = await urls_of(stack, 8)
    last = await urls_of(stack, 2)
    assert [await status_of(stack, url) for url in first + then + last] == [404] + [200] * 10
    assert (tmp_path / "files" / "not-ours.txt").exists()


async def test_total_size_of_files_stays_within_the_limit(
    start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(IMAGE, files_dir=tmp_path / "files", files_max_bytes=2000)
    for _ in range(20):
        await urls_of(stack)
        assert sum(f.stat().st_size for f in (tmp_path / "files").iterdir()) <= 2000


async def test_edges_with_one_directory_serve_each_others_images(
    start_stack: StartStack, tmp_path: Path
) -> None:
    one, other = [await start_stack(IMAGE, files_dir=tmp_path / "files") for _ in range(2)]
    (url,) = await urls_of(one)
    assert await status_of(other, url) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/files/",
        "/files/x.png",
        f"/files/{'0' * 32}.png",
        f"/files/{'0' * 32}.txt",
        f"/files/{'0' * 32}",
        "/files/..%2f..%2fetc%2fpasswd",
        f"/files/%2e%2e/{'0' * 32}.png",
        f"/files/{'0' * 32}.png%00",
    ],
)
async def test_only_stored_image_names_are_served(stack: Stack, path: str) -> None:
    async with stack.http.get(URL(path, encoded=True)) as response:
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_image_url_starts_with_the_host_header_or_public_url(start_stack: StartStack) -> None:
    stack = await start_stack(IMAGE)
    body = SMALL | {"response_format": "url"}
    async with stack.http.post(PATH, json=body, headers={"host": "ai.example.org"}) as response:
        url = (await response.json())["data"][0]["url"]
    assert url.startswith("http://ai.example.org/files/")
    for host in ("a b", "x/health?", "a@b", "[", ""):
        async with stack.http.post(PATH, json=body, headers={"host": host}) as response:
            assert response.status == 400, host
    behind = await start_stack(IMAGE, public_url="https://ai.example.org/api/")
    (url,) = await urls_of(behind)
    assert url.startswith("https://ai.example.org/api/files/")


@pytest.fixture
def world_readable(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


async def test_files_directory_readable_by_others_is_refused(world_readable: Path) -> None:
    with pytest.raises(ConfigError, match="files_dir"):
        async with open_file_store(EdgeConfig(files_dir=world_readable)):
            pass


@pytest.mark.parametrize(
    "parameters",
    [
        {"public_url": "ai.example.org"},
        {"public_url": "https://a@b"},
        {"public_url": "https://a?b"},
        {"files_seconds": 0.0},
        {"files_max_bytes": 0},
        {"files_seconds": float("inf")},
        {"files_seconds": float("nan")},
        {"files_max_count": 9},
    ],
)
def test_invalid_files_configuration_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(parameters))):
        EdgeConfig(**parameters)


async def test_default_files_directory_is_private_and_recreated_when_deleted(
    start_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stack = await start_stack(IMAGE)
    folder = tmp_path / f"isthmus-files-{os.getuid()}"
    assert not folder.exists(), "the folder is created on first use"
    (url,) = await urls_of(stack)
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder)
    assert await status_of(stack, url) == 404
    # The folder is created again after its deletion.
    (url,) = await urls_of(stack)
    assert await status_of(stack, url) == 200


async def test_unusable_files_directory_fails_before_generation(
    start_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    stack = await start_stack(IMAGE)
    async with stack.http.post(PATH, json=SMALL | {"response_format": "url"}) as response:
        assert response.status == 500
        assert response.headers["x-should-retry"] == "false"
        assert (await response.json())["error"]["code"] == "files_unavailable"
    assert engine(stack).steps_done == 0
    assert (await generate(stack, **SMALL))[0] == 200


async def test_image_urls_work_again_after_a_full_disk(
    start_stack: StartStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = await start_stack(IMAGE, files_dir=tmp_path / "files")
    write, room = os.open, 2

    def full(*arguments: Any, **options: Any) -> int:
        nonlocal room
        if str(arguments[0]).startswith(str(tmp_path)):
            room -= 1
            if room < 0:
                raise OSError(errno.ENOSPC, "no space")
        return write(*arguments, **options)

    monkeypatch.setattr(os, "open", full)
    status, answer = await generate(stack, **SMALL, n=3, response_format="url")
    assert (status, answer["error"]["code"]) == (500, "files_unavailable")
    assert not os.listdir(tmp_path / "files"), "no partial file is left"
    room = 100
    assert await status_of(stack, (await urls_of(stack))[0]) == 200


async def test_image_larger_than_the_size_limit_of_files_is_an_error(
    start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(IMAGE, files_dir=tmp_path / "files", files_max_bytes=1)
    status, answer = await generate(stack, **SMALL, response_format="url")
    assert (status, answer["error"]["code"]) == (500, "files_unavailable")


async def test_files_of_an_earlier_process_expire(start_stack: StartStack, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir(mode=0o700)
    left = folder / f"{'0' * 32}.png"
    left.write_bytes(b"left")
    await start_stack(IMAGE, files_dir=folder, files_seconds=0.3)
    await eventually(lambda: not left.exists())


async def test_image_files_support_range_head_and_conditional_requests(stack: Stack) -> None:
    path = URL((await urls_of(stack))[0]).path
    async with stack.http.get(path, headers={"range": "bytes=0-7"}) as response:
        assert response.status == 206
        assert await response.read() == b"\x89PNG\r\n\x1a\n"
    async with stack.http.head(path) as response:
        assert response.status == 200
        assert int(response.headers["content-length"]) > 8
        unchanged = {"if-modified-since": response.headers["last-modified"]}
    async with stack.http.get(path, headers=unchanged) as response:
        assert response.status == 304


# Streams


async def test_stream_sends_named_partial_and_completed_events(stack: Stack) -> None:
    parameters = SMALL | {"stream": True, "partial_images": 2, "output_format": "webp", "seed": 1}
    async with stack.http.post(PATH, json=parameters) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        events = events_of(await response.read())
    names = [name for name, _ in events]
    assert names == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [name == data["type"] for name, data in events] == [True] * 3
    assert [data.get("partial_image_index") for _, data in events] == [0, 1, None]
    assert {opened(data["b64_json"]).format for _, data in events} == {"WEBP"}
    assert events[-1][1]["usage"]["input_tokens"] == 3


async def test_stream_of_two_images_indexes_its_events(stack: Stack) -> None:
    parameters = SMALL | {"stream": True, "partial_images": 1, "n": 2}
    async with stack.http.post(PATH, json=parameters) as response:
        events = [data for _, data in events_of(await response.read())]
    assert [(e["type"].rpartition(".")[2], e["index"]) for e in events] == [
        ("partial_image", 0),
        ("partial_image", 1),
        ("completed", 0),
        ("completed", 1),
    ]
    assert [e["usage"]["total_tokens"] for e in events[2:]] == [0, 3]


async def test_async_sdk_reads_an_image_stream(stack: Stack) -> None:
    stream = await stack.openai.images.generate(
        prompt="x", size="256x256", stream=True, partial_images=3
    )
    events = [event async for event in stream]
    assert [type(event) for event in events] == [ImageGenPartialImageEvent] * 3 + [
        ImageGenCompletedEvent
    ]
    for event in events:
        # The SDK builds its events without validation, so they are validated here.
        type(event).model_validate(event.model_dump())
        assert opened(event.b64_json).size == (256, 256)


async def test_sync_sdk_reads_plain_and_streamed_images(stack: Stack) -> None:
    def draw() -> tuple[openai.types.ImagesResponse, list[Any]]:
        with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
            plain = client.images.generate(prompt="x", model=IMAGE.id, n=2, size="256x256")
            stream = client.images.generate(
                prompt="x", model=IMAGE.id, size="auto", stream=True, partial_images=1
            )
            return plain, list(stream)

    plain, events = await asyncio.to_thread(draw)
    openai.types.ImagesResponse.model_validate(plain.model_dump())
    assert [opened(image.b64_json or "").size for image in plain.data or ()] == [(256, 256)] * 2
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "completed"]


async def test_failure_before_the_first_event_gets_an_error_status(stack: Stack) -> None:
    for prompt, expected in ((json.dumps({"fail": "start"}), 500), ("x " * 65, 400)):
        for stream in (False, True):
            status, answer = await generate(stack, prompt=prompt, stream=stream)
            assert status == expected
            assert answer["error"]["param"] == (None if expected == 500 else "prompt")


async def test_failure_during_a_stream_is_one_error_event(stack: Stack) -> None:
    parameters = {"prompt": json.dumps({"fail": "late"}), "size": "64x64"}
    async with stack.http.post(
        PATH, json=parameters | {"stream": True, "partial_images": 1}
    ) as response:
        assert response.status == 200
        (name, _), (nameless, last) = events_of(await response.read())
    assert name == "image_generation.partial_image"
    assert nameless is None
    assert last["error"]["type"] == "server_error"
    stream = await stack.openai.images.generate(
        prompt=parameters["prompt"], stream=True, partial_images=1
    )
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


async def test_keep_alive_comments_are_sent_while_an_image_stream_is_silent(
    start_stack: StartStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.exchange.runner.TICK_SECONDS", 0.05)
    stack = await start_stack(IMAGE, sse_keepalive_seconds=0.1, header_hold_seconds=0.05)
    async with stack.http.post(PATH, json=SMALL | {"prompt": HANG, "stream": True}) as response:
        assert response.status == 200
        assert await response.content.readline() == b": keep-alive\n"
        assert await response.content.readline() == b": keep-alive\n"


async def test_internal_error_during_a_stream_is_one_error_event(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("edge.handlers.images.ImageStream.closing", broken)
    parameters = SMALL | {"stream": True, "partial_images": 1}
    async with stack.http.post(PATH, json=parameters) as response:
        assert response.status == 200
        body = await response.read()
    (name, _), (nameless, last) = events_of(body)
    assert (name, nameless) == ("image_generation.partial_image", None)
    assert last["error"]["type"] == "server_error"
    assert b"secret" not in body


def deliver_padded(*arguments: Any) -> ImageMessage:
    """Delivers an image padded to the size of an incompressible one."""
    image = deliver(*arguments)
    image.data += bytes(5_000_000)
    return image


async def test_client_that_does_not_read_does_not_block_the_engine(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.engines.scripted_image.deliver", deliver_padded)
    url = URL(stack.url)
    body = json.dumps(SMALL | {"n": 4, "stream": True, "partial_images": 3}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
    try:
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert b"200" in await reader.readline()
        async with asyncio.timeout(10):
            assert (await generate(stack, **SMALL))[0] == 200
        assert stack.edge.requests, "the first response is still being sent"
    finally:
        writer.transport.abort()


async def test_slow_reader_gets_every_image(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.engines.scripted_image.deliver", deliver_padded)
    # The service aborts a call whose reader stalls, so the edge must read on for a slow client.
    monkeypatch.setattr("inference.service.STALL_SECONDS", 0.5)
    size = 0
    async with stack.http.post(PATH, json=SMALL | {"n": 4, "stream": True}) as response:
        while chunk := await response.content.read(4_000_000):
            size += len(chunk)
            await asyncio.sleep(0.7)
            last = chunk
    assert size > 4 * 6_600_000
    assert b"error" not in last[-400:]


async def test_silent_service_fails_the_request_with_503(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.upstream.unary_transport.SILENCE_SECONDS", 0.3)
    status, answer = await generate(stack, **SMALL | {"prompt": HANG})
    assert (status, answer["error"]["type"]) == (503, "server_error")
    await eventually(lambda: engine(stack).health().running == 0)


async def test_pulses_of_the_service_keep_a_slow_request_open(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.upstream.unary_transport.SILENCE_SECONDS", 1.0)
    monkeypatch.setattr("inference.service.PULSE_SECONDS", 0.05)
    script = json.dumps({"step_seconds": 2.0, "steps": 1})
    assert (await generate(stack, **SMALL | {"prompt": script}))[0] == 200


# Cancellation, deadlines and draining


@pytest.mark.parametrize("stream", [False, True])
async def test_client_disconnect_stops_the_image_engine(
    start_stack: StartStack, stream: bool
) -> None:
    stack = await start_stack(IMAGE, header_hold_seconds=0.01)
    parameters = SMALL | {"prompt": SLOW, "stream": stream}

    async def generate_and_read() -> None:
        async with stack.http.post(PATH, json=parameters) as response:
            await response.read()

    request = asyncio.create_task(generate_and_read())
    await eventually(lambda: engine(stack).steps_done > 10)
    request.cancel()
    await asyncio.wait([request])
    await eventually(lambda: not engine(stack).health().running)
    assert engine(stack).steps_done < 4000
    await eventually(lambda: stack.edge.requests == 0)
    replicas = [r for u in stack.edge.router.upstreams for r in u.replicas.values()]
    assert not any(replica.outstanding for replica in replicas)
    assert (await generate(stack, **SMALL))[0] == 200


async def test_deadline_stops_the_image_engine(stack: Stack) -> None:
    async with stack.http.post(
        PATH, json=SMALL | {"prompt": HANG}, headers={"x-request-timeout": "0.2"}
    ) as response:
        assert response.status == 504
        assert response.headers["x-should-retry"] == "false"
    await eventually(lambda: not engine(stack).health().running)


@pytest.mark.parametrize("stream", [False, True])
async def test_running_image_request_fails_when_the_drain_times_out(
    start_stack: StartStack, stream: bool
) -> None:
    stack = await start_stack(IMAGE, header_hold_seconds=0.01)
    request = asyncio.create_task(
        stack.http.post(PATH, json=SMALL | {"prompt": HANG, "stream": stream})
    )
    await eventually(lambda: stack.edge.exchanges and engine(stack).steps_done == 2)
    if stream:
        response = await request
    for exchange in tuple(stack.edge.exchanges):
        exchange.fail(overloaded())
    response = await request
    body = await response.read()
    if stream:
        ((name, data),) = events_of(body)
        assert (response.status, name) == (200, None)
    else:
        assert response.status == 503
        data = json.loads(body)
    assert data["error"]["type"] == "server_error"
    await eventually(lambda: not engine(stack).health().running)


# Refusals


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"model": "nope"}, (404, "model_not_found", None)),
        ({"model": "scripted"}, (404, None, "model")),
        ({"model": "scripted-embedding"}, (404, None, "model")),
        ({"size": "63x64"}, (400, "invalid_size", "size")),
        ({"size": "2049x64"}, (400, "invalid_size", "size")),
        ({"size": "2048x2048"}, (400, "invalid_size", "size")),
        ({"size": "99999x99999"}, (400, "invalid_size", "size")),
        ({"size": "0x0"}, (400, "invalid_size", "size")),
        ({"n": 11}, (400, "integer_above_max_value", "n")),
        ({"prompt": ""}, (400, "invalid_value", "prompt")),
        ({"prompt": "x" * 32_001}, (400, "string_above_max_length", "prompt")),
        ({"background": "transparent"}, (400, "unsupported_parameter", "background")),
        ({"output_format": "svg"}, (400, "unsupported_value", "output_format")),
    ],
)
async def test_invalid_image_request_is_refused_before_generation(
    stack: Stack, parameters: dict[str, Any], expected: tuple[int, str | None, str | None]
) -> None:
    for stream in (False, True):
        status, answer = await generate(stack, **(SMALL | parameters), stream=stream)
        error = answer["error"]
        assert (status, error["code"], error["param"]) == expected
    assert engine(stack).steps_done == 0


async def test_model_is_required_unless_exactly_one_image_model_is_served(
    start_stack: StartStack,
) -> None:
    other = msgspec.structs.replace(IMAGE, id="other-image")
    for models in ((TEXT,), (IMAGE, other)):
        stack = await start_stack(*models)
        status, answer = await generate(stack, **SMALL)
        assert (status, answer["error"]["message"]) == (400, "you must provide a model parameter")


async def test_out_of_memory_is_503_and_the_next_request_succeeds(stack: Stack) -> None:
    async with stack.http.post(
        PATH, json=SMALL | {"prompt": json.dumps({"fail": "memory"})}
    ) as response:
        assert response.status == 503
        assert int(response.headers["retry-after"]) >= 1
        assert (await response.json())["error"]["type"] == "server_error"
    assert (await generate(stack, **SMALL))[0] == 200


async def test_rate_limit_headers_count_image_requests(start_stack: StartStack) -> None:
    stack = await start_stack(msgspec.structs.replace(IMAGE, requests_per_minute=2))
    for stream, remaining in ((False, "1"), (True, "0")):
        async with stack.http.post(PATH, json=SMALL | {"stream": stream}) as response:
            assert response.status == 200
            assert response.headers["x-ratelimit-limit-requests"] == "2"
            assert response.headers["x-ratelimit-remaining-requests"] == remaining
            await response.read()
    async with stack.http.post(PATH, json=SMALL) as response:
        assert response.status == 429
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        assert int(response.headers["retry-after"]) >= 1
        assert (await response.json())["error"]["code"] == "rate_limit_exceeded"


async def test_image_models_are_listed_with_their_native_size(stack: Stack) -> None:
    async with stack.http.get("/v1/models/scripted-image") as response:
        assert (await response.json())["native_size"] == "64x64"


# Several replicas


@pytest.fixture
async def several() -> AsyncIterator[tuple[Edge, ClientSession, list[InferenceServer]]]:
    """An edge, an HTTP client of it and its three replicas."""
    async with AsyncExitStack() as ends:
        servers = [await ends.enter_async_context(running_server(IMAGE)) for _ in range(3)]
        upstreams = tuple(f"127.0.0.1:{server.port}" for server in servers)
        config = EdgeConfig(port=0, upstreams=upstreams, settle_seconds=0.0)
        edge, port = await ends.enter_async_context(serving(config))
        await eventually(edge.router.ready)
        http = await ends.enter_async_context(ClientSession(f"http://127.0.0.1:{port}"))
        yield edge, http, servers


async def test_request_refused_by_a_draining_replica_moves_to_another(
    several: tuple[Edge, ClientSession, list[InferenceServer]],
) -> None:
    edge, http, servers = several
    servers[0].registry.draining.set()
    drained = edge.router.upstreams[0].replicas[f"ipv4:127.0.0.1:{servers[0].port}"]
    await eventually(lambda: not drained.serving)
    for _ in range(4):
        # The edge has not yet learned that the replica is draining.
        drained.serving = True
        async with http.post(PATH, json=SMALL) as response:
            assert response.status == 200


async def test_request_that_crashes_an_engine_is_not_retried(
    several: tuple[Edge, ClientSession, list[InferenceServer]],
) -> None:
    _, http, servers = several
    async with http.post(PATH, json=SMALL | {"prompt": json.dumps({"fail": "die"})}) as response:
        assert response.status == 503
        assert response.headers["retry-after"]
    assert [server.registry.dead.is_set() for server in servers].count(True) == 1


async def test_request_is_retried_on_at_most_one_other_replica(
    several: tuple[Edge, ClientSession, list[InferenceServer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that crashes services must not reach all of them."""
    _, http, servers = several
    met = []

    async def turn_away(self: Any, *_: object) -> None:
        met.append(self)
        raise InferenceError("queue_timeout", "busy")

    monkeypatch.setattr(ScriptedImageEngine, "prepare", turn_away)
    async with http.post(PATH, json=SMALL) as response:
        assert response.status == 503
    assert len(servers) == 3
    assert len(met) == len(set(met)) == 2
