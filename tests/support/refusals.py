"""What every refusal has in common: one clear line, the right exit code, and nothing changed on the disk."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from tests.support.elf_edit import Edit, Elf
from tests.support.programs import Builder
from tests.support.tool import Outcome, digest, patch, staticcall

INPUT, USAGE, UNSAFE, UNVERIFIED = 3, 2, 4, 5

Arguments = tuple[str | Path, ...]
Runner = Callable[..., Outcome]


class Room(NamedTuple):
    """A folder with one file that is fine, one that is not, and the undo file of a third.

    `relr` is the fine one with packed relocations, elsewhere.
    """

    folder: Path
    good: Path
    bad: Path
    edits: Path
    relr: Path

    @property
    def out(self) -> Path:
        """Where a result would appear."""
        return self.folder / "out"

    def spoil(self, edit: Edit, *, relr: bool = False) -> None:
        """Make the bad file of the good one."""
        elf = Elf((self.relr if relr else self.good).read_bytes())
        edit(elf)
        self.bad.write_bytes(elf.data)


def make_room(folder: Path, built: Builder) -> Room:
    """Put what the commands need into an empty folder; the bad file is for the test to write."""
    room = Room(folder, folder / "good", folder / "bad", folder / "edits.json", built("calls", "pie", relr=True))
    shutil.copy(built("calls", "pie"), room.good)
    patch(room.good, room.out, "--bind").edits_file.rename(room.edits)
    room.out.unlink()
    return room


def contents(folder: Path) -> dict[str, tuple[int, ...]]:
    """Everything in a folder, by name: what would show that one was written to or replaced."""

    def sign(path: Path) -> tuple[int, ...]:
        status = path.lstat()
        return (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)

    return {str(path.relative_to(folder)): sign(path) for path in folder.rglob("*")}


# Every command that reads an image, by what it is asked to do with the bad one.
READERS: Final[dict[str, Callable[[Room], Arguments]]] = {
    "report": lambda room: ("report", room.bad),
    "report-json": lambda room: ("report", "--format", "json", "-v", room.bad),
    "report-scan": lambda room: ("report", "--scan", room.bad),
    "report-output": lambda room: ("report", "--hash", "--format", "jsonl", "--output", room.out, room.bad),
    "bind": lambda room: ("patch", room.bad, "--bind", "-o", room.out),
    "bind-edits": lambda room: (
        *("patch", room.bad, "--bind", "--policy", "kernel", "-o", room.out),
        *("--edits", room.folder / "undo", "--report", room.folder / "report"),
    ),
    "bind-in-place": lambda room: ("patch", room.bad, "--bind", "--in-place"),
    "set": lambda room: ("patch", room.bad, "--set", "alpha=alpha_fast", "-o", room.out),
    "dry-run": lambda room: ("patch", room.bad, "--bind", "--dry-run"),
    "verify-itself": lambda room: ("verify", room.bad, room.bad),
}
# Those to whom a bad file may look like one that is only not the one they were promised.
COMPARERS: Final[dict[str, Callable[[Room], Arguments]]] = {
    "verify-original": lambda room: ("verify", room.bad, room.good),
    "verify-patched": lambda room: ("verify", room.good, room.bad),
    "revert": lambda room: ("revert", room.bad, "--edits", room.edits, "-o", room.out),
    "revert-in-place": lambda room: ("revert", room.bad, "--edits", room.edits, "--in-place"),
}
COMMANDS: Final = {**READERS, **COMPARERS}


def refusal(
    folder: Path, arguments: Arguments, codes: Collection[int], names: Path, runner: Runner = staticcall
) -> str:
    """See that a run is refused as it should be, and return the one line that it says."""
    before = contents(folder)
    outcome = runner(*arguments)
    assert outcome.code in codes, (arguments, outcome)
    assert outcome.out == "", (arguments, outcome)
    line = one_line(outcome)
    assert str(names) in line, (arguments, outcome)
    assert contents(folder) == before, (arguments, outcome)
    return line


def one_line(outcome: Outcome) -> str:
    """See that standard error has one line of the tool's, and return it."""
    assert outcome.err.startswith("staticcall: "), outcome
    assert outcome.err.endswith("\n"), outcome
    assert len(outcome.err.splitlines()) == 1, outcome
    return outcome.err


def refused_by(command: str, room: Room) -> str:
    """The line with which a command refuses the room's bad file."""
    codes = {INPUT} if command in READERS else {INPUT, UNSAFE, UNVERIFIED}
    arguments, bad = COMMANDS[command](room), digest(room.bad)
    line = refusal(room.folder, arguments, codes, room.folder)
    assert digest(room.bad) == bad
    assert command in COMPARERS or f"{room.bad}: " in line, line
    return line


def survived(command: str, room: Room) -> Outcome:
    """See that a command ends as it may with a file that is odd and perhaps good enough.

    What it wrote is removed again.
    """
    before = contents(room.folder)
    bad = room.bad.read_bytes()
    outcome = staticcall(*COMMANDS[command](room))
    assert outcome.code in (0, 1, INPUT, UNSAFE, UNVERIFIED), outcome
    if outcome.code in (0, 1):
        assert outcome.err == "", outcome
        for name in contents(room.folder).keys() - before.keys():
            assert name in ("out", "undo", "report"), name
            (room.folder / name).unlink()
        room.bad.write_bytes(bad)
    else:
        one_line(outcome)
        assert contents(room.folder) == before, outcome
    if command == "report-json" and outcome.code in (0, 1):
        json.loads(outcome.out)
    return outcome


class StuckError(BaseException):
    """Not an `Exception`, and so nothing that the tool would take for a failure of its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `StuckError` inside of the block when it takes longer, as one that waits for a pipe would."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise StuckError(f"still busy after {seconds} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
