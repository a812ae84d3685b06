"""read -> locate, for a shell that completes what somebody types: the names in a file."""

from __future__ import annotations

from pathlib import Path

from staticcall.abi import elf64
from staticcall.locate.linked import locate
from staticcall.read.image import open_image

_FUNCTIONS = (elf64.STT_FUNC, elf64.STT_GNU_IFUNC)


def key_names(path: Path) -> list[str]:
    """The names of a file's keys, sorted; raises as `report_image` does."""
    with open_image(path) as image:
        return sorted({key.name for key in locate(image).keys.values()})


def function_names(path: Path, start: str) -> list[str]:
    """The names of a file's functions that begin with `start`, sorted; raises as `report_image` does."""
    stem = start.encode(errors="surrogateescape")
    with open_image(path) as image:
        found = image.symbols.matching([(stem, (0,))])
        return sorted({symbol.name for symbol in found if symbol.type in _FUNCTIONS and symbol.name.startswith(start)})
