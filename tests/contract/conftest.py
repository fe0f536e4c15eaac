"""Every test of the contract ends with nothing left running, held or open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.leaks import Leaks, noted


@pytest.fixture(scope="session", autouse=True)
def _made() -> Iterator[list[Any]]:
    with noted() as made:
        yield made


@pytest.fixture(autouse=True)
async def _nothing_is_left(_made: list[Any]) -> AsyncIterator[None]:
    leaks = Leaks(_made)
    yield
    assert not await leaks.after_grace()
