"""A pytest plugin that records the outcome and the refused parameters of each of the SDK's tests.

It is loaded by name in its own process, where this project's `tests` package is not importable.

The SDK's tests send every parameter at once. When a 400 names a parameter, the plugin records and
removes it and sends the request again. So a test that passes in the end shows that the server
accepts all its parameters except the recorded ones.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

_STEP = re.compile(r"[^.\[\]]+")


def _remove(body: Any, path: str) -> None:
    *above, last = (int(step) if step.isdigit() else step for step in _STEP.findall(path))
    for step in above:
        body = body[step]
    del body[last]


def _named(error: BaseException) -> str:
    status = getattr(error, "status_code", "")
    return f"{type(error).__name__} {status}".strip()


class _Recorder:
    """Collects the outcomes and writes them as JSON at the end of the run."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._refused: list[str] = []
        self._outcomes: dict[str, dict[str, Any]] = {}

    def note(self, error: openai.BadRequestError, options: Any) -> None:
        """Removes the parameter that the error names from the body, or raises the error."""
        if not error.param or not isinstance(options.json_data, dict):
            raise error
        _remove(options.json_data, error.param)
        self._refused.append(error.param)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        report = yield
        if report.when == "call" or not report.passed:
            error = call.excinfo and call.excinfo.value
            self._outcomes[item.nodeid] = {
                "ended": report.outcome if error is None else _named(error),
                "refused": self._refused,
                "said": str(error or "")[:300],
            }
        if report.when == "teardown":
            self._refused = []
        return report

    def pytest_sessionfinish(self) -> None:
        self._report.write_text(json.dumps(self._outcomes))


def _retry_without_refused_parameters(recorder: _Recorder) -> None:
    send, send_async = openai.OpenAI.request, openai.AsyncOpenAI.request

    @functools.wraps(send)
    def request(self: openai.OpenAI, cast_to: Any, options: Any, **rest: Any) -> Any:
        while True:
            try:
                return send(self, cast_to, options, **rest)
            except openai.BadRequestError as error:
                recorder.note(error, options)

    @functools.wraps(send_async)
    async def request_async(
        self: openai.AsyncOpenAI, cast_to: Any, options: Any, **rest: Any
    ) -> Any:
        while True:
            try:
                return await send_async(self, cast_to, options, **rest)
            except openai.BadRequestError as error:
                recorder.note(error, options)

    openai.OpenAI.request = request
    openai.AsyncOpenAI.request = request_async


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", type=Path, required=True, help="where the outcomes are written")


def pytest_configure(config: pytest.Config) -> None:
    recorder = _Recorder(config.getoption("--report"))
    config.pluginmanager.register(recorder)
    _retry_without_refused_parameters(recorder)
