"""The `isthmus` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final

from edge import __main__ as edge_program
from inference import __main__ as inference_program
from keys import ConfigError
from launch import (
    completion_command,
    config_command,
    doctor,
    keys_command,
    models_command,
    status_command,
    up,
    version_command,
)
from launch.client import (
    batch_command,
    chat_command,
    embed_command,
    generate_command,
    image_command,
)
from launch.edges import positive, run_edges
from launch.failure import CommandError
from launch.fronts import run_fronts

_HELP: Final = frozenset({"-h", "--help"})

_EPILOG = """\
examples:
  isthmus up                                     chat, embeddings and images here, no GPU needed
  isthmus up --config isthmus.toml               models of your own
  isthmus keys create alice                      an API key, kept in keys.json as a digest
  isthmus up --host 0.0.0.0 --keys keys.json     for other machines
  isthmus status --watch                         requests, models, replicas, memory
  isthmus chat                                   talk to a model; needs a running `isthmus up`
  isthmus generate "Say hello" --max-tokens 20   one response; reads and writes pipes
  isthmus doctor                                 what this machine has and what is missing

exit status:
  0  done       1  a request failed, or something is not ready
  2  the command or the configuration cannot be used as given       130  interrupted

each program on a machine of its own (docker/compose.yaml has the whole stack):
  isthmus inference --config isthmus.toml --model my-model --listen 127.0.0.1:50051
  isthmus edge --upstream 127.0.0.1:50051
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # The two programs read their own options.
    if argv[:1] == ["edge"] and not _HELP.intersection(argv):
        return _edge(argv[1:])
    if argv[:1] == ["inference"] and not _HELP.intersection(argv):
        return _inference(argv[1:])
    arguments = command_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (CommandError, ConfigError) as error:
        print(f"isthmus {arguments.command}: {error}", file=sys.stderr)
        return error.status if isinstance(error, CommandError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe (`| head -1`): exit as a program that SIGPIPE ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _edge(argv: Sequence[str]) -> int:
    counting = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_processes(counting)
    count, rest = counting.parse_known_args(argv)
    if count.processes > 1:
        return run_edges(count.processes, rest)
    return edge_program.main(rest)


def _inference(argv: Sequence[str]) -> int:
    return inference_program.main(argv, lambda model, config: run_fronts(model, config, argv))


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="edge processes behind one port (default %(default)s)",
    )


def command_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="isthmus",
        description="OpenAI's REST API in front of typed gRPC inference services.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"isthmus {metadata.version('isthmus')}"
    top.add_argument("--version", action="version", version=version)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, module: Any, help: str) -> None:
        parser = commands.add_parser(name, help=help)
        module.add_arguments(parser)
        parser.set_defaults(run=module.run, command=name)

    add("up", up, "run everything on this machine")
    edge = commands.add_parser("edge", help="run an edge: the REST API")
    _add_processes(edge)
    edge_program.add_arguments(edge)
    inference = commands.add_parser("inference", help="run inference services: gRPC")
    inference_program.add_arguments(inference)
    add("chat", chat_command, "talk to a model in the terminal")
    add("generate", generate_command, "one response of a text model; reads and writes pipes")
    add("embed", embed_command, "vectors of texts")
    add("image", image_command, "images of a prompt, as files")
    add("batch", batch_command, "all requests of a file, in OpenAI's batch format")
    add("config", config_command, "write, check and show a configuration")
    add("models", models_command, "list or prepare the models of a configuration")
    add("keys", keys_command, "make, list and revoke API keys")
    add("status", status_command, "show what a running edge and its services do")
    add("doctor", doctor, "check what this machine has")
    add("version", version_command, "versions of Isthmus and of what it runs on")
    add("completion", completion_command, "completion of this command for a shell")
    return top


if __name__ == "__main__":
    sys.exit(main())
