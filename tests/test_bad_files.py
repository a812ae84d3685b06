"""Names that are no readable file, and places where nothing can be written.

Nothing waits for a pipe, no input is replaced unasked, and what cannot be finished leaves nothing behind.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.programs import Builder
from tests.support.refusals import (
    COMMANDS,
    INPUT,
    USAGE,
    Arguments,
    Room,
    at_most,
    contents,
    make_room,
    one_line,
    refusal,
)
from tests.support.tool import patch, staticcall, staticcall_process
from tests.support.toolchain import TIMEOUT_SECONDS

NOBODY = 65534
SECONDS = 5


@pytest.fixture
def work(room: Room) -> Room:
    """The room with a bad file that is fine after all; a test may say which of its files is not."""
    shutil.copy(room.good, room.bad)
    return room


# ---- names that are no readable file ----


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


NO_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "directory": Path.mkdir,
    "pipe": os.mkfifo,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": _loop,
    "link to a pipe": _link_to_a_pipe,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}
# Every command that reads a file, be it an image, the edits of revert or the options of patch.
ALL: dict[str, Callable[[Room], Arguments]] = {
    **COMMANDS,
    "revert-edits": lambda room: ("revert", room.good, "--edits", room.bad, "-o", room.out),
    "config": lambda room: ("patch", room.good, "--config", room.bad, "-o", room.out),
}


# A report of a folder is one of all that is in it.
_NO_FILES_FOR = [
    (command, kind) for command in ALL for kind in NO_FILES if kind != "directory" or "report" not in command
]


@pytest.mark.parametrize(("command", "kind"), _NO_FILES_FOR)
def test_what_is_no_file_is_refused_at_once(command: str, kind: str, room: Room) -> None:
    NO_FILES[kind](room.bad)
    with at_most(SECONDS):
        refusal(room.folder, ALL[command](room), {INPUT}, room.bad)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_file_is_refused(command: str, room: Room) -> None:
    room.bad.touch()
    refusal(room.folder, COMMANDS[command](room), {3, 4, 5}, room.folder)


def _short(name: str) -> str:
    return ascii(name[:12])


@pytest.mark.parametrize(
    "name", ["x" * 256, "line\nbreak", "\x1b[31mred", "\udcff\udcfe", "ü" * 127, "-" * 40, " "], ids=_short
)
def test_an_odd_name_is_told_on_one_line(name: str, room: Room) -> None:
    for arguments in (("report", "--"), ("patch", "--bind", "--in-place", "--")):
        outcome = staticcall(*arguments, room.folder / name)
        assert (outcome.code, outcome.out) == (INPUT, "")
        assert one_line(outcome).rstrip("\n").isprintable()


@pytest.mark.parametrize("name", ["\udcff\udcfe", "ü" * 127, "line\nbreak", "a" * 255], ids=_short)
def test_an_odd_name_of_a_good_file_is_no_reason_to_fail(
    name: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    odd, undo = room.folder / name, room.folder / "undo"
    shutil.copy(room.good, odd)
    for arguments in (
        ("report", odd),
        ("report", "--format", "json", odd),
        ("report", "--format", "jsonl", "--output", room.out, odd),
        ("patch", odd, "--bind", "--in-place", "--edits", undo, "--report", room.out),
        ("revert", odd, "--edits", undo, "-o", room.folder / f"{name[:-1]}z"),
    ):
        outcome = staticcall_process(*arguments)
        assert (outcome.code, outcome.err) == (0, ""), (arguments, outcome)
    assert (room.folder / f"{name[:-1]}z").read_bytes() == room.good.read_bytes()


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without root's rights, to whom permissions do not apply."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module")
def all_imported(built: Builder, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tool imports late, others may not be allowed to read."""
    for command, arguments in ALL.items():
        room = make_room(tmp_path_factory.mktemp("imports"), built)
        shutil.copy(room.edits if command == "revert-edits" else room.good, room.bad)
        staticcall(*arguments(room))


