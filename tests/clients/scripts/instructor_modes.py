"""Instructor in every mode that it has for OpenAI's chat completions."""

import asyncio
import os
import warnings
from collections.abc import Iterable

import instructor
import openai
import pytest
from instructor import Mode
from instructor.v2.core.registry import mode_registry
from pydantic import BaseModel, field_validator

URL = os.environ["ISTHMUS_URL"] + "/v1"
MODEL = "gpt-4o-mini"
# Each asks for one object; PARALLEL_TOOLS has a test of its own.
MODES = [
    Mode.TOOLS,
    Mode.TOOLS_STRICT,
    Mode.FUNCTIONS,
    Mode.JSON,
    Mode.JSON_O1,
    Mode.MD_JSON,
    Mode.JSON_SCHEMA,
]
ROME = {"city": "Rome", "inhabitants": 42}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
    "hwGA60e6kgAAAABJRU5ErkJggg=="
)
WISH = [{"role": "user", "content": "Extract city = Rome, inhabitants = 42."}]


class City(BaseModel):
    """A city."""

    city: str
    inhabitants: int


class Loud(BaseModel):
    """A city in capitals."""

    city: str

    @field_validator("city")
    @classmethod
    def in_capitals(cls, value: str) -> str:
        if not value.isupper():
            raise ValueError("write it in capitals: city = ROME")
        return value


class Nested(BaseModel):
    """A country with its cities."""

    name: str
    cities: list[City]
    capital: City | None = None


def client_of(mode: Mode) -> instructor.Instructor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
        return instructor.from_openai(client, mode=mode)


def test_plain_answer_without_a_class() -> None:
    answer = client_of(Mode.TOOLS).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], response_model=None
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."


def test_streamed_answer_without_a_class() -> None:
    chunks = client_of(Mode.TOOLS).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        response_model=None,
        stream=True,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "The capital of France is Paris."


def test_tools_are_called_in_parallel() -> None:
    class Weather(BaseModel):
        city: str

    class Search(BaseModel):
        query: str

    calls = client_of(Mode.PARALLEL_TOOLS).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Weather for city = Rome; Search query = pizza."}],
        response_model=Iterable[Weather | Search],
    )
    assert list(calls) == [Weather(city="Rome"), Search(query="pizza")]


@pytest.mark.parametrize("mode", MODES)
def test_structured_answer_of_a_class(mode: Mode) -> None:
    city = client_of(mode).create(model=MODEL, messages=WISH, response_model=City)
    assert city.model_dump() == ROME


@pytest.mark.parametrize("mode", MODES)
def test_structured_answer_with_its_completion(mode: Mode) -> None:
    city, completion = client_of(mode).create_with_completion(
        model=MODEL, messages=WISH, response_model=City
    )
    assert city.model_dump() == ROME
    assert completion.usage.total_tokens > 0


@pytest.mark.parametrize("mode", MODES)
def test_structured_answer_is_corrected(mode: Mode) -> None:
    city = client_of(mode).create(model=MODEL, messages=WISH, response_model=Loud, max_retries=2)
    assert city.city == "ROME"


@pytest.mark.parametrize("mode", MODES)
def test_structured_answer_is_nested(mode: Mode) -> None:
    country = client_of(mode).create(
        model=MODEL,
        messages=[{"role": "user", "content": "name = Italy, city = Rome, inhabitants = 42"}],
        response_model=Nested,
    )
    assert country.model_dump() == {"name": "Italy", "cities": [ROME, ROME], "capital": ROME}


@pytest.mark.parametrize("mode", MODES)
def test_structured_answer_is_streamed_in_part(mode: Mode) -> None:
    cities = list(client_of(mode).create_partial(model=MODEL, messages=WISH, response_model=City))
    assert len(cities) > 1
    assert (cities[-1].city, cities[-1].inhabitants) == ("Rome", 42)


@pytest.mark.parametrize("mode", MODES)
def test_structured_answer_is_streamed_as_a_list(mode: Mode) -> None:
    cities = list(client_of(mode).create_iterable(model=MODEL, messages=WISH, response_model=City))
    assert [city.model_dump() for city in cities] == [ROME, ROME]


@pytest.mark.parametrize("mode", MODES)
def test_structured_async_answer(mode: Mode) -> None:
    async def create() -> City:
        async with openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0) as client:
            patched = instructor.from_openai(client, mode=mode)
            return await patched.create(model=MODEL, messages=WISH, response_model=City)

    assert asyncio.run(create()).model_dump() == ROME


def test_structured_modes_are_all_that_instructor_has() -> None:
    """Two more modes need the Responses API."""
    known = {mode for provider, mode in mode_registry.list_modes() if provider.value == "openai"}
    assert {mode for mode in known if not mode.name.startswith("RESPONSES")} <= {
        *MODES,
        Mode.PARALLEL_TOOLS,
    }


def test_vision_takes_a_picture() -> None:
    picture = instructor.Image.from_base64(PIXEL)
    answer = client_of(Mode.TOOLS).create(
        model=MODEL,
        messages=[{"role": "user", "content": ["What is this?", picture]}],
        response_model=None,
    )
    assert answer.choices[0].message.content == "I see 1 of image/png."
