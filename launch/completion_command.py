"""`isthmus completion`: completion of the command for a shell."""

from __future__ import annotations

import argparse

import shtab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `isthmus completion`."""
    parser.add_argument(
        "shell",
        choices=("bash", "zsh"),
        help='put `eval "$(isthmus completion bash)"` into ~/.bashrc',
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the shell's script."""
    from launch.__main__ import command_parser

    print(shtab.complete(command_parser(), shell=arguments.shell))
    return 0
