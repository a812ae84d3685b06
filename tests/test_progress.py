"""What is said while a run takes long: on terminals, after a second, and gone in the end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from threading import Event, active_count

import pytest

from staticcall.cli import progress
from staticcall.cli.entry import run
from staticcall.cli.outcome import complain, say, watched
from staticcall.cli.progress import Progress, waiting
from staticcall.pipeline.trace import doing
from tests.support.programs import Builder
from tests.support.terminal import on_screen, plain
from tests.support.toolchain import TIMEOUT_SECONDS


class Terminal(io.StringIO):
    """A terminal that tells when it has been shown something."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self.known = encoding
        self.wanted = ""
        self.seen = Event()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # of a StringIO it cannot be set
        return self.known

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        length = super().write(text.encode(self.known, "backslashreplace").decode(self.known))
        if self.wanted and self.wanted in self.getvalue():
            self.seen.set()
        return length

    def wait_for(self, text: str) -> None:
        self.seen.clear()
        self.wanted = text
        self.write("")
        assert self.seen.wait(TIMEOUT_SECONDS), self.getvalue()


PARTS = [("one", "two"), ("three",), ("four", "five", "six")]


@pytest.fixture(autouse=True)
def _terminal_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, seconds: float, *, quiet: bool = False) -> str:
    """What a run says whose clock goes on by so many seconds at each look."""
    clock = count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * seconds)
    monkeypatch.setattr("sys.stderr", stream)
    assert list(Progress(1234, quiet=quiet).over("abc", PARTS)) == ["a", "b", "c"]
    return stream.getvalue()


# ---- many files ----


def test_a_long_run_says_how_many_files_are_done_and_wipes_that_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written = shown(monkeypatch, Terminal(), 2)

    places = [written.index(f"{done} of 1,234 files") for done in (2, 3, 6)]
    assert places == sorted(places)
    assert not any(on_screen(written))


@pytest.mark.parametrize("options", [(), ("-j", "2")], ids=["one", "two"])
def test_a_difference_of_trees_says_how_many_files_are_done(
    built: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_AGAIN", 0.0)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(built("calls", "exec").read_bytes())

    with redirect_stderr(Terminal()) as terminal, redirect_stdout(io.StringIO()) as out:
        assert run(["diff", *options, str(tmp_path), str(tmp_path)]) == 0
    assert "2 of 2 files" in terminal.getvalue()
    assert "no difference: 2 images" in out.getvalue()
    assert not any(on_screen(terminal.getvalue()))

    with redirect_stderr(Terminal()) as terminal, redirect_stdout(io.StringIO()):
        assert run(["diff", *options, "--quiet", str(tmp_path), str(tmp_path)]) == 0
    assert terminal.getvalue() == ""


def test_nothing_is_said_in_the_first_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), 0.3) == ""


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO, False), (Terminal, True)])
def test_nothing_is_said_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], quiet: bool
) -> None:
    assert shown(monkeypatch, stream(), 2, quiet=quiet) == ""


def test_nothing_is_said_at_a_terminal_that_cannot_wipe_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")

    assert shown(monkeypatch, Terminal(), 2) == ""


def test_the_line_makes_room_for_whatever_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * 2)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)

    for one in Progress(6).over("abc", PARTS):
        say(f"done {one}\n")
        complain(f"bad {one}")

    lines = on_screen(terminal.getvalue())
    assert list(filter(None, lines)) == [f"{said} {one}" for one in "abc" for said in ("done", "staticcall: bad")]


def test_the_line_is_gone_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, clock = Terminal(), count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * 2)
    monkeypatch.setattr("sys.stderr", terminal)

    def interrupted() -> object:
        yield "a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Progress(6).over(interrupted(), PARTS))  # type: ignore[arg-type]  # a generator, for `raise` in it

    assert "2 of 6 files" in terminal.getvalue()
    assert not any(on_screen(terminal.getvalue()))


