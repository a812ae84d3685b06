"""Being asked to stop: temporary files are removed first, and publishing is not cut in two.

The process still ends by the signal, as its parent expects. Handlers are there only while there is something to remove,
and only where nobody else has one: what `nohup` ignores stays ignored.

Source: signal(7); Python runs handlers in the main thread, between two of its steps.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOBODYS: Final = (signal.SIG_DFL, signal.default_int_handler)

# What to do before the end; the handlers that were there before; how many blocks hold signals; which came meanwhile.
_removers: list[Callable[[], None]] = []
_before: dict[int, Any] = {}
_held: list[None] = []
_waiting: list[int] = []


def remove_at_end(remove: Callable[[], None]) -> None:
    """Have `remove` called where a signal ends the process. To be called inside `held`."""
    _removers.append(remove)


def leave(remove: Callable[[], None]) -> None:
    """There is nothing to be removed any more. To be called inside `held`."""
    if remove in _removers:
        _removers.remove(remove)


@contextmanager
def held() -> Iterator[None]:
    """Let a signal wait until the block is done."""
    _held.append(None)
    try:
        _install()
        yield
    finally:
        _held.pop()
        if not _held:
            if not _removers:
                _restore()
            if _waiting:
                number = _waiting[0]
                _waiting.clear()
                _end(number)


@contextmanager
def _none_delivered() -> Iterator[None]:
    """Let the system keep signals back: Python drops one that comes while its handler is being changed, and says so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _install() -> None:
    # ValueError: not in the main thread, where the owner of the process decides.
    with contextlib.suppress(ValueError), _none_delivered():
        for number in _ENDING:
            if number not in _before and (handler := signal.getsignal(number)) in _NOBODYS:
                signal.signal(number, _heed)
                _before[number] = handler


def _restore() -> None:
    with contextlib.suppress(ValueError), _none_delivered():
        for number, handler in list(_before.items()):
            if signal.getsignal(number) is _heed:
                signal.signal(number, handler)
            del _before[number]


def _heed(number: int, _: FrameType | None) -> None:
    if _held:
        _waiting.append(number)
    else:
        _end(number)


def _end(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt  # whoever has files removes them on the way out
    for remove in reversed(_removers):
        remove()
    with _none_delivered():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
