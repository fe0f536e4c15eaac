"""`isthmus chat`: a conversation with a text model in the terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from rich.console import Console

from contract.parameters import PARAMETERS
from isthmus.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_USER,
    ChatMessage,
    ContentPart,
    Role,
)
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import MODEL_KIND_TEXT
from launch.client import services
from launch.client.options import count, utf8
from launch.client.services import Service
from launch.client.text import add_parameters, fill, generate
from launch.failure import CommandError

_HELP: Final = """\
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer, Ctrl-D ends the chat.
  /help                 this text
  /system TEXT          instructions to the model; without a text, none
  /set NAME VALUE       a parameter, as in /set temperature 0.2; without a value, its default
  /model NAME           another model; /model lists them
  /retry                another answer to the last message
  /undo                 forget the last message and its answer
  /clear                forget all messages
  /save FILE, /load FILE   the messages, in OpenAI's form
  /stats                times and tokens after each answer, on or off
  /quit"""
# Lines that the arrow keys find again.
_KEPT_LINES: Final = 1000
_PARAMETERS: Final = {parameter.name: parameter for parameter in PARAMETERS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus chat`."""
    parser.add_argument("--system", type=utf8, metavar="TEXT", help="instructions to the model")
    services.add_arguments(parser)
    add_parameters(parser)


def run(arguments: argparse.Namespace) -> int:
    """Chats until the end of the input."""
    with services.services(arguments) as found, _line_history():
        service = services.chosen(found, arguments.model, MODEL_KIND_TEXT)
        request = GenerateRequest()
        fill(request, arguments)
        chat = _Chat(found, service, request, arguments.system or "")
        chat.tell(f"{service.model.id} · /help lists the commands")
        while (line := _read_line()) is not None:
            if not chat.handle(line):
                break
    return 0


def _read_line() -> str | None:
    """The typed message, without the \\ of continued lines; None at the end of the input."""
    lines: list[str] = []
    try:
        while True:
            prompt = ("... " if lines else ">>> ") if sys.stdin.isatty() else ""
            lines.append(input(prompt))
            if not lines[-1].endswith("\\"):
                return "\n".join(lines)
            lines[-1] = lines[-1][:-1]
    except EOFError:
        return "\n".join(lines) if lines else None
    except KeyboardInterrupt:
        print()
        return ""


