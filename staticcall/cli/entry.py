"""The way into the program: what is quick as it is, anything else through click."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from staticcall.cli.outcome import exit_code_of, say
from staticcall.cli.quick import PLACES, parse, place_of

QUICK = ("report", "annotate")


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if len(arguments) == 1 and arguments[0] in PLACES:
        return exit_code_of(lambda: say(place_of(arguments[0]) + "\n"))
    if arguments and arguments[0] in QUICK:
        command = import_module(f"staticcall.cli.{arguments[0]}")
        parsed = parse(command.OPTIONS, arguments[1:])
        if parsed is not None:
            return exit_code_of(lambda: command.run(*parsed))
    from staticcall.cli.main import run_with_click  # noqa: PLC0415 - longer than a quick command takes

    return run_with_click(arguments)
