"""The fixtures as programs that tests share: each is built once, however many tests ask for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple, NoReturn

from tests.support import toolchain
from tests.support.toolchain import Compiler, Kind, Linker


class Toolchain(NamedTuple):
    """A compiler and a linker."""

    cc: Compiler
    linker: Linker


COMPILERS: tuple[Compiler, ...] = ("gcc", "clang")
LINKERS: tuple[Linker, ...] = ("bfd", "lld", "mold")
TOOLCHAINS = tuple(Toolchain(cc, linker) for cc, linker in product(COMPILERS, LINKERS))


class Builder:
    """Builds fixtures into one folder; `unavailable` is called with the reason where a tool is missing."""

    def __init__(self, folder: Path, unavailable: Callable[[str], NoReturn]) -> None:
        self._folder = folder
        self._unavailable = unavailable
        self._programs: dict[tuple[str, Kind, Toolchain, bool], Path] = {}

    def __call__(self, fixture: str, kind: Kind, tools: Toolchain = TOOLCHAINS[0], *, relr: bool = False) -> Path:
        """The program, which is shared: read and copy it, do not change it."""
        if missing := toolchain.missing_tools(*tools):
            self._unavailable(f"not installed: {', '.join(missing)}")
        case = (fixture, kind, tools, relr)
        if case not in self._programs:
            self._programs[case] = toolchain.build(
                fixture, self._folder, kind=kind, cc=tools.cc, linker=tools.linker, relr=relr
            )
        return self._programs[case]
