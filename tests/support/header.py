"""Programs that are made with staticcall.h, from the sources in `fixtures/header`, and what they print.

made = Maker(tmp_path, pytest.skip)
program = made.program(Recipe("gcc", "bfd", "pie"))
assert run(program) == prints()
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, NoReturn

import staticcall as package
from tests.support.tool import succeed
from tests.support.toolchain import TIMEOUT_SECONDS, Compiler, Linker, missing_tools
from tests.support.user_objects import run_tool

SOURCES: Final = Path(__file__).parents[2] / "fixtures" / "header"
RUNTIME: Final = Path(package.__file__).parent / "runtime"
INCLUDE: Final = RUNTIME / "include"
SITES: Final = {"scale": 66, "note": 3, "zero": 2}

Language = Literal["c", "c++"]
Make = Literal["exec", "pie", "static", "static-pie", "shared"]
Flags = Literal["plain", "aligned", "prefixed"]

STRICT: Final = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
MAKES: Final[tuple[Make, ...]] = ("exec", "pie", "static", "static-pie", "shared")
_COMPILE: Final[Mapping[Make, str]] = MappingProxyType(
    {"exec": "-fno-pie", "pie": "-fPIE", "static": "-fno-pie", "static-pie": "-fPIE", "shared": "-fPIC"}
)
_LINK: Final[Mapping[Make, tuple[str, ...]]] = MappingProxyType(
    {
        "exec": ("-no-pie",),
        "pie": ("-pie",),
        "static": ("-static",),
        "static-pie": ("-static-pie",),
        # Without it only the dynamic linker knows where an exported function is.
        "shared": ("-shared", "-Wl,-Bsymbolic"),
    }
)
_CXX: Final[Mapping[Compiler, str]] = MappingProxyType({"gcc": "g++", "clang": "clang++"})
# What each target gives for x, or counts for it.
TARGETS: Final[Mapping[str, Callable[[int], int]]] = MappingProxyType(
    {
        "plus_one": lambda x: x + 1,
        "plus_two": lambda x: x + 2,
        "plus_seven": lambda x: x + 7,
        "RET0": lambda _: 0,
        "NULL": lambda _: 0,
        "note_once": lambda x: x,
        "note_twice": lambda x: 2 * x,
    }
)


class Recipe(NamedTuple):
    """How a program is made; `runtime` is whether it updates its static calls, too."""

    cc: Compiler = "gcc"
    linker: Linker = "bfd"
    make: Make = "pie"
    flags: Flags = "plain"
    language: Language = "c"
    annotated: bool = True
    runtime: bool = False

    def __str__(self) -> str:
        kinds = [kind for kind in ("annotated", "runtime") if getattr(self, kind)]
        return "-".join([self.cc, self.linker, self.make, self.flags, self.language.replace("+", "x"), *kinds])


def sites_of(recipe: Recipe) -> dict[str, int]:
    """How many sites each key has: where -fno-plt is given, clang calls often from one function through a register."""
    return {**SITES, "scale": 2} if recipe.cc == "clang" and recipe.flags == "prefixed" else dict(SITES)


def prints(scale: str = "plus_one", note: str = "NULL", zero: str = "RET0") -> str:
    """What the program prints once, given the targets of its keys."""
    scaled, noted, zeroed = TARGETS[scale], TARGETS[note], TARGETS[zero]
    many = 7
    for _ in range(64):
        many = scaled(many) ^ 1
    known = scale if scale in ("plus_one", "plus_two") else "another"
    return (
        f"scale {scaled(7) + 1000} {scaled(7)} {many}\n"
        f"note {noted(10)} {noted(1110)}\n"
        f"zero {zeroed(7) + 2000} {zeroed(7)}\n"
        f"scale is {known}, note is {'NULL' if note == 'NULL' else 'set'}\n"
    )


def pkg_variable(name: str) -> list[str]:
    """A variable of the pkg-config file that holds no other ones."""
    text = (RUNTIME / "pkgconfig" / "staticcall.pc").read_text()
    found = re.search(rf"^{name}=(.*)$", text, re.MULTILINE)
    assert found is not None, name
    return found[1].split()


def compile_options(flags: Flags, cc: Compiler) -> list[str]:
    """The compiler's flags by which all sites can be direct, as the package gives them."""
    if flags == "aligned":
        return [*pkg_variable("align_cflags"), *(pkg_variable("clang_cflags") if cc == "clang" else ())]
    return pkg_variable("prefixed_cflags") if flags == "prefixed" else []


def link_options(flags: Flags, linker: Linker) -> list[str]:
    """The linker's flags by which calls get the prefix, where it has any."""
    return pkg_variable("prefixed_libs") if flags == "prefixed" and linker == "bfd" else []


