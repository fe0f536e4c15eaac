"""The default image model through the official SDK, image URLs and buf curl."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.stack.conftest import Up


@pytest.fixture
def client(up: Up) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        yield client


def opened(b64_json: str | None) -> Image.Image:
    assert b64_json
    image = Image.open(io.BytesIO(base64.b64decode(b64_json, validate=True)))
    image.load()
    return image


def colours(image: Image.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Mean colours of the middle and of the upper left corner."""
    small = image.convert("RGB").resize((8, 8), Image.Resampling.BOX)
    middle = image.convert("RGB").resize((5, 5), Image.Resampling.BOX).getpixel((2, 2))
    corner = small.getpixel((0, 0))
    assert isinstance(middle, tuple)
    assert isinstance(corner, tuple)
    return middle, corner


def test_image_of_a_red_heart_is_red_on_white(client: OpenAI) -> None:
    answer = client.images.generate(model="emoji", prompt="a red heart", extra_body={"seed": 1})
    [entry] = answer.data or []
    assert entry.url is None
    image = opened(entry.b64_json)
    assert (image.format, image.size) == ("PNG", (1024, 1024))
    assert answer.size == "1024x1024"
    assert answer.usage is not None
    assert answer.usage.input_tokens == answer.usage.total_tokens == 5, "[CLS] a red heart [SEP]"
    (red, green, blue), corner = colours(image)
    assert red > 150 > max(green, blue)
    assert min(corner) > 240, "the background is white"


def test_image_depends_on_prompt_and_seed_and_is_repeatable(client: OpenAI) -> None:
    def draw(prompt: str, seed: int) -> str | None:
        answer = client.images.generate(
            model="gpt-image-1", prompt=prompt, size="256x256", extra_body={"seed": seed}
        )
        [entry] = answer.data or []
        return entry.b64_json

    heart = draw("a blue heart", 7)
    (red, _, blue), _ = colours(opened(heart))
    assert blue > red + 50
    assert draw("a blue heart", 7) == heart
    assert draw("a blue heart", 8) != heart


def test_image_stream_sends_partial_images_and_the_final_one(client: OpenAI) -> None:
    events = list(
        client.images.generate(
            model="gpt-image-1",
            prompt="smiling face with sunglasses",
            size="256x256",
            stream=True,
            partial_images=2,
            extra_body={"seed": 1},
        )
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    images = [opened(event.b64_json) for event in events]
    assert {image.size for image in images} == {(256, 256)}
    assert len({event.b64_json for event in events}) == 3
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.input_tokens > 0
    mean = images[-1].convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(mean, tuple)
    assert mean[0] > mean[2] + 20, "a yellow face, on white"


def test_image_urls_serve_each_image(client: OpenAI) -> None:
    answer = client.images.generate(
        model="dall-e-3", prompt="a cat", n=2, size="512x512", response_format="url"
    )
    assert len(answer.data or []) == 2
    for entry in answer.data or []:
        assert entry.b64_json is None
        assert entry.url
        with urllib.request.urlopen(entry.url, timeout=30) as response:
            assert response.headers["content-type"] == "image/png"
            assert Image.open(io.BytesIO(response.read())).size == (512, 512)


@pytest.mark.parametrize(
    ("param", "parameters"),
    [
        ("size", {"size": "1x1"}),
        ("size", {"size": "99999x99999"}),
        ("n", {"n": 11}),
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": "word " * 30}),
        ("output_format", {"output_format": "gif"}),
    ],
    ids=str,
)
def test_invalid_image_request_is_refused_naming_the_parameter(
    client: OpenAI, param: str, parameters: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"model": "emoji", "prompt": "a cat"} | parameters)
    assert caught.value.param == param


def test_model_list_has_the_native_image_size(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert listed["emoji"].native_size == "128x128"
    assert {"dall-e-2", "dall-e-3", "gpt-image-1"} <= listed.keys()


def test_grpc_image_call_sends_progress_of_every_step(up: Up) -> None:
    request = {"model": "emoji", "prompt": "a rocket", "width": 128, "height": 128, "steps": 8}
    done = subprocess.run(
        [
            *(f"{sys.prefix}/bin/buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("-d", json.dumps(request)),
            f"http://127.0.0.1:{up.grpc_port + 2}/isthmus.v1.InferenceService/GenerateImage",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    decoder, text, messages = json.JSONDecoder(), done.stdout.lstrip(), []
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].lstrip()
    kinds = [key for message in messages for key in message if key != "timings"]
    assert kinds == ["admitted", *["progress"] * 8, "image", "usage"]
    steps = [message["progress"] for message in messages if "progress" in message]
    assert steps == [{"step": step, "totalSteps": 8} for step in range(1, 9)]
    assert opened(messages[-2]["image"]["data"]).size == (128, 128)
