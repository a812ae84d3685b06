"""Objects of `fixtures/objects-user`, linked with what they need, and what such a program prints.

calls = Workshop(tmp_path)
program = calls.link(calls.object("gcc"), "lld", "pie")
assert run(program) == prints({"alpha": "plus_two"})
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from tests.support.programs import LINKERS
from tests.support.toolchain import TIMEOUT_SECONDS, BuildError, Compiler, Kind, Linker

SOURCES = Path(__file__).parents[2] / "fixtures" / "objects-user"
KINDS: Final[tuple[Kind, ...]] = ("exec", "pie", "shared")
LINKS: Final = tuple((linker, kind) for linker in LINKERS for kind in KINDS)
Return0 = Literal["HAS", "KNOWS", "UNKNOWN"]
"""Whether the object defines the function that returns 0, only names it, or has not heard of it."""

TARGETS: Final[Mapping[str, int | None]] = MappingProxyType(
    {"plus_one": 100, "plus_two": 200, "plus_three": 300, "plus_four": 400, "NULL": 0, "RET0": None}
)
SITES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "alpha": (
            *("inside", "split", "opcode", "block", "prefixed", "prefixed_split", "indirect", "tail", "tail_prefixed"),
            *("tail_indirect", "jcc", "block_of_16", "anywhere"),
        ),
        "beta": ("inside", "split", "prefixed", "indirect", "tail", "jcc"),
        "gamma": ("inside", "split", "tail", "jcc"),
        "delta": ("inside",),
    }
)
_AT_FIRST: Final[Mapping[str, str]] = MappingProxyType(
    {"alpha": "plus_one", "beta": "NULL", "gamma": "RET0", "delta": "NULL"}
)
_ORDER = (("alpha", "beta", "delta"), ("gamma",))
_KIND_FLAGS: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {"exec": ("-no-pie",), "pie": ("-pie",), "shared": ("-shared",)}
)


def prints(changed: Mapping[str, str] = _AT_FIRST, *, gamma_is_there: bool = True) -> str:
    """What the program prints, given the targets of the keys that are not as they were."""
    targets, lines = {**_AT_FIRST, **changed}, []
    for keys in _ORDER[: 1 + gamma_is_there]:
        for key in keys:
            for site in SITES[key]:
                results = (_result(targets[key], x, conditional=site == "jcc") for x in (7, -7))
                lines.append(" ".join([f"{key}_{site}", *map(str, results)]))
        for key in keys:
            lines += [f"{what} {key} {_result(targets[key], 7)}" for what in ("key", "trampoline")]
    return "".join(f"{line}\n" for line in lines)


def _result(target: str, x: int, *, conditional: bool = False) -> int:
    if conditional and x >= 0:
        return x
    distance = TARGETS[target]
    return 0 if distance is None else x + distance


def run_tool(*command: str | Path) -> str:
    """Run a build tool and return what it printed; raises `BuildError` unless it had nothing to complain of."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode or done.stderr:
        raise BuildError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Workshop:
    """Builds objects and programs into one folder; objects are built once and shared: copy them, do not change them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[str, Path] = {}
        self._links = 0

    def object(self, cc: Compiler = "gcc", return0: Return0 = "KNOWS", *, records: bool = True) -> Path:
        """The object with the sites; by default it has a table of them."""
        options = ["-DRECORDS"] if records else []
        return self._compile(cc, "calls.S", *options, f"-D{return0}_RETURN0")

    def link(self, calls: Path, linker: Linker = "bfd", kind: Kind = "exec", *, gamma_is_there: bool = True) -> Path:
        """A program around an object, with a shared library in between if it is `shared`."""
        self._links += 1
        program = self._folder / f"program-{self._links}"
        gamma = ["-DGAMMA"] if gamma_is_there else []
        # What is called may come from an archive, so whoever calls it stands before it.
        parts = [self._part("run.c", *gamma), calls, self._part("elsewhere.c")]
        main = self._part("main.c")
        driver = ["gcc", f"-fuse-ld={linker}", "-Wl,--fatal-warnings"]
        if kind == "shared":
            library = program.with_suffix(".so")
            run_tool(*driver, *_KIND_FLAGS[kind], *parts, "-o", library)
            parts = [library]
        flags = _KIND_FLAGS["pie" if kind == "shared" else kind]
        run_tool(*driver, *flags, main, *parts, "-o", program)
        return program

    def _part(self, source: str, *options: str) -> Path:
        return self._compile("gcc", source, "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", *options)

    def _compile(self, cc: Compiler, source: str, *options: str) -> Path:
        name = "".join([source, cc, *options]).replace("=", "-") + ".o"
        if name not in self._built:
            run_tool(cc, *options, "-c", SOURCES / source, "-o", self._folder / name)
            self._built[name] = self._folder / name
        return self._built[name]
