"""Made-up objects with static calls and without records, from `fixtures/objects`.

    made = Objects(tmp_path)
    made("tail_calls", "gcc"), made("calls-kernel", "clang")

A recipe is named by its source, and by how it is compiled where there are several ways.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from tests.support.programs import COMPILERS
from tests.support.toolchain import TIMEOUT_SECONDS, BuildError, Compiler

SOURCES = Path(__file__).parents[2] / "fixtures" / "objects"

_DRIVERS: Final[Mapping[Compiler, str]] = MappingProxyType({"gcc": "g++", "clang": "clang++"})
_TOOLS = (
    *COMPILERS,
    *_DRIVERS.values(),
    *("ld.bfd", "ld.lld", "ld.mold", "nm", "objcopy", "objdump", "readelf", "strip", "llvm-objcopy", "llvm-strip"),
)
_OPTIMISED = ("-O2",)
_WARNINGS = ("-Wall", "-Wextra", "-Werror")
_MANY = "many_"
MANY_SECTIONS = 65_300  # more than there are numbers for in 16 bits


class Recipe(NamedTuple):
    """Sources, the compiler's options, and how the objects are combined where there is more than one."""

    sources: Sequence[str]
    options: Sequence[str] = ()
    link: Sequence[str] = ()
    compilers: Sequence[Compiler] = COMPILERS


_ASSEMBLED = sorted(path.stem for path in SOURCES.glob("*.S"))
_OF_CLANG = "clang_tables"
_COMBINED = ("tail_calls.S", "sections.S", "conditional.S", "unsorted.S", "calls.c", "inline_one.cc", "inline_two.cc")
RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        **{name: Recipe((f"{name}.S",)) for name in _ASSEMBLED},
        _OF_CLANG: Recipe((f"{_OF_CLANG}.S",), compilers=("clang",)),
        "calls": Recipe(("calls.c",), _OPTIMISED),
        "calls-debug": Recipe(("calls.c",), ("-O2", "-g")),
        "calls-function_sections": Recipe(("calls.c",), ("-Os", "-ffunction-sections", "-fdata-sections")),
        "calls-kernel": Recipe(
            ("calls.c",), ("-O2", "-mcmodel=kernel", "-fno-pie", "-fcf-protection", "-mno-red-zone")
        ),
        "calls-no_plt": Recipe(("calls.c",), ("-O2", "-fPIC", "-fno-plt")),
        "calls-pic": Recipe(("calls.c",), ("-O2", "-fPIC")),
        "calls-plain": Recipe(("calls.c",), ("-O0",)),
        "calls-size": Recipe(("calls.c",), ("-Os",)),
        "calls-small": Recipe(("calls.c",), ("-O2", "-mcmodel=small", "-fno-pie")),
        "calls-hidden": Recipe(("calls.c",), ("-O2", "-fPIC", '-DSC_VISIBILITY="hidden"')),
        "inline_one": Recipe(("inline_one.cc",), _OPTIMISED),
        "inline_two": Recipe(("inline_two.cc",), (*_OPTIMISED, "-g")),
        "lto": Recipe(
            ("calls.c", "users.c"),
            ("-O2", "-flto"),
            ("gcc", "-O2", "-flto", "-r", "-flinker-output=nolto-rel"),
            ("gcc",),
        ),
        "lto-lld": Recipe(("calls.c", "users.c"), ("-O2", "-flto"), ("ld.lld", "-r"), ("clang",)),
        "combined-bfd": Recipe(_COMBINED, _OPTIMISED, ("ld.bfd", "-r")),
        "combined-lld": Recipe(_COMBINED, _OPTIMISED, ("ld.lld", "-r")),
        "combined-mold": Recipe(_COMBINED, _OPTIMISED, ("ld.mold", "-r")),
        "many_sections": Recipe(("many_sections.S",), compilers=("gcc",)),
        "many_nameless": Recipe(("many_nameless.S",), compilers=("clang",)),
    }
)
# Every recipe with every compiler that it is for.
CASES: Final = tuple((name, compiler) for name, recipe in RECIPES.items() for compiler in recipe.compilers)
# Without those that take everybody seconds.
SMALL_CASES: Final = tuple((name, compiler) for name, compiler in CASES if not name.startswith(_MANY))


def missing_tools() -> list[str]:
    """What the recipes need and this machine does not have."""
    return [tool for tool in _TOOLS if shutil.which(tool) is None]


class Objects:
    """Builds objects into one folder, each once; what comes back is shared: read and copy it, do not change it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[tuple[str, Compiler], Path] = {}

    def __call__(self, name: str, compiler: Compiler = "gcc") -> Path:
        """The object that a recipe makes; raises `BuildError` with the compiler's output."""
        case = (name, compiler)
        if case not in self._built:
            self._built[case] = self._build(RECIPES[name], self._folder / f"{name}-{compiler}.o", compiler)
        return self._built[case]

    def _build(self, recipe: Recipe, result: Path, compiler: Compiler) -> Path:
        parts = [self._compile(self._source(source), recipe, result, compiler) for source in recipe.sources]
        if not recipe.link:
            (part,) = parts
            return part.rename(result)
        run(*recipe.link, "-o", result, *parts)
        return result

    def _source(self, name: str) -> Path:
        if not name.startswith(_MANY):
            return SOURCES / name
        path = self._folder / name
        path.write_text(_many_sections(named=name == "many_sections.S"))
        return path

    def _compile(self, source: Path, recipe: Recipe, result: Path, compiler: Compiler) -> Path:
        driver = _DRIVERS[compiler] if source.suffix == ".cc" else compiler
        part = result.with_name(f"{result.stem}.{source.stem}.part.o")
        run(driver, *_WARNINGS, f"-I{SOURCES}", *recipe.options, "-c", source, "-o", part)
        return part


def run(*command: str | Path) -> str:
    """Run a build tool and return what it printed; raises `BuildError` unless it did so in silence about errors."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode or done.stderr:
        raise BuildError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _many_sections(*, named: bool) -> str:
    """So many sections that the last ones, where code is, have numbers that do not fit 16 bits.

    Unless they are `named`, no symbol is in any of those.
    """
    lines = [
        '#include "static_call.inc"',
        "DEFINE one, target",
        ".text",
        "FUNCTION target",
        "jmp __SCT__one",
        "END target",
    ]
    lines += [f'.section .data.d{number}, "a", @progbits\n.byte 0' for number in range(MANY_SECTIONS)]
    for number in range(30):
        lines += [f'.section .text.f{number}, "ax", @progbits']
        call = ["call __SCT__one", "nop"]
        lines += [f"FUNCTION f{number}", *call, "jmp __SCT__one", f"END f{number}"] if named else call
    return "\n".join(lines) + "\n"
