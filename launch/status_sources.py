"""What `isthmus status` asks: /ready and /metrics of an edge, other metrics, and ListModels."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import msgspec
from aiohttp import ClientConnectorCertificateError, ClientError, ClientSession, ClientTimeout
from prometheus_client.parser import text_string_to_metric_families

from isthmus.v1.inference_pb2_grpc import InferenceServiceStub
from isthmus.v1.models_pb2 import ListModelsRequest, Model

_SECONDS: Final = 5.0
_NEEDS_KEY: Final = (
    "pass --key or set ISTHMUS_API_KEY; a key of scope metrics is enough: "
    "isthmus keys create NAME --scope metrics"
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Who is asked.

    Attributes:
        url: An edge, without a final slash.
        metrics: HOST:PORT of listeners with metrics only, of edges and services.
        services: HOST:PORT of gRPC.
        key: For `url` and `services`; "" sends none.
        ca: PEM file of who signed their certificates. It turns TLS to `services` on.
    """

    url: str
    metrics: Sequence[str] = ()
    services: Sequence[str] = ()
    key: str = ""
    ca: Path | None = None


class Scrape:
    """The samples of one GET /metrics."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def has(self, name: str) -> bool:
        """Whether it has a sample of this name."""
        return any(name == each for each, _, _ in self._samples)

    def each(self, name: str, *by: str, **labels: str) -> dict[tuple[str, ...], list[float]]:
        """The values of the samples with these labels, grouped by other labels."""
        groups: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
        for found, had, value in self._samples:
            if found == name and labels.items() <= had.items():
                groups[tuple(had.get(label, "") for label in by)].append(value)
        return dict(groups)

    def labels(self, name: str, label: str) -> list[str]:
        """The values of a label."""
        return [group[0] for group in self.each(name, label)]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of all samples with these labels."""
        return sum(sum(values) for values in self.each(name, **labels).values())


class _Readiness(msgspec.Struct):
    status: str
    problems: dict[str, str] = {}


@dataclass(slots=True)
class Look:
    """What was seen at one time.

    Attributes:
        at: Monotonic seconds.
        readiness: "ready", "draining" or "waiting for upstreams"; "" if the edge told nothing.
        problems: What is wrong, by upstream.
        scrapes: One for each listener that answered.
        models: The answers to ListModels.
        errors: What failed, and what to do.
    """

    at: float
    readiness: str = ""
    problems: dict[str, str] = field(default_factory=dict)
    scrapes: list[Scrape] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def look(sources: Sources) -> Look:
    """Asks all sources at once; a failure is in `errors`."""
    seen = Look(time.monotonic())
    async with ClientSession(timeout=ClientTimeout(total=_SECONDS)) as http:
        answers = [_models(seen, sources, address) for address in sources.services]
        answers += [_scrape(seen, http, f"http://{each}", "", sources) for each in sources.metrics]
        answers.append(_edge(seen, http, sources))
        await asyncio.gather(*answers)
    seen.scrapes.sort(key=lambda each: each.source)
    seen.errors.sort()
    return seen


async def _edge(seen: Look, http: ClientSession, sources: Sources) -> None:
    url = sources.url
    got = await _get(seen, http, f"{url}/ready", "", sources)
    if got is None:
        return
    try:
        told = msgspec.json.decode(got[1], type=_Readiness)
    except msgspec.MsgspecError:
        seen.errors.append(f"{url} is no edge of Isthmus. Name an edge with --url.")
        return
    seen.readiness, seen.problems = told.status, told.problems
    await _scrape(seen, http, url, sources.key, sources)


async def _scrape(seen: Look, http: ClientSession, base: str, key: str, sources: Sources) -> None:
    got = await _get(seen, http, f"{base}/metrics", key, sources)
    if got is None:
        return
    status, body = got
    if status in (401, 403):
        seen.errors.append(f"{base}/metrics wants a valid key: {_NEEDS_KEY}.")
    elif status == 404 and base == sources.url:
        if not sources.metrics:
            seen.errors.append(
                f"{base} has its metrics on a listener of its own (metrics_listen). "
                "Name it with --metrics HOST:PORT."
            )
    elif status != 200:
        seen.errors.append(f"{base}/metrics answered {status}. Name a listener of Isthmus.")
    else:
        try:
            seen.scrapes.append(Scrape(base, body.decode()))
        except ValueError:
            seen.errors.append(f"{base}/metrics has no metrics. Name a listener of Isthmus.")


async def _get(
    seen: Look, http: ClientSession, url: str, key: str, sources: Sources
) -> tuple[int, bytes] | None:
    """Status and body; None after a failure."""
    trust = ssl.create_default_context(cafile=sources.ca) if url.startswith("https:") else True
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with http.get(url, headers=headers, ssl=trust) as response:
            return response.status, await response.read()
    except TimeoutError:
        seen.errors.append(f"{url} did not answer within {_SECONDS:.0f} s. Look at its log.")
    except ClientConnectorCertificateError:
        seen.errors.append(f"{url} has a certificate that is not trusted. Pass --ca FILE.")
    except (ClientError, OSError, ValueError):
        option = "--url" if url.startswith(sources.url) else "--metrics"
        seen.errors.append(
            f"{url} does not answer. Start it (isthmus up), or name another one with {option}."
        )
    return None


async def _models(seen: Look, sources: Sources, address: str) -> None:
    metadata = (("authorization", f"Bearer {sources.key}"),) if sources.key else ()
    options = (("grpc.enable_http_proxy", 0),)
    if sources.ca is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        credentials = grpc.ssl_channel_credentials(sources.ca.read_bytes())
        channel = grpc.aio.secure_channel(address, credentials, options)
    async with channel:
        try:
            answer = await InferenceServiceStub(channel).ListModels(
                ListModelsRequest(), metadata=metadata, timeout=_SECONDS
            )
            seen.models += answer.models
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                advice = "wants a valid key of scope api: pass --key or set ISTHMUS_API_KEY"
            elif code == grpc.StatusCode.UNIMPLEMENTED:
                advice = "is no service of Isthmus. Name one with --grpc"
            else:
                advice = (
                    "does not answer. Start it, name another one with --grpc, or pass --ca for TLS"
                )
            seen.errors.append(f"{address} {advice}.")