class Maker:
    """Builds objects and programs into one folder, each once: copy them, do not change them."""

    def __init__(self, folder: Path, unavailable: Callable[[str], NoReturn]) -> None:
        self._folder = folder
        self._unavailable = unavailable
        self._built: set[Path] = set()

    def compiler(self, cc: Compiler, language: Language = "c", linker: Linker = "bfd") -> str:
        """The compiler's name; skips or fails the test where it or the linker is not installed."""
        compiler = _CXX[cc] if language == "c++" else cc
        missing = missing_tools(cc, linker) + ([] if shutil.which(compiler) else [compiler])
        if missing:
            self._unavailable(f"not installed: {', '.join(missing)}")
        return compiler

    def object(self, source: str, recipe: Recipe, *options: str) -> Path:
        """One source as an object."""
        compiler = self.compiler(recipe.cc, recipe.language, recipe.linker)
        language = ("-x", "c++", "-std=c++17") if recipe.language == "c++" else ("-std=c11",)
        name = "".join(
            [source, *options, recipe.cc, recipe.language, _COMPILE[recipe.make], recipe.flags, str(recipe.annotated)]
        )
        output = self._folder / f"{name.replace('=', '-')}.o"
        if output not in self._built:
            flags = compile_options(recipe.flags, recipe.cc)
            command = [compiler, *language, "-O2", *STRICT, f"-I{INCLUDE}", _COMPILE[recipe.make], *flags, *options]
            run_tool(*command, "-c", SOURCES / source, "-o", output)
            if recipe.annotated:
                succeed("annotate", "--quiet", "--in-place", "--section", "static_call_sites", output)
            self._built.add(output)
        return output

    def runtime(self, cc: Compiler) -> Path:
        """The runtime as an object that any program or library may link."""
        output = self._folder / f"runtime-{cc}.o"
        if output not in self._built:
            compiler = self.compiler(cc)
            run_tool(compiler, "-std=c11", "-O2", "-fPIC", f"-I{INCLUDE}", "-c", RUNTIME / "staticcall.c", "-o", output)
            self._built.add(output)
        return output

    def objects(self, recipe: Recipe) -> list[Path]:
        """All that the program is linked from; the first is the one with the sites."""
        options = ["-DUPDATE"] if recipe.runtime else []
        if recipe.make == "shared":
            options.append("-Dmain=run_all")
        return [
            self.object("calls.c", recipe),
            self.object("targets.c", recipe),
            self.object("main.c", recipe, *options),
            *([self.runtime(recipe.cc)] if recipe.runtime else ()),
        ]

    def program(self, recipe: Recipe) -> Path:
        """The program, or the shared object in its stead; `start` runs either."""
        output = self._folder / str(recipe)
        if output not in self._built:
            self.link(recipe, self.objects(recipe), output)
            self._built.add(output)
        return output

    def link(self, recipe: Recipe, objects: Sequence[Path], output: Path) -> Path:
        """Link objects as the recipe says."""
        compiler = self.compiler(recipe.cc, recipe.language, recipe.linker)
        driver = [compiler, f"-fuse-ld={recipe.linker}", "-Wl,--fatal-warnings", *_LINK[recipe.make]]
        run_tool(*driver, *link_options(recipe.flags, recipe.linker), *objects, "-pthread", "-o", output)
        return output

    def start(self, recipe: Recipe, program: Path) -> str:
        """What a program prints; a shared object gets a host that calls into it."""
        if recipe.make != "shared":
            return run_program(program)
        host = program.with_name(f"{program.name}.host")
        # Where the compiler finds another language's library, it is linked into the shared object already.
        run_tool(self.compiler(recipe.cc), SOURCES / "host.c", program, f"-Wl,-rpath,{program.parent}", "-o", host)
        return run_program(host)


def run_program(program: Path) -> str:
    """Run a program that shall end well, and return what it printed."""
    done = subprocess.run([program], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


_FUNCTION = re.compile(r"^[0-9a-f]+ <(\w+)>:$")
_BRANCH = re.compile(r"\s(?:call|jmp|j[a-z]+) +[0-9a-f]+ <(\w+)(?:@\w+)?>$")
_SITE_FUNCTIONS = ("scale_", "note_call", "note_tail", "note_above", "zero_")


def branches(program: Path) -> Counter[str]:
    """Where the direct calls and jumps of the functions with sites lead to, other functions only, by objdump."""
    listing = run_tool("objdump", "-dw", "--no-show-raw-insn", program)
    found: Counter[str] = Counter()
    function = ""
    for line in listing.splitlines():
        start, branch = _FUNCTION.match(line), _BRANCH.search(line)
        if start:
            function = start[1]
        elif branch and function.startswith(_SITE_FUNCTIONS) and branch[1] != function:
            found[branch[1]] += 1
    return found
