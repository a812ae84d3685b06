"""The way into the program: what is quick as it is, anything else through click."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from staticcall.cli.commands import QUICK
from staticcall.cli.found import settings_file
from staticcall.cli.outcome import exit_code_of, say
from staticcall.cli.quick import NO_CONFIG, PLACES, parse, place_of

# Set by the scripts of `staticcall completion`, and by nobody else.
COMPLETE = "_STATICCALL_COMPLETE"


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    if COMPLETE in os.environ:
        from staticcall.cli.complete import complete  # noqa: PLC0415 - only for shells

        return complete(os.environ[COMPLETE])
    if len(arguments) == 1 and arguments[0] in PLACES:
        return exit_code_of(lambda: say(place_of(arguments[0]) + "\n"))
    if arguments and arguments[0] in QUICK:
        command = import_module(f"staticcall.cli.{arguments[0]}")
        parsed = parse((*command.OPTIONS, NO_CONFIG), arguments[1:])
        if parsed is not None:
            files, values = parsed
            path = None if values.pop(NO_CONFIG.key) else settings_file()
            if path is None:
                return exit_code_of(lambda: command.run(files, values))
            return exit_code_of(lambda: _run_with(path, command, arguments[1:]))
    from staticcall.cli.main import run_with_click  # noqa: PLC0415 - longer than a quick command takes

    return run_with_click(arguments)


def _run_with(path: str, command: ModuleType, arguments: Sequence[str]) -> int:
    """Run a quick command with the options of a settings file, where the arguments do not say otherwise."""
    from staticcall.cli.settings import defaults_from, settings_of, tell  # noqa: PLC0415 - only where there is a file

    defaults: Mapping[str, Any] = defaults_from(path, command.NAME, settings_of(command.OPTIONS))
    parsed = parse(command.OPTIONS, arguments, defaults)
    assert parsed is not None, "it was parsed before"
    files, values = parsed
    tell(path, verbose=values["verbose"])
    code: int = command.run(files, values)
    return code
