"""Places in source files."""

from collections.abc import Mapping
from typing import NamedTuple


class SourceLine(NamedTuple):
    """A line of a source file, counted from 1; `path` is as the compiler was given it, absolute or not."""

    path: str
    line: int


NO_LINES: Mapping[int, SourceLine] = {}
