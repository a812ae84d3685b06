"""A terminal to run commands in: a real one for the command, whose screen another library draws."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyte

from tests.support.toolchain import TIMEOUT_SECONDS

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What may be set where the tests run, and would change what is shown.
_OURS = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PAGER", "STATICCALL_PAGER", "LESS", "LV")


class Shown(NamedTuple):
    """What a run came to: its exit code, all that it wrote, and the lines on the screen in the end."""

    code: int
    written: str
    screen: tuple[str, ...]


def at_terminal(
    *arguments: str | Path,
    columns: int = 80,
    rows: int = 24,
    env: Mapping[str, str | None] | None = None,
    keys: Sequence[tuple[str, str]] = (),
    errors: bool = False,
) -> Shown:
    """Run the tool at a terminal of that size.

    Standard error goes there only with `errors`: on a busy machine any run takes so long that it tells how far it is.
    `env` is added to the environment, None takes a name out; `keys` are pressed one after the other, each as soon as
    the last line that is not empty begins with the text before it.
    """
    command = [shutil.which("setsid") or "setsid", "--ctty", sys.executable, "-m", "staticcall", *map(str, arguments)]
    wanted = {name: value for name, value in os.environ.items() if name not in _OURS}
    wanted |= {"TERM": "xterm-256color", "PAGER": "cat"}
    for name, value in (env or {}).items():
        wanted.pop(name, None)
        if value is not None:
            wanted[name] = value
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave if errors else subprocess.DEVNULL, env=wanted
    ) as process:
        os.close(slave)
        try:
            written, screen = _watch(master, columns, rows, list(keys))
        finally:
            os.close(master)  # which hangs up whoever is still there
        return Shown(process.wait(TIMEOUT_SECONDS), written.decode(), tuple(screen))


def _watch(master: int, columns: int, rows: int, keys: list[tuple[str, str]]) -> tuple[bytes, list[str]]:
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    written = b""
    end = time.monotonic() + TIMEOUT_SECONDS
    while select.select([master], [], [], max(0, end - time.monotonic()))[0]:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # nobody has it open any more
            break
        if not data:
            break
        written += data
        stream.feed(data)
        last = next((line for line in reversed(screen.display) if line.strip()), "")
        if keys and last.startswith(keys[0][0]):
            os.write(master, keys.pop(0)[1].encode())
    else:
        raise AssertionError(f"nothing happens any more: {written[-200:]!r}")
    assert not keys, f"{keys} were never asked for: {written[-200:]!r}"
    return written, [line.rstrip() for line in screen.display]


def on_screen(text: str, columns: int = 80, rows: int = 24) -> list[str]:
    """The lines that a terminal shows after a text."""
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


def plain(text: str) -> str:
    """Text without its colours, in which nothing else is that a terminal would obey."""
    bare = COLOUR.sub("", text)
    assert "\x1b" not in bare
    return bare