@pytest.fixture
def open_house(work: Room, all_imported: None) -> Iterator[Room]:  # noqa: ARG001 - only to come after it
    """The room where everybody may go."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        inside = folder / "inside"
        inside.mkdir()
        for path in (work.good, work.bad, work.edits):
            shutil.copy(path, inside)
        if os.geteuid() == 0:
            for path in (inside, *inside.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        yield Room(inside, inside / "good", inside / "bad", inside / "edits.json", work.relr)
        inside.chmod(0o700)


@pytest.mark.parametrize("command", ALL)
def test_a_file_that_may_not_be_read_is_refused(command: str, open_house: Room) -> None:
    open_house.bad.chmod(0)
    with _as_nobody():
        refusal(open_house.folder, ALL[command](open_house), {INPUT}, open_house.bad)


# ---- places where nothing can be written ----

# Each writes under the name that it is given, and only there.
WRITERS: dict[str, Callable[[Room, Path], Arguments]] = {
    "report": lambda room, out: ("report", room.bad, "--output", out),
    "report-json": lambda room, out: ("report", room.bad, "--format", "json", "--output", out),
    "bind": lambda room, out: ("patch", room.bad, "--bind", "-o", out),
    "edits": lambda room, out: ("patch", room.bad, "--bind", "-o", room.out, "--edits", out),
    "edits-in-place": lambda room, out: ("patch", room.bad, "--bind", "--in-place", "--edits", out),
    "patch-report": lambda room, out: ("patch", room.bad, "--bind", "-o", room.out, "--report", out),
    "revert": lambda room, out: ("revert", room.bad, "--edits", room.edits, "-o", out),
}
every_writer = pytest.mark.parametrize("writer", WRITERS)


def _arguments(room: Room, writer: str, out: Path) -> Arguments:
    if writer == "revert":
        made = patch(room.good, room.out, "--bind")
        made.output.rename(room.bad)
        made.edits_file.rename(room.edits)
    return WRITERS[writer](room, out)


def _missing(folder: Path) -> Path:
    return folder / "no" / "such" / "out"


def _under_a_file(folder: Path) -> Path:
    return folder / "good" / "out"


def _folder(folder: Path) -> Path:
    (folder / "taken").mkdir()
    return folder / "taken"


def _unread_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _link_to_itself(folder: Path) -> Path:
    _loop(folder / "loop")
    return folder / "loop"


def _link_to_nowhere(folder: Path) -> Path:
    (folder / "dangling").symlink_to("no/such/out")
    return folder / "dangling"


def _long_name(folder: Path) -> Path:
    return folder / ("x" * 256)


def _full_device(folder: Path) -> Path:
    """One of our own where that is possible: the machine's must not be lost when this fails."""
    if os.geteuid() != 0:
        return Path("/dev/full")
    os.mknod(folder / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    return folder / "full"


PLACES = (
    _missing,
    _under_a_file,
    _folder,
    _unread_pipe,
    _link_to_itself,
    _link_to_nowhere,
    _long_name,
    _full_device,
)


@every_writer
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__.strip("_"))
def test_a_place_that_takes_no_file_is_refused(writer: str, place: Callable[[Path], Path], work: Room) -> None:
    arguments = _arguments(work, writer, place(work.folder))
    with at_most(SECONDS):
        refusal(work.folder, arguments, {INPUT}, work.folder if place is not _full_device else Path("full"))


@every_writer
def test_a_folder_that_may_not_be_written_is_refused(writer: str, open_house: Room) -> None:
    arguments = _arguments(open_house, writer, open_house.folder / "closed" / "result")
    closed = open_house.folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    with _as_nobody():
        refusal(open_house.folder, arguments, {INPUT}, closed)


