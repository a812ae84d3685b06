"""One file of an archive, while the archive is read from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple


def _nothing(size: int) -> bytes:  # noqa: ARG001 - as all that read
    return b""


class Entry(NamedTuple):
    """A member: `read` gives at most so many of its next bytes, until the next entry is asked for.

    `link` is what a link leads to, from the archive's root on if it is a `hard` one. `same` is equal for all names of
    one file where only one of them has the content.
    """

    name: str
    size: int = 0
    regular: bool = False
    link: str | None = None
    hard: bool = False
    same: Hashable = None
    read: Callable[[int], bytes] = _nothing
