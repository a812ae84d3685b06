"""Signing by a command of the user's own: it gets the path of a copy, and what it leaves there comes back."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from staticcall.errors import OutputError, UsageError, printable
from staticcall.write import signals
from staticcall.write.private import private_folder, put

if TYPE_CHECKING:
    from subprocess import Popen

# Whoever has a key on a token may have to touch it.
PATIENCE_SECONDS: Final = 300.0
PLACE: Final = "{}"
_MOST_SAID: Final = 1 << 12
# Certificates have some kilobytes.
_MOST_ADDED: Final = 1 << 20
# How soon the end of a command is seen whose children keep its stderr open.
_PAUSE_SECONDS: Final = 0.05
_NOTHING: Final = "nothing was published"


def split_command(text: str) -> tuple[str, ...]:
    """The words of a command as a shell would split them, without anything else that a shell does.

    Raises `UsageError`.
    """
    import shlex  # noqa: PLC0415 - only where something is signed

    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        reason = str(error)[:1].lower() + str(error)[1:]
        raise UsageError(f"--sign-with is no command: {reason}", advice="quote it as for a shell") from error
    if not words:
        raise UsageError("--sign-with is no command", advice="give one that signs the file that it is given")
    return words


def sign(command: tuple[str, ...], data: bytes, name: str, *, seconds: float = PATIENCE_SECONDS) -> bytes:
    """Have a command sign a temporary copy of a file, and return what the copy then holds.

    The copy's path takes the place of each `{}` in the command, or follows it where there is none. Raises
    `OutputError` where the command cannot be run, fails, takes longer than `seconds`, or leaves no file or the same.
    """
    with private_folder() as folder:
        path = put(folder / name, data)
        code, said = _run(_arguments(command, path), seconds)
        if code != 0:
            raise _failed(f"failed ({_ending(code)}){_first_line(said)}")
        signed = _left(path, len(data) + _MOST_ADDED)
    if signed == data:
        raise _failed("did not change the file")
    return signed


def _left(path: Path, most: int) -> bytes:
    """What the command left there, which may be a link, a pipe or without an end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _failed("left no regular file")
            data = file.read(most + 1)
    except OSError as error:
        raise _failed(f"left no file: {error.strerror}") from error
    if len(data) > most:
        raise _failed(f"left a file of more than {most:,} bytes")
    return data


def _arguments(command: tuple[str, ...], path: Path) -> list[str]:
    if any(PLACE in word for word in command):
        return [word.replace(PLACE, str(path)) for word in command]
    return [*command, str(path)]


def _run(arguments: list[str], seconds: float) -> tuple[int, bytes]:
    """Run the command to its end; gives how it ended, and the beginning of what it said about that."""
    import subprocess  # noqa: PLC0415 - only where something is signed

    heard, spoken = os.pipe()
    try:
        try:
            with signals.held():
                process = subprocess.Popen(  # noqa: S603 - the user asked for this command, and no shell sees it
                    arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=spoken
                )
                signals.remove_at_end(process.kill)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise _failed(f"{arguments[0]} cannot be run: {reason}") from error
        finally:
            os.close(spoken)
        try:
            return _heard(process, heard, seconds)
        except subprocess.TimeoutExpired as error:
            raise _failed(f"did not end within {seconds:g} seconds") from error
        finally:
            with signals.held():
                process.kill()  # nothing to an ended one
                process.wait()
                signals.leave(process.kill)
    finally:
        os.close(heard)


def _heard(process: Popen[bytes], pipe: int, seconds: float) -> tuple[int, bytes]:
    """Wait for the end, and take what is said meanwhile: nobody knows how much, so only the beginning is kept.

    Raises `TimeoutExpired`.
    """
    import select  # noqa: PLC0415 - only where something is signed, as the next one
    import time  # noqa: PLC0415

    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    os.set_blocking(pipe, False)
    said, end = bytearray(), time.monotonic() + seconds
    while True:
        code = process.poll()
        left = end - time.monotonic()
        if code is None and left <= 0:
            return process.wait(0), bytes(said)
        # What it said last may still be in the pipe when it has ended.
        if poll.poll(0 if code is not None else 1000 * min(left, _PAUSE_SECONDS)):
            piece = os.read(pipe, _MOST_SAID)
            said += piece[: _MOST_SAID - len(said)]
            if not piece:
                return process.wait(max(left, _PAUSE_SECONDS)), bytes(said)
            if code is None or len(said) < _MOST_SAID:
                continue
        if code is not None:
            return code, bytes(said)


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code}"


def _first_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return f": {printable(lines[0].strip())}" if lines else ""


def _failed(what: str) -> OutputError:
    return OutputError(f"the signing command {what}", advice=_NOTHING)
