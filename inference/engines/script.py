"""Functions that scripted engines share: scripts in requests, and simulated failures."""

from __future__ import annotations

import os
import signal
from typing import TypeVar

import msgspec

from inference.engines.base import EngineDeadError
from inference.errors import invalid_value

_ScriptT = TypeVar("_ScriptT", bound=msgspec.Struct)


class ScriptedFaultError(Exception):
    """Simulates a bug; its text must not reach a caller."""


class HangError(Exception):
    """Simulates an engine that stops producing output without failing."""


def overridden(script: _ScriptT, text: str, param: str) -> _ScriptT:
    """The script, changed by the text if that is a JSON object; raises InferenceError."""
    if not text.lstrip().startswith("{"):
        return script
    try:
        overrides = msgspec.json.decode(text.encode())
        return msgspec.convert(msgspec.to_builtins(script) | overrides, type(script))
    except msgspec.DecodeError as error:
        raise invalid_value("The script is not valid.", param) from error


def raise_fault(fail: str | None, position: int) -> None:
    """Raises the script's failure, if it comes before this step or token (from 0)."""
    if fail == "start" and position == 0:
        raise ScriptedFaultError("canary-start")
    if position != 2:
        return
    if fail == "mid":
        raise ScriptedFaultError("canary-mid")
    if fail == "hang":
        raise HangError
    if fail == "die":
        raise EngineDeadError("canary-die")
    if fail == "exit":
        os.kill(os.getpid(), signal.SIGKILL)
