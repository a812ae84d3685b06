"""One thing done to many items, one after the other or several at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from staticcall.errors import InputError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, jobs: int, most_at_once: int = 1
) -> Iterator[_Result]:
    """What a function makes of every item, in their order, in at most `jobs` processes.

    A process gets at most `most_at_once` items at a time. An interruption from the keyboard reaches all processes of
    a terminal: the first one heeds it when the next result is there, the others end what they have begun, so that none
    stops in a file that is half written. To be called in the main thread. Raises `InputError` where the system killed
    a process.
    """
    if jobs == 1 or len(items) <= 1:
        yield from map(function, items)
        return
    from concurrent.futures import BrokenExecutor, ProcessPoolExecutor  # noqa: PLC0415 - 20 ms that one file does not need
    from signal import SIG_IGN, SIGINT, signal  # noqa: PLC0415 - the same

    chunk = max(1, min(most_at_once, len(items) // (4 * jobs)))
    interrupts: list[int] = []
    before = signal(SIGINT, lambda number, _: interrupts.append(number))
    try:
        with ProcessPoolExecutor(min(jobs, len(items)), initializer=signal, initargs=(SIGINT, SIG_IGN)) as pool:
            for result in pool.map(function, items, chunksize=chunk):
                if interrupts:
                    pool.shutdown(cancel_futures=True)
                    raise KeyboardInterrupt
                yield result
    except BrokenExecutor as error:
        raise InputError("a process of -j was killed, perhaps for its memory", advice="give a smaller -j") from error
    finally:
        signal(SIGINT, before)