class _Chat:
    """The conversation, and the commands that change it."""

    def __init__(
        self, found: list[Service], service: Service, request: GenerateRequest, system: str
    ) -> None:
        self._services = found
        self._service = service
        # Holds the parameters; the messages are added for each request.
        self._request = request
        self._system = system
        self._messages: list[ChatMessage] = []
        self._stats = False
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.tell(_HELP),
            "system": self._set_system,
            "set": self._set,
            "model": self._choose,
            "retry": self._retry,
            "undo": self._undo,
            "clear": lambda _: self._messages.clear(),
            "save": self._save,
            "load": self._load,
            "stats": self._toggle_stats,
        }

    def tell(self, text: str) -> None:
        """Prints a notice to standard error."""
        self._console.print(text, style="dim", markup=False)

    def handle(self, line: str) -> bool:
        """Sends a message or runs a command; False ends the chat."""
        try:
            text = utf8(line).strip()
        except argparse.ArgumentTypeError:
            self.tell("That is not UTF-8.")
            return True
        if not text.startswith("/"):
            if text:
                self._send(line)
            return True
        name, _, rest = text[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        command = self._commands.get(name)
        try:
            if command is None:
                raise CommandError(f"There is no /{name}. /help lists the commands.")
            command(rest.strip())
        except CommandError as error:
            self.tell(str(error))
        return True

    def _send(self, text: str) -> None:
        self._messages.append(_message(ROLE_USER, text))
        if not self._answer():
            # A message without an answer leaves the conversation, so the user can send it again.
            self._messages.pop()

    def _answer(self) -> bool:
        """Requests and shows an answer to the last message; False if there is none."""
        request = GenerateRequest()
        request.CopyFrom(self._request)
        request.model = self._service.name
        if self._system:
            request.chat.messages.append(_message(ROLE_SYSTEM, self._system))
        request.chat.messages.extend(self._messages)
        shown: list[str] = []

        def show(is_reasoning: bool, text: str) -> None:
            if is_reasoning:
                self._console.print(text, style="dim italic", end="", markup=False)
            else:
                shown.append(text)
                print(text, end="", flush=True)

        try:
            answer = generate(self._service, request, show)
            text, figures = answer.text, answer.figures
        except CommandError as error:
            print()
            self.tell(str(error))
            return False
        except KeyboardInterrupt:
            # The text so far stays in the conversation.
            text, figures = "".join(shown), "stopped"
        print()
        if self._stats or figures == "stopped":
            self.tell(figures)
        self._messages.append(_message(ROLE_ASSISTANT, text))
        return True

    def _set_system(self, text: str) -> None:
        self._system = text

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        parameter = _PARAMETERS.get(name.replace("-", "_"))
        if parameter is None and name != "max_tokens":
            names = ", ".join(["max_tokens", *_PARAMETERS])
            raise CommandError(f"There is no parameter {name!r}. There are: {names}.")
        if parameter is None:
            self._request.stopping.ClearField("max_tokens")
            if value:
                self._request.stopping.max_tokens = _number(value)
            return
        parameter.holder(self._request).ClearField(parameter.field)
        if value:
            try:
                read = json.loads(value) if parameter.kind is not str else value
                is_entry = parameter.repeated and not isinstance(read, list)
                parameter.set(self._request, [read] if is_entry else read)
            except (TypeError, ValueError) as error:
                raise CommandError(f"{value} is no value of {parameter.name}.") from error

    def _choose(self, name: str) -> None:
        texts = [each for each in self._services if each.model.kind == MODEL_KIND_TEXT]
        if not name:
            self.tell("\n".join(each.model.id for each in texts))
            return
        self._service = services.chosen(self._services, name, MODEL_KIND_TEXT)

    def _retry(self, _: str) -> None:
        self._forget_answer()
        if not self._messages:
            raise CommandError("There is no message yet.")
        self._answer()

    def _undo(self, _: str) -> None:
        self._forget_answer()
        if self._messages:
            self._messages.pop()

    def _forget_answer(self) -> None:
        if self._messages and self._messages[-1].role == ROLE_ASSISTANT:
            self._messages.pop()

    def _toggle_stats(self, _: str) -> None:
        self._stats = not self._stats
        self.tell(f"times and tokens: {'on' if self._stats else 'off'}")

    def _save(self, file: str) -> None:
        turns = [(_NAMES[turn.role], turn.parts[0].text) for turn in self._messages]
        turns = [("system", self._system), *turns] if self._system else turns
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            Path(file).write_text(json.dumps(messages, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}.") from error

    def _load(self, file: str) -> None:
        try:
            saved = msgspec.json.decode(Path(file).read_bytes(), type=list[_SavedMessage])
        except (OSError, msgspec.DecodeError) as error:
            raise CommandError(f"{file} is no conversation of /save.") from error
        self._system = "\n".join(each.content for each in saved if each.role == "system")
        self._messages = [
            _message(_ROLES[each.role], each.content) for each in saved if each.role != "system"
        ]
        self.tell(f"{len(self._messages)} messages")


class _SavedMessage(msgspec.Struct):
    """A message in OpenAI's form."""

    role: Literal["system", "user", "assistant"]
    content: str


_ROLES: Final = {"system": ROLE_SYSTEM, "user": ROLE_USER, "assistant": ROLE_ASSISTANT}
_NAMES: Final = {role: name for name, role in _ROLES.items()}


def _message(role: Role, text: str) -> ChatMessage:
    return ChatMessage(role=role, parts=[ContentPart(text=text)])


def _number(text: str) -> int:
    try:
        return count(text)
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"max_tokens {error}.") from error


@contextmanager
def _line_history() -> Iterator[None]:
    """Lets the arrow keys find lines of this and earlier chats, where the terminal can."""
    if not sys.stdin.isatty():
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "isthmus" / "chat_history"
    with suppress(ImportError, OSError):
        import readline

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        readline.set_history_length(_KEPT_LINES)
        if path.exists():
            readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(ImportError, OSError):
            import readline

            path.touch(mode=0o600)
            readline.write_history_file(path)
