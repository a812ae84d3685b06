"""One thing done to many items, one after the other or several at a time."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from staticcall.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Source: prctl(2). The signal comes when the thread that made the process ends, which is the main one.
_PR_SET_PDEATHSIG: Final = 1
_PATIENCE_SECONDS: Final = 5.0


def each(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    jobs: int,
    most_at_once: int = 1,
    executor: "Executor | None" = None,
) -> Iterator[_Result]:
    """What a function makes of every item, in their order, in at most `jobs` processes, or by somebody else's executor.

    With an executor (of concurrent.futures, or one that acts like it) every item is a task, and `jobs` does not count:
    it has its own workers, and its own ways to fail.

    Else a process gets at most `most_at_once` items at a time. An interruption from the keyboard reaches all processes
    of a terminal: the first one heeds it when the next result is there, the others end what they have begun, so that
    none stops in a file that is half written. A signal that ends the first one ends all, and none outlives it. To be
    called in the main thread. Raises `InputError` where the system killed a process, or has no room for one.
    """
    if executor is not None:
        yield from _by(executor, function, items)
        return
    if jobs == 1 or len(items) <= 1:
        yield from map(function, items)
        return
    # 20 ms that one file does not need.
    from concurrent.futures import BrokenExecutor, ProcessPoolExecutor  # noqa: PLC0415
    from multiprocessing import get_context  # noqa: PLC0415

    chunk = max(1, min(most_at_once, len(items) // (4 * jobs)))
    # A forked process starts with all that is imported, and knows its parent.
    context = get_context("fork")
    interrupts: list[int] = []
    try:
        with (
            _heeding(interrupts),
            ProcessPoolExecutor(
                min(jobs, len(items)), context, initializer=_begin, initargs=(os.getpid(), _prctl())
            ) as pool,
        ):
            for result in _started(lambda: pool.map(function, items, chunksize=chunk)):
                if interrupts:
                    pool.shutdown(cancel_futures=True)
                    raise KeyboardInterrupt
                yield result
    except BrokenExecutor as error:
        raise InputError("a process of -j was killed, perhaps for its memory", advice="give a smaller -j") from error
    except RuntimeError as error:
        # The pool cannot wait for its own thread where that was what could not be started.
        if isinstance(error.__context__, InputError):
            raise error.__context__ from None
        raise


def _by(executor: "Executor", function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterator[_Result]:
    futures = [executor.submit(function, item) for item in items]
    try:
        # What was given back is not kept.
        while futures:
            yield futures.pop(0).result()
    finally:
        for future in futures:
            future.cancel()


def _started(start: Callable[[], Iterator[_Result]]) -> Iterator[_Result]:
    """Start all processes; raises `InputError` where the system has no room for one, and leaves none behind."""
    try:
        return start()
    except (OSError, RuntimeError) as error:  # of fork(), of a thread
        from multiprocessing import active_children  # noqa: PLC0415 - as above

        for child in active_children():
            # It has no work, and the end of this process would wait for it. A signal that can be handled is lost
            # on a process that Python has not yet set up.
            child.kill()
        raise InputError(f"the processes of -j cannot be started: {error}", advice="give a smaller -j") from error


@contextmanager
def _heeding(interrupts: list[int]) -> Iterator[None]:
    """Note interruptions; where somebody ends this process, end the others before."""
    from signal import SIG_DFL, SIGHUP, SIGINT, SIGTERM, getsignal, signal  # noqa: PLC0415 - as above

    before = {SIGINT: signal(SIGINT, lambda number, _: interrupts.append(number))}
    for number in (SIGTERM, SIGHUP):
        if getsignal(number) == SIG_DFL:
            before[number] = signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal(number, handler)


def _end(number: int, _: object) -> None:
    """Let the processes remove what they have begun, and end as the signal wants it."""
    from multiprocessing import active_children  # noqa: PLC0415 - as above
    from multiprocessing.connection import wait  # noqa: PLC0415 - as above
    from signal import SIG_DFL, signal  # noqa: PLC0415 - as above
    from time import monotonic  # noqa: PLC0415 - as above

    children = active_children()
    for child in children:
        child.terminate()
    last = monotonic() + _PATIENCE_SECONDS
    running = {child.sentinel for child in children}
    while running and (left := last - monotonic()) > 0:
        running -= set(wait(list(running), left))
    signal(number, SIG_DFL)
    os.kill(os.getpid(), number)


def _prctl() -> Callable[..., int] | None:
    """The C library's function, where there is one."""
    try:
        from ctypes import CDLL  # noqa: PLC0415 - as above

        prctl: Callable[..., int] = CDLL(None).prctl
    except (ImportError, AttributeError):
        return None
    return prctl


def _begin(parent: int, prctl: Callable[..., int] | None) -> None:
    """Begin a process that leaves interruptions to its parent, and does not outlive it."""
    from signal import SIG_DFL, SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal, signal  # noqa: PLC0415 - as above

    signal(SIGINT, SIG_IGN)
    for number in (SIGTERM, SIGHUP):
        if getsignal(number) is _end:
            signal(number, SIG_DFL)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(SIGTERM))
        if os.getppid() != parent:  # it was killed before this
            os.kill(os.getpid(), SIGTERM)
