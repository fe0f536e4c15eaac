"""A worker for SMG without a model.

    python smg_worker.py TOKENIZER_JSON PORT TOKENS STEP_SECONDS TOKENS_PER_STEP

It runs in SMG's virtual environment, which has the messages of SMG's worker protocol, in the form
of vLLM's servicer: a stream for each request, token ids only, a message for each step, and a last
message with the finish reason. Messages are serialized once and sent as bytes, so that a token
costs the worker as little as the protocol allows in Python.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvloop
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream
from h2.settings import SettingCodes
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2
from steps import Steps, grouped, until_terminated  # type: ignore[import-not-found]

_SERVICE: Final = "vllm.grpc.engine.VllmEngine"
_CONTEXT_LENGTH: Final = 8192
# Different words in a response: enough that no gateway takes it for a loop.
_WORDS: Final = 512
_STREAMS_AT_ONCE: Final = 4096


class ReadyCodec(ProtoCodec):
    """Protobuf, but bytes, which are serialized messages, are sent unchanged."""

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message if isinstance(message, bytes) else super().encode(message, message_type)


class Worker:
    """The service. Every response has the same tokens; requests are not read for them."""

    def __init__(
        self, tokenizer: Path, tokens: int, step_seconds: float, tokens_per_step: int
    ) -> None:
        words = token_ids(tokenizer)
        self._tokenizer = tokenizer
        self._ids = [words[position % len(words)] for position in range(tokens)]
        self._pieces = grouped(self._ids, tokens_per_step)
        self._steps = Steps(step_seconds)
        self._running: set[str] = set()
        self._chunks: dict[int, list[bytes]] = {}
        self._began = time.monotonic()

    def __mapping__(self) -> dict[str, Handler]:
        proto, unary = vllm_engine_pb2, Cardinality.UNARY_UNARY
        streamed = Cardinality.UNARY_STREAM
        table: dict[str, tuple[Callable[..., Any], Cardinality, Any, Any]] = {
            "Generate": (self.generate, streamed, proto.GenerateRequest, proto.GenerateResponse),
            "HealthCheck": (
                self.health,
                unary,
                proto.HealthCheckRequest,
                proto.HealthCheckResponse,
            ),
            "GetModelInfo": (
                self.model_info,
                unary,
                proto.GetModelInfoRequest,
                proto.GetModelInfoResponse,
            ),
            "GetServerInfo": (
                self.server_info,
                unary,
                proto.GetServerInfoRequest,
                proto.GetServerInfoResponse,
            ),
            "GetLoads": (self.loads, unary, proto.GetLoadsRequest, proto.GetLoadsResponse),
            "Abort": (self.abort, unary, proto.AbortRequest, proto.AbortResponse),
            "GetTokenizer": (
                self.unimplemented,
                streamed,
                common_pb2.GetTokenizerRequest,
                common_pb2.GetTokenizerChunk,
            ),
            "SubscribeKvEvents": (
                self.unimplemented,
                streamed,
                common_pb2.SubscribeKvEventsRequest,
                common_pb2.KvEventBatch,
            ),
        }
        return {f"/{_SERVICE}/{name}": Handler(*entry) for name, entry in table.items()}

    async def generate(self, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        prompt_tokens, name = len(request.tokenized.input_ids), request.request_id
        self._running.add(name)
        try:
            if request.stream:
                # grpclib sends the headers with the first message, without a write of their own.
                for chunk in self._ready(prompt_tokens):
                    await self._steps.next()
                    if name not in self._running:
                        return
                    await stream.send_message(chunk)
                await stream.send_message(self._complete(prompt_tokens, []))
            else:
                for _ in self._pieces if self._steps.paced else ():
                    await self._steps.next()
                    if name not in self._running:
                        return
                await stream.send_message(self._complete(prompt_tokens, self._ids))
        finally:
            self._running.discard(name)

    def _ready(self, prompt_tokens: int) -> list[bytes]:
        if prompt_tokens not in self._chunks:
            ends = itertools.accumulate(map(len, self._pieces))
            self._chunks[prompt_tokens] = [
                vllm_engine_pb2.GenerateResponse(
                    chunk=vllm_engine_pb2.GenerateStreamChunk(
                        token_ids=piece,
                        prompt_tokens=prompt_tokens,
                        completion_tokens=end,
                    )
                ).SerializeToString()
                for piece, end in zip(self._pieces, ends, strict=True)
            ]
        return self._chunks[prompt_tokens]

    def _complete(self, prompt_tokens: int, output_ids: list[int]) -> bytes:
        return vllm_engine_pb2.GenerateResponse(
            complete=vllm_engine_pb2.GenerateComplete(
                output_ids=output_ids,
                finish_reason="length",
                prompt_tokens=prompt_tokens,
                completion_tokens=len(self._ids),
            )
        ).SerializeToString()

    async def health(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        response = vllm_engine_pb2.HealthCheckResponse(healthy=True, message="Health")
        await stream.send_message(response)

    async def model_info(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        directory = self._tokenizer.parent
        response = vllm_engine_pb2.GetModelInfoResponse(
            model_path=str(directory),
            is_generation=True,
            max_context_length=_CONTEXT_LENGTH,
            max_req_input_len=_CONTEXT_LENGTH,
            vocab_size=49_152,
            served_model_name="smollm2-135m-instruct",
            tokenizer_path=str(directory),
            model_type="llama",
            architectures=["LlamaForCausalLM"],
            eos_token_ids=[2],
            pad_token_id=2,
            bos_token_id=1,
        )
        await stream.send_message(response)

    async def server_info(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        response = vllm_engine_pb2.GetServerInfoResponse(
            active_requests=len(self._running),
            uptime_seconds=time.monotonic() - self._began,
            server_type="vllm-grpc",
            data_parallel_size=1,
        )
        await stream.send_message(response)

    async def loads(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        running = len(self._running)
        load = vllm_engine_pb2.SchedulerLoad(num_running_reqs=running, num_total_reqs=running)
        response = vllm_engine_pb2.GetLoadsResponse(version="0", dp_rank_count=1, loads=[load])
        await stream.send_message(response)

    async def abort(self, stream: Stream[Any, Any]) -> None:
        # The gateway cancels by this call and leaves the stream of the request open.
        request = await stream.recv_message()
        self._running.difference_update(request.request_ids)
        await stream.send_message(vllm_engine_pb2.AbortResponse())

    async def unimplemented(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        raise GRPCError(Status.UNIMPLEMENTED)


def token_ids(tokenizer: Path) -> list[int]:
    """Returns ids of tokens of a space and four lower-case letters."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    space = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
    found = sorted(
        number
        for word, number in vocabulary.items()
        if word[0] == space and len(word) == 5 and word[1:].isascii() and word[1:].islower()
    )
    return found[:_WORDS]


class _ManyStreams(H2Protocol):
    """A connection without grpclib's limit of 100 calls, which vLLM's gRPC server lacks, too."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        connection = self.connection._connection
        connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS_AT_ONCE})
        self.connection.flush()


class _Server(Server):
    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        return _ManyStreams(made.handler, made.config, made.h2_config)


async def serve(worker: Worker, port: int) -> None:
    """Serves until SIGTERM."""
    server = _Server([worker], codec=ReadyCodec())
    await server.start("127.0.0.1", port)
    await until_terminated()
    server.close()


if __name__ == "__main__":
    _tokenizer, _port, _tokens, _step_seconds, _tokens_per_step = sys.argv[1:]
    _worker = Worker(Path(_tokenizer), int(_tokens), float(_step_seconds), int(_tokens_per_step))
    uvloop.run(serve(_worker, int(_port)))