def test_a_folder_that_may_only_be_written_is_good_enough(open_house: Room) -> None:
    before = contents(open_house.folder)
    open_house.folder.chmod(0o333)
    with _as_nobody():
        outcome = staticcall("patch", open_house.bad, "--bind", "-o", open_house.out)
    open_house.folder.chmod(0o777)
    assert (outcome.code, outcome.err) == (0, "")
    assert contents(open_house.folder).keys() - before.keys() == {"out"}


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond this, which looks the same as a disk that is full at this very byte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@every_writer
def test_a_disk_that_is_full_at_any_byte_leaves_nothing(writer: str, work: Room) -> None:
    arguments = _arguments(work, writer, work.folder / "result")
    assert staticcall(*arguments).code == 0
    size = max(path.stat().st_size for path in (work.folder / "result", work.out) if path.exists())
    (work.folder / "result").unlink()
    work.out.unlink(missing_ok=True)
    if "in-place" in writer:
        shutil.copy(work.good, work.bad)
    for most in (0, 1, size // 2, size - 1):
        with _files_of_at_most(most):
            refusal(work.folder, arguments, {INPUT}, work.folder)


@every_writer
def test_a_disk_that_is_really_full_leaves_nothing(writer: str, work: Room) -> None:
    inside = work.folder / "disk"
    arguments = _arguments(work, writer, inside / "result")
    inside.mkdir()
    # It fills up to its last byte, then the tool has its turn.
    script = (
        'mount -t tmpfs -o size=8k none "$0" && head -c 8192 /dev/zero >"$0/ballast" && "$@"; c=$?; ls "$0" -A; exit $c'
    )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--mount", "sh", "-c", script, inside, sys.executable, "-m", "staticcall", *arguments]
    before = contents(work.folder)
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert done.returncode == INPUT, done
    assert done.stdout == "ballast\n", done
    assert done.stderr.startswith("staticcall: "), done
    assert done.stderr.count("\n") == 1, done
    assert contents(work.folder) == before


# ---- names that are given twice ----

COLLISIONS: dict[str, Callable[[Room], Arguments]] = {
    "output is input": lambda room: ("patch", room.bad, "--bind", "-o", room.bad),
    "output is a link to the input": lambda room: ("patch", room.bad, "--bind", "-o", room.folder / "link"),
    "output is a hard link to the input": lambda room: ("patch", room.bad, "--bind", "-o", room.folder / "hard"),
    "edits are the input": lambda room: ("patch", room.bad, "--bind", "-o", room.out, "--edits", room.bad),
    "edits are the input in place": lambda room: ("patch", room.bad, "--bind", "--in-place", "--edits", room.bad),
    "edits are the output": lambda room: ("patch", room.bad, "--bind", "-o", room.out, "--edits", room.out),
    "report is the input": lambda room: ("patch", room.bad, "--bind", "-o", room.out, "--report", room.bad),
    "report is the edits": lambda room: (
        *("patch", room.bad, "--bind", "-o", room.out),
        *("--report", room.folder / "both", "--edits", room.folder / "." / "both"),
    ),
    "config is the output": lambda room: ("patch", room.bad, "--config", room.edits, "-o", room.edits),
    "revert to its input": lambda room: ("revert", room.bad, "--edits", room.edits, "-o", room.bad),
    "revert to the edits": lambda room: ("revert", room.bad, "--edits", room.edits, "-o", room.edits),
    "report over its input": lambda room: ("report", room.bad, "--output", room.bad),
    "report over another input": lambda room: ("report", room.bad, room.good, "--output", room.good),
    "report over the names": lambda room: ("report", room.bad, "--debug-file", room.good, "--output", room.good),
    "output is the names": lambda room: ("patch", room.bad, "--bind", "--debug-file", room.good, "-o", room.good),
}


@pytest.mark.parametrize("case", COLLISIONS)
def test_an_output_that_would_replace_another_file_of_the_command_is_refused(case: str, work: Room) -> None:
    (work.folder / "link").symlink_to(work.bad)
    os.link(work.bad, work.folder / "hard")
    if case == "config is the output":
        work.edits.write_text("bind = true\n")
    refusal(work.folder, COLLISIONS[case](work), {USAGE}, work.folder)


# ---- standard streams ----


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_half_a_report_on_a_full_disk_is_an_error(unbuffered: str, work: Room) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 1; exec "$0" -m staticcall report -v "$1" > half', sys.executable, work.good],
        capture_output=True,
        text=True,
        check=False,
        cwd=work.folder,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )

    assert (done.returncode, done.stderr.splitlines()[-1]) == (INPUT, "staticcall: standard output: File too large")


@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>/dev/full", "2>/dev/full", ">&-", "2>&-"])
def test_streams_that_take_nothing_change_no_exit_code_of_an_error(redirection: str, work: Room) -> None:
    work.good.write_bytes(b"")
    for name, codes in ((work.good, {INPUT}), (work.bad, {INPUT} if redirection.startswith(">/") else {0})):
        command = f'"$0" -m staticcall report "$1" {redirection}'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable, name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        assert done.returncode in codes, done
        assert len(done.stderr.splitlines()) <= 1, done
