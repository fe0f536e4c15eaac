"""The `isthmus` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from launch import doctor, keys_command, models_command

_EPILOG = """\
examples:
  isthmus up                                     chat, embeddings and images here, no GPU needed
  isthmus up --config isthmus.toml               models of your own
  isthmus keys create alice                      an API key, kept in keys.json as a digest
  isthmus up --host 0.0.0.0 --keys keys.json     for other machines
  isthmus status --watch                         requests, models, replicas, memory
  isthmus doctor                                 what this machine has and what is missing

each program on a machine of its own (docker/compose.yaml has the whole stack):
  isthmus inference --config isthmus.toml --model my-model --listen 127.0.0.1:50051
  isthmus edge --upstream 127.0.0.1:50051
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the command and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # The two programs parse their own options, and neither imports the other.
    if argv[:1] == ["edge"]:
        return _edge(argv[1:])
    if argv[:1] == ["inference"]:
        from inference.__main__ import main as inference_main

        return inference_main(argv[1:])
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _edge(argv: Sequence[str]) -> int:
    from launch.edges import positive, run_edges

    counting = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    counting.add_argument("--processes", type=positive, default=1)
    count, rest = counting.parse_known_args(argv)
    if count.processes > 1:
        return run_edges(count.processes, rest)
    from edge.__main__ import main as edge_main

    return edge_main(rest)


def _parser() -> argparse.ArgumentParser:
    """Returns the parser; it leaves the options of `edge` and `inference` to these programs."""
    from launch import status_command, up

    top = argparse.ArgumentParser(
        prog="isthmus",
        description="OpenAI's REST API in front of typed gRPC inference services.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, module: Any, help: str) -> None:
        parser = commands.add_parser(name, help=help)
        module.add_arguments(parser)
        parser.set_defaults(run=module.run)

    add("up", up, "run everything on this machine")
    commands.add_parser("edge", help="run an edge (REST); has its own --help", add_help=False)
    commands.add_parser(
        "inference", help="run inference services (gRPC); has its own --help", add_help=False
    )
    add("models", models_command, "list or prepare the models of a configuration")
    add("keys", keys_command, "make, list and revoke API keys")
    add("status", status_command, "show what a running edge and its services do")
    add("doctor", doctor, "check what this machine has")
    return top


if __name__ == "__main__":
    sys.exit(main())
