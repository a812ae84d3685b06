"""Runs the programs that a release needs, and says what went wrong with one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class ReleaseError(Exception):
    """A step that did not work; its text is for the person who releases."""


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program printed; `env` is added to this process's. Raises `ReleaseError` with a failure's last lines."""
    # What runs is meant to be what was installed, and not a tree that happens to be on the path.
    inherited = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=cwd, env={**inherited, **(env or {})}
        )
    except OSError as error:
        raise ReleaseError(f"{words[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ReleaseError(f"{' '.join(words)} ended with {done.returncode}\n{last}")
    return done.stdout


def python(*arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The same with this interpreter, whose environment has the build tools."""
    return run(sys.executable, *arguments, cwd=cwd, env=env)
