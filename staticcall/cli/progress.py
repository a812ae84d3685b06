"""How far a long run is, for who waits at a terminal: one line on standard error, which is gone in the end.

It is there after a second, on a terminal only. Before, nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, TextIO, TypeVar

from staticcall.cli.colour import size_of, wants_colour
from staticcall.cli.outcome import showing
from staticcall.errors import printable
from staticcall.pipeline.trace import tell_waiting

if TYPE_CHECKING:
    from rich.progress import Progress as Line
    from rich.progress import ProgressColumn
    from rich.table import Column

_T = TypeVar("_T")

# Nobody wants to know before, or more often.
_SECONDS = 1.0
_AGAIN = 0.1
# What moves, and for how long: "- " and " 0:00:00".
_AROUND = 10
# With less room, numbers would be cut.
_NARROWEST = 40


def _watched(quiet: bool) -> bool:
    """Whether somebody looks at standard error who can see a line change."""
    if quiet or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return size_of(sys.stderr)[0] >= _NARROWEST


class Progress:
    """How many of `total` files are done; to be entered around all that is said meanwhile."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total = total
        self._done = 0
        self._next = time.monotonic() + _SECONDS
        self._line: Line | None = None
        self._off = not _watched(quiet)

    def over(self, results: Iterable[_T], parts: Sequence[Sequence[object]]) -> Iterator[_T]:
        """Pass on what becomes of each part, and count its files."""
        with showing(self):
            try:
                for result, part in zip(results, parts, strict=True):
                    self._done += len(part)
                    self._show()
                    yield result
            finally:
                self._wipe()

    def __enter__(self) -> None:
        """Make room for something else."""
        self._wipe()

    def __exit__(self, *error: object) -> None:
        """The line comes again with the next part."""

    def _wipe(self) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.stop()

    def _show(self) -> None:
        now = time.monotonic()
        if self._off or now < self._next:
            return
        self._next = now + _AGAIN
        if self._line is None:
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - only where it is slow

            count = TextColumn("{task.completed:,} of {task.total:,} files", table_column=_cut())
            remaining = TimeRemainingColumn(table_column=_cut())
            self._line = _line(sys.stderr, BarColumn(), count, remaining)
            self._line.add_task("", total=self._total)
        try:
            self._line.update(self._line.task_ids[0], completed=self._done)
            self._line.start()
            self._line.refresh()
        except OSError:
            self._off = True


@contextlib.contextmanager
def waiting(name: str) -> Iterator[None]:
    """Say what is being done with a file while a single thing takes long, and for how long already.

    A thread of its own does that, for one call of a library may take half a minute. It must not be there where
    processes are forked.
    """
    if not _watched(quiet=False):
        yield
        return
    encoding = sys.stderr.encoding or "utf-8"
    # A name that the terminal's encoding does not have takes more room than it seems to.
    known = printable(os.path.basename(name)).encode(encoding, "backslashreplace")  # noqa: PTH119 - not to be opened
    spinner = _Spinner(known.decode(encoding))
    with showing(spinner):
        spinner.start()
        try:
            yield
        finally:
            spinner.stop()


class _Spinner:
    """What is being done, with something that moves."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._what = "reading"
        self._since = time.monotonic()
        self._line: Line | None = None
        self._lock = RLock()
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to wait for the first second to pass."""
        with contextlib.suppress(RuntimeError):  # the system has no thread left, and can do without this one
            self._thread.start()
            tell_waiting(self._hear)

    def stop(self) -> None:
        """End, with nothing left on the terminal."""
        tell_waiting(None)
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> None:
        """Make room for something else."""
        self._lock.acquire()
        self._wipe()

    def __exit__(self, *error: object) -> None:
        """Go on where it is."""
        self._lock.release()

    def _hear(self, what: str) -> None:
        with self._lock:
            self._what = what
            if not what:
                self._wipe()

    def _run(self) -> None:
        if self._ended.wait(_SECONDS):
            return
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - only where it is slow

        words = TextColumn("{task.description}", markup=False, table_column=_cut())
        line = _line(sys.stderr, SpinnerColumn("line"), words, TimeElapsedColumn())
        room = line.console.width - _AROUND
        task = line.add_task("")
        line.tasks[0].start_time = self._since
        with contextlib.suppress(OSError):
            while not self._ended.wait(_AGAIN):
                with self._lock:
                    if self._what:
                        self._line = line
                        line.update(task, description=_told(self._name, self._what, room))
                        line.start()
                        line.refresh()
        with self._lock:
            self._wipe()

    def _wipe(self) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.stop()
            self._line = None


def _told(name: str, what: str, room: int) -> str:
    """What is being done with a file; where there is no room for both, the name gives way."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - a library that takes long to load

    excess = cell_len(name) + len(f": {what}") - room
    if excess > 0:
        name = set_cell_size(name, max(cell_len(name) - excess - 3, 0)) + "..."
    text = f"{name}: {what}"
    return set_cell_size(text, room) if cell_len(text) > room else text


def _cut() -> Column:
    """What has no room ends there: the sign for that is not in every encoding, and a second line is never wiped."""
    from rich.table import Column  # noqa: PLC0415 - a library that takes long to load

    return Column(no_wrap=True, overflow="crop")


def _line(stream: TextIO, *columns: ProgressColumn) -> Line:
    """One line on a terminal, drawn when it is told to be."""
    from rich.console import Console  # noqa: PLC0415 - a library that takes long to load
    from rich.progress import Progress as Line  # noqa: PLC0415 - as above

    class Steady(Console):
        """A console that leaves the cursor alone, which nobody would bring back where a run is killed."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002 - rich's signature
            return False

    colour = wants_colour(stream)
    console = Steady(
        file=stream,
        width=size_of(stream)[0],
        height=2,
        force_terminal=True,
        force_interactive=True,
        color_system="standard" if colour else None,
        no_color=not colour,
        legacy_windows=False,
    )
    return Line(
        *columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    )