def test_the_cursor_is_left_alone_for_nobody_brings_it_back_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[?25" not in shown(monkeypatch, Terminal(), 2)


# ---- one file ----


@contextmanager
def long_run(name: str = "file", encoding: str = "utf-8") -> Iterator[Terminal]:
    """A run on one file, whose first second is over."""
    terminal = Terminal(encoding)
    with pytest.MonkeyPatch.context() as patched, redirect_stderr(terminal):
        patched.setattr(progress, "_SECONDS", 0.0)
        with waiting(name):
            yield terminal


def test_a_long_run_on_one_file_says_what_is_done_and_wipes_that_in_the_end() -> None:
    before = active_count()
    with long_run("folder/file\x1b[2J") as terminal:
        terminal.wait_for("file\\x1b[2J: reading")
        doing("compressing")
        terminal.wait_for("file\\x1b[2J: compressing")

    assert not any(on_screen(terminal.getvalue()))
    assert active_count() == before


def test_what_is_said_meanwhile_stands_alone_on_its_line() -> None:
    with long_run() as terminal:
        terminal.wait_for("reading")
        complain("bad")
        doing("proving")
        terminal.wait_for("proving")
        complain("worse")

    assert list(filter(None, on_screen(terminal.getvalue()))) == ["staticcall: bad", "staticcall: worse"]


def test_nothing_is_drawn_while_another_command_has_the_terminal() -> None:
    with long_run() as terminal:
        terminal.wait_for("reading")
        doing("")
        wiped = terminal.getvalue()
        assert not any(on_screen(wiped))
        terminal.write("Passphrase: ")
        doing("signing")
        terminal.wait_for("signing")

    assert terminal.getvalue()[len(wiped) :].startswith("Passphrase: ")


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(ValueError, match="so"), long_run() as terminal:
        terminal.wait_for("reading")
        raise ValueError("so")

    assert not any(on_screen(terminal.getvalue()))


def test_a_short_run_says_nothing() -> None:
    terminal = Terminal()
    with redirect_stderr(terminal), waiting("file"):
        doing("reading")

    assert terminal.getvalue() == ""


@pytest.mark.parametrize("verbose", [False, True])
def test_a_quiet_run_says_nothing_of_what_it_does(verbose: bool) -> None:
    before, terminal = active_count(), Terminal()
    with redirect_stderr(terminal), watched("file", verbose=verbose, quiet=True):
        doing("reading")
        assert active_count() == before

    assert terminal.getvalue() == ""


def test_the_line_is_in_colour_only_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with long_run() as terminal:
        terminal.wait_for("reading")
    assert plain(terminal.getvalue().replace("\x1b[2K", "").replace("\x1b[1A", ""))
    assert "\x1b[3" not in terminal.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", ["vmlinux-" + "6.12" * 60, "\u6771\u4eac" * 60, "\u044f\u0434\u0440\u043e" * 60])
def test_a_name_without_room_leaves_room_for_what_is_done(
    monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with long_run(name, encoding) as terminal:
        terminal.wait_for("...: reading ")
        first, *more = filter(None, on_screen(terminal.getvalue().rsplit("\r", 1)[-1], 40))
        assert more == [], "a second line is never wiped"
        assert first[-1].isdigit(), "for how long"
        doing("reading back what was packed")
        terminal.wait_for("...: reading back what was")

    assert not any(on_screen(terminal.getvalue(), 40))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_count_of_files_keeps_to_one_line(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    written = shown(monkeypatch, Terminal(encoding), 2)

    assert "6 of 1,234 files" in written
    assert all(len(list(filter(None, on_screen(part, 40)))) <= 1 for part in written.split("\r"))
    assert not any(on_screen(written, 40))


@pytest.mark.parametrize("columns", ["1", "39"])
def test_nothing_is_said_where_there_is_no_room_for_it(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)

    assert shown(monkeypatch, Terminal(), 2) == ""
