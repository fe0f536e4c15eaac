"""Every parameter of the contract's table is refused outside its range, on both faces.

The cases are generated from the table, so a new parameter needs no case here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from contract.parameters import PARAMETERS, Parameter
from isthmus.v1.generate_pb2 import GenerateRequest
from tests.conftest import Stack
from tests.contract.test_grpc import details

VOCABULARY = 50_000  # of the scripted engine


def wrong_values(parameter: Parameter) -> Iterator[Any]:
    """Values of the field's type that are outside the parameter's range."""
    if parameter.token_ids:
        yield [VOCABULARY]
    if parameter.max_length is not None:
        one: Any = "x" if parameter.kind is str else 1
        yield ([one] if parameter.repeated else one) * (parameter.max_length + 1)
    if parameter.repeated and parameter.kind is str:
        yield [" "]
    if parameter.kind is float:
        if parameter.minimum is not None:
            yield parameter.minimum - (0 if parameter.above_minimum else 0.5)
        if parameter.maximum is not None:
            yield parameter.maximum + 0.5


CASES = [
    pytest.param(parameter, value, id=f"{parameter.name}={str(value)[:20]}")
    for parameter in PARAMETERS
    for value in wrong_values(parameter)
]


def message(parameter: Parameter, value: Any) -> GenerateRequest:
    request = GenerateRequest(model="scripted", text="x")
    parameter.set(request, value)
    return request


@pytest.mark.parametrize(("parameter", "value"), CASES)
async def test_value_outside_the_range_is_refused_by_name_on_both_faces(
    stack: Stack, parameter: Parameter, value: Any
) -> None:
    body = {"model": "scripted", "prompt": "x", parameter.name: value}
    async with stack.http.post("/v1/completions", json=body) as response:
        error = (await response.json())["error"]
    # The error about a token names its place in the list.
    named = f"{parameter.name}[0]" if parameter.token_ids and len(value) == 1 else parameter.name
    assert (response.status, error["param"]) == (400, named)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stack.stub.Generate(message(parameter, value)):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value) == (error["code"], named)


@pytest.mark.parametrize(
    "parameter", [p for p in PARAMETERS if p.not_empty], ids=lambda parameter: parameter.name
)
async def test_empty_value_is_refused_by_name(stack: Stack, parameter: Parameter) -> None:
    empty: Any = [] if parameter.repeated else ""
    body = {"model": "scripted", "prompt": "x", parameter.name: empty}
    async with stack.http.post("/v1/completions", json=body) as response:
        error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, parameter.name)


def test_table_has_every_marked_field() -> None:
    names = {parameter.name for parameter in PARAMETERS}
    assert {"temperature", "top_k", "stop_token_ids", "cache_salt"} <= names
    assert len(names) == len(PARAMETERS)
