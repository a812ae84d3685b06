"""The way into the program: a quick command as it is, any other through click."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from staticcall.cli.outcome import exit_code_of
from staticcall.cli.quick import parse

QUICK = ("report", "annotate")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if arguments and arguments[0] in QUICK:
        command = import_module(f"staticcall.cli.{arguments[0]}")
        parsed = parse(command.OPTIONS, arguments[1:])
        if parsed is not None:
            return exit_code_of(lambda: command.run(*parsed))
    from staticcall.cli.main import run_with_click  # noqa: PLC0415 - longer than a quick command takes

    return run_with_click(arguments)
