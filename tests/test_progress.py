"""The line that says how far a run is: on terminals, after a second, and gone in the end."""

from __future__ import annotations

import io
from itertools import count

import pytest

from staticcall.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


PARTS = [("one", "two"), ("three",), ("four", "five", "six")]


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, seconds: float, *, quiet: bool = False) -> str:
    """What a run says whose clock goes on by so many seconds at each look."""
    clock = count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * seconds)
    monkeypatch.setattr("sys.stderr", stream)
    assert list(Progress(1234, quiet=quiet).over("abc", PARTS)) == ["a", "b", "c"]
    return stream.getvalue()


def test_a_long_run_says_how_many_files_are_done_and_wipes_that_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, Terminal(), 2).split("\r\x1b[K")

    assert lines == ["", "2 of 1,234 files", "3 of 1,234 files", "6 of 1,234 files", ""]


def test_nothing_is_said_in_the_first_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), 0.3) == ""


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO, False), (Terminal, True)])
def test_nothing_is_said_where_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], quiet: bool
) -> None:
    assert shown(monkeypatch, stream(), 2, quiet=quiet) == ""
