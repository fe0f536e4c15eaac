"""The commands that call running services, beside a service with scripted engines."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.config import ModelConfig
from keys import create_key
from launch.__main__ import main
from tests.conftest import EMBEDDING, IMAGE, TEXT, Stack, StartStack, eventually
from tests.launch.test_status import start_program

HANG = {"messages": [{"role": "user", "content": '{"fail": "hang"}'}], "model": "scripted"}


@pytest.fixture
def transport() -> str:
    return "session"


class Isthmus:
    """Runs commands against a stack."""

    def __init__(
        self, stack: Stack, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.stack = stack
        self._capfd = capfd
        self._patch = patch

    async def __call__(self, command: str, *options: str, piped: str = "") -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        self._patch.setattr(sys, "stdin", io.StringIO(piped))
        address = ["--grpc", f"127.0.0.1:{self.stack.server.port}"]
        status = await asyncio.to_thread(main, [command, *options, *address])
        out, err = self._capfd.readouterr()
        return status, out, err

    async def json(self, command: str, *options: str, piped: str = "") -> Any:
        status, out, err = await self(command, "--json", *options, piped=piped)
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
async def isthmus(
    start_stack: StartStack, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Isthmus:
    monkeypatch.delenv("ISTHMUS_API_KEY", raising=False)
    return Isthmus(await start_stack(TEXT, EMBEDDING, IMAGE), capfd, monkeypatch)


async def test_generate_prints_the_text_and_nothing_else(isthmus: Isthmus) -> None:
    assert await isthmus("generate", "hi", "--max-tokens", "3") == (0, "w0 w1 w2 \n", "")


async def test_generate_reads_a_pipe_after_its_prompt(isthmus: Isthmus) -> None:
    answer = await isthmus.json("generate", "a b", piped="c d e")
    # The scripted engine counts words.
    assert answer["usage"]["prompt_tokens"] == 5


async def test_generate_as_json_has_usage_and_finish_reason(isthmus: Isthmus) -> None:
    assert await isthmus.json("generate", "hi", "--max-tokens", "2") == {
        "model": "scripted",
        "text": "w0 w1 ",
        "reasoning": "",
        "tool_calls": [],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0},
    }


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["generate"], 2, "There is no prompt"),
        (["generate", "hi", "--model", "nope"], 1, "'nope' for text. Served are: scripted."),
        (["generate", "hi", "--temperature", "3"], 1, "Invalid '--temperature'"),
        (["generate", "hi", "--schema", "/nowhere.json"], 2, "/nowhere.json: No such file"),
        (["generate", "hi", "--raw", "--system", "x"], 2, "--raw takes a text only"),
        (["embed"], 2, "There is no text"),
        (["embed", "a", "--model", "scripted"], 1, "'scripted' for embedding"),
        (["image", "x", "--size", "big"], 2, "--size: big is not like 256x256"),
        (["image", "x", "--json", "-o", "/nowhere/x.png"], 1, "/nowhere/x.png: No such file"),
        (["generate", '{"fail": "start"}'], 1, "isthmus generate: "),
        (["generate", "hi", "--grpc", "nowhere"], 2, "--grpc: nowhere is not HOST:PORT"),
        (["generate", "hi", "--grpc", "127.0.0.1:1"], 1, "127.0.0.1:1 does not answer"),
        (["generate", "hi", "--ca", "/nowhere.pem"], 2, "--ca: there is no file /nowhere.pem"),
        (["generate", "hi", "--key", "a\nb"], 2, "The key has characters that no key has."),
        (["generate", "hi", "--seed", str(2**64)], 2, f"--seed: {2**64} is out of range."),
        (["generate", "hi", "--min-tokens", "9", "--max-tokens", "2"], 1, "'--min-tokens'"),
        (["generate", "hi", "--schema", __file__], 1, "Invalid '--schema': "),
        (["generate", "hi", "--schema", sys.executable], 2, " is not UTF-8."),
        (["generate", "hi", "--image", __file__], 1, f"'--image {__file__}'"),
        (["generate", "hi", "--system", "x", "--image", __file__], 1, f"'--image {__file__}'"),
        (["embed", "cat", ""], 2, "A text is empty."),
    ],
)
async def test_failures_say_what_is_wrong(
    isthmus: Isthmus, options: list[str], status: int, said: str
) -> None:
    found = await isthmus(*options)
    assert found[0] == status
    assert said in found[2]
    assert "Traceback" not in found[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["generate", "hi", "--max-tokens", "-1"], "--max-tokens: must be a whole number"),
        (["generate", "hi", "--max-tokens", str(2**32)], "--max-tokens: must be a whole number"),
        (["generate", "caf\udce9"], "argument prompt: not UTF-8"),
        (["generate", "hi", "--stop", "\udce9"], "argument --stop: not UTF-8"),
        (["generate", "hi", "--bad-words", "\udce9"], "argument --bad-words: not UTF-8"),
        (["generate", "hi", "--timeout", "x"], "--timeout: invalid seconds value"),
        (["embed", "\udce9"], "argument text: not UTF-8"),
        (["embed", "cat", "--dimensions", "-1"], "--dimensions: must be a whole number"),
        (["image", "cat", "--number", "-1"], "--number: must be a whole number"),
        (["image", "cat", "--seed", str(2**63)], "--seed: must be a whole number"),
        (["batch", "a", "b", "--concurrency", "x"], "--concurrency: must be at least 1"),
    ],
)
def test_option_that_cannot_be_used_is_named(
    capfd: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(options)
    assert left.value.code == 2
    assert said in capfd.readouterr().err


async def test_pipe_must_be_utf_8(isthmus: Isthmus) -> None:
    for command in ("generate", "embed"):
        status, _, err = await isthmus(command, piped="caf\udce9")
        assert (status, err) == (2, f"isthmus {command}: Standard input is not UTF-8.\n")
    status, out, err = await isthmus("chat", piped="caf\udce9\n/set max_tokens 2\nhi\n")
    assert (status, out) == (0, "w0 w1 \n")
    assert "That is not UTF-8." in err


async def test_reader_that_has_enough_ends_the_command(start_stack: StartStack) -> None:
    slow = {"step_seconds": 0.02, "tokens": 500}
    stack = await start_stack(ModelConfig(id="scripted", engine="scripted", engine_args=slow))
    command = f"{sys.executable} -m launch generate hi"
    process = await asyncio.create_subprocess_shell(
        f"({command} --grpc 127.0.0.1:{stack.server.port}; echo $? >&2) | head -c 2",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        assert await process.communicate() == (b"w0", b"141\n")
    await eventually(lambda: not stack.engine.health().running)


async def test_without_a_service_the_remedy_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.client.services._ADDRESSES", ("127.0.0.1:1", "127.0.0.1:2"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert await asyncio.to_thread(main, ["generate", "hi"]) == 1
    assert "Start one with `isthmus up`" in capfd.readouterr().err


async def test_embed_prints_a_vector_for_each_line(isthmus: Isthmus) -> None:
    status, out, _ = await isthmus("embed", piped="a cat\n\na kitten\n")
    vectors = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    expected = await isthmus.stack.openai.embeddings.create(
        model="scripted-embedding", input=["a cat", "a kitten"], encoding_format="float"
    )
    assert vectors == [each.embedding for each in expected.data]


async def test_image_goes_to_files_and_pipes(isthmus: Isthmus, tmp_path: Path) -> None:
    options = ["a", "heart", "--size", "64x64", "--seed", "7"]
    status, out, _ = await isthmus("image", *options, "-n", "2", "-o", str(tmp_path / "x.png"))
    assert status == 0
    assert out.splitlines() == [f"{tmp_path}/x.png  seed 7", f"{tmp_path}/x-2.png  seed 8"]
    response = await isthmus.stack.openai.images.generate(
        model="scripted-image", prompt="a heart", size="64x64", extra_body={"seed": 7}
    )
    assert response.data
    image = base64.b64decode(response.data[0].b64_json or "")
    assert (tmp_path / "x.png").read_bytes() == image
    process = await start_program(
        "image", *options, "--grpc", f"127.0.0.1:{isthmus.stack.server.port}"
    )
    piped, _ = await process.communicate()
    assert piped.startswith(image)


async def test_chat_keeps_the_conversation(isthmus: Isthmus, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    lines = [
        *("one two", "/stats", "three", "/undo", "/system be brief", "/set max_tokens 2"),
        *("four", "/set nope 1", "/nope", f"/save {saved}", "/retry", "/quit", "not sent"),
    ]
    status, out, err = await isthmus("chat", "--max-tokens", "3", piped="\n".join(lines))
    assert status == 0
    assert out.splitlines() == ["w0 w1 w2 "] * 2 + ["w0 w1 "] * 2
    # Two words, an answer of three, one word; then with "be brief" and without the undone turn.
    assert [
        line.split(" tokens in")[0].rpartition(" ")[2]
        for line in err.splitlines()
        if "tokens in" in line
    ] == ["6", "8", "8"]
    assert "There is no parameter 'nope'" in err
    assert "There is no /nope" in err
    document = json.loads(saved.read_text())
    assert [(each["role"], each["content"]) for each in document] == [
        ("system", "be brief"),
        ("user", "one two"),
        ("assistant", "w0 w1 w2 "),
        ("user", "four"),
        ("assistant", "w0 w1 "),
    ]
    status, out, err = await isthmus("chat", piped=f"/load {saved}\n/load /nowhere\n")
    assert "4 messages" in err
    assert "/nowhere is no conversation" in err


async def test_chat_goes_on_after_a_failure(isthmus: Isthmus) -> None:
    lines = ['{"fail": "mid"}', "hi", "/set max_tokens 1", "again"]
    status, out, err = await isthmus("chat", piped="\n".join(lines))
    assert status == 0
    assert out.splitlines()[-1] == "w0 "
    assert "internal error" in err.lower() or "server had an error" in err.lower()


async def test_key_is_needed_and_read_from_the_environment(
    start_stack: StartStack,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = tmp_path / "keys.json"
    _, edge_key = create_key(keys, "edge", scope="edge")
    _, key = create_key(keys, "someone")
    stack = await start_stack(TEXT, keys=keys, server_keys=keys, key=key, upstream_token=edge_key)
    monkeypatch.delenv("ISTHMUS_API_KEY", raising=False)
    isthmus = Isthmus(stack, capfd, monkeypatch)
    status, _, err = await isthmus("generate", "hi")
    assert status == 1
    assert "ISTHMUS_API_KEY" in err
    monkeypatch.setenv("ISTHMUS_API_KEY", key)
    assert (await isthmus("generate", "hi", "--max-tokens", "1"))[:2] == (0, "w0 \n")


async def test_interrupt_stops_the_engine(start_stack: StartStack) -> None:
    stack = await start_stack(ModelConfig(id="slow", engine="scripted", slow_step_seconds=600))
    address = f"127.0.0.1:{stack.server.port}"
    process = await start_program("generate", '{"fail": "hang"}', "--grpc", address)
    await eventually(lambda: stack.engine.health().running)
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    await eventually(lambda: not stack.engine.health().running)


# --- batch -------------------------------------------------------------------------------------


def line(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> str:
    if "messages" not in body and url.endswith("chat/completions"):
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def responses(path: Path) -> dict[str, Any]:
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    found = {each["custom_id"]: each["response"] for each in lines}
    assert len(found) == len(lines)
    return found


async def test_batch_answers_as_the_edge_does(isthmus: Isthmus, tmp_path: Path) -> None:
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": (
            "/v1/chat/completions",
            {"model": "gpt-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        ),
        "prompts": (
            "/v1/completions",
            {"model": "scripted", "prompt": ["a", "b"], "max_tokens": 2, "n": 2},
        ),
        "response": ("/v1/responses", {"model": "gpt-4", "input": "hi", "max_output_tokens": 3}),
        "stored": ("/v1/responses", {"model": "gpt-4", "input": "hi", "store": True}),
        "no chat model": ("/v1/responses", {"model": "ada", "input": "hi"}),
        "vectors": ("/v1/embeddings", {"model": "ada", "input": ["a", "b"]}),
        "image": (
            "/v1/images/generations",
            {"model": "scripted-image", "prompt": "x", "seed": 1, "size": "64x64"},
        ),
        "unknown model": ("/v1/completions", {"model": "nope", "prompt": "a"}),
        "wrong kind": ("/v1/embeddings", {"model": "scripted", "input": "a"}),
        "invalid": ("/v1/completions", {"model": "scripted", "prompt": "a", "temperature": 9}),
        "too long": ("/v1/embeddings", {"model": "ada", "input": ["a", "b c d e f g h i j"]}),
    }
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(line(name, url, **body) for name, (url, body) in requests.items()))
    status, _, err = await isthmus("batch", str(source), str(target))
    assert status == 1
    assert "5 requests failed" in err
    found = responses(target)
    assert set(found) == set(requests)
    for name, (url, body) in requests.items():
        async with isthmus.stack.http.post(url, json=body) as response:
            expected = await response.json()
            assert found[name]["status_code"] == response.status, name
        for document in (expected, found[name]["body"]):
            for member in ("id", "created", "created_at", "completed_at"):
                document.pop(member, None)
            for item in document.get("output", ()):
                item.pop("id")
        assert found[name]["body"] == expected, name


async def test_batch_goes_on_where_it_was_cut(isthmus: Isthmus, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(line(str(number), max_tokens=1) for number in range(9)))
    assert (await isthmus("batch", str(source), str(target)))[0] == 0
    before = target.read_bytes().splitlines(keepends=True)
    # Five whole lines, one that says "no room", and half a line.
    refused = before[5].replace(b'"status_code":200', b'"status_code":503')
    target.write_bytes(b"".join(before[:5]) + refused + before[6][:40])
    calls = isthmus.stack.engine.health().generated_tokens
    status, _, err = await isthmus("batch", str(source), str(target))
    assert status == 0
    assert "5 of 9 requests are done already" in err
    assert isthmus.stack.engine.health().generated_tokens - calls == 4
    after = target.read_bytes().splitlines(keepends=True)
    assert after[:5] == before[:5]
    assert set(responses(target)) == {str(number) for number in range(9)}


async def test_batch_waits_for_room(
    start_stack: StartStack,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelConfig(id="scripted", engine="scripted", max_running=1, max_queued=0)
    isthmus = Isthmus(await start_stack(model), capfd, monkeypatch)
    monkeypatch.setattr("launch.client.batch_command._FIRST_DELAY", 0.01)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(line(str(number), max_tokens=3) for number in range(6)))
    status, _, err = await isthmus("batch", str(source), str(target), "--retries", "100")
    assert status == 0, err
    assert {each["status_code"] for each in responses(target).values()} == {200}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "in.jsonl:1: "),
        (line("a") + "\n" + line("a"), "in.jsonl:2: the custom_id 'a' is used twice"),
        ('{"custom_id": "a"}', "missing required field"),
    ],
)
async def test_batch_refuses_a_file_that_it_cannot_read(
    isthmus: Isthmus, tmp_path: Path, text: str, said: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(text)
    status, _, err = await isthmus("batch", str(source), str(tmp_path / "out.jsonl"))
    assert status == 2
    assert said in err
    assert not (tmp_path / "out.jsonl").exists()


async def test_batch_leaves_a_file_alone_that_is_no_output(
    isthmus: Isthmus, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(line("a"))
    for text in (line("a"), line("a") + "\n", "notes", "\n", '{"id":"batch_req_1"}\n'):
        target.write_text(text)
        status, _, err = await isthmus("batch", str(source), str(target))
        assert (status, target.read_text()) == (2, text)
        assert "out.jsonl:1: no response of a batch" in err
    status, _, err = await isthmus("batch", str(source), str(source))
    assert (status, source.read_text()) == (2, line("a"))
    for nowhere in (tmp_path, tmp_path / "missing" / "out.jsonl"):
        status, _, err = await isthmus("batch", str(source), str(nowhere))
        assert status == 2
        assert err.startswith(f"isthmus batch: {nowhere}: ")


async def test_interrupted_batch_stops_its_calls_and_keeps_what_it_has(
    start_stack: StartStack, tmp_path: Path
) -> None:
    stack = await start_stack(ModelConfig(id="scripted", engine="scripted", slow_step_seconds=600))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(line("done", max_tokens=1) + "\n" + line("hangs", **HANG))
    process = await start_program(
        *("batch", str(source), str(target)), "--grpc", f"127.0.0.1:{stack.server.port}"
    )
    await eventually(lambda: target.exists() and target.read_text().count("\n") == 1)
    await eventually(lambda: stack.engine.health().running)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        assert await process.wait() == 130
    assert set(responses(target)) == {"done"}
    await eventually(lambda: not stack.engine.health().running)
