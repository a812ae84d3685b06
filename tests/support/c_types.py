"""C functions of many types that differ little, and what a compiler says of each pair of them.

    universe = Universe(seed=1, count=80)
    source = universe.write(folder)
    universe.compatible(source)     the pairs (i, j) for which gcc takes `typeof(&f_i) p = f_j` without a word

The types come from a small pool of types that are easily mixed up. Left out is `const row *` for an array type `row`:
gcc's DWARF has no const there. They are written with `typeof`, so any of them can be a parameter or a result without
its declarator being taken apart.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.toolchain import TIMEOUT_SECONDS, BuildError

PRELUDE: Final = """\
typedef int word;
typedef const int constant_word;
typedef unsigned int u32;
typedef unsigned long size;
struct unknown;
struct s { int x; };
struct t { int x; };
union u { int x; };
typedef struct s s_t;
typedef struct { int x, y; } pair;
typedef struct { int x, z; } other_pair;
typedef struct { unsigned char cells[8]; } cells;
enum plain { PLAIN };
enum other { OTHER };
enum negative { NEGATIVE = -1 };
enum wide { WIDE = 0x100000000 };
enum __attribute__((packed)) small { SMALL };
typedef enum { UNNAMED } unnamed;
typedef int row[3];
typedef int callback(int, void *);
"""

# Types that can be results and parameters, in groups that a careless comparison would mix up.
_VALUES: Final = (
    *("int", "word", "const int", "constant_word", "volatile int", "signed", "unsigned", "u32"),
    *("enum plain", "enum other", "enum negative", "unnamed", "enum small", "unsigned char", "enum wide"),
    *("char", "signed char", "short", "unsigned short", "_Bool"),
    *("long", "long long", "unsigned long", "unsigned long long", "size", "__int128", "unsigned __int128"),
    *("float", "double", "long double"),
    *("struct s", "s_t", "struct t", "union u", "pair", "other_pair", "cells"),
    *("struct s *", "s_t *", "const struct s *", "struct t *", "union u *", "pair *", "other_pair *", "struct s **"),
    *("void *", "const void *", "void *const", "volatile void *", "char *", "const char *", "unsigned char *"),
    *("int *", "word *", "const int *", "constant_word *", "int *const", "int *const *", "int **", "unsigned *"),
    *("enum plain *", "enum other *", "enum negative *", "struct unknown *", "struct unknown **"),
    *("int (*)(int)", "int (*)(const int)", "int (*)(word)", "int (*)(int, ...)", "void (*)(void)", "callback *"),
    *("int (*)(int, void *)", "int (**)(int, void *)", "void (*(*)(int))(void)", "int (*(*)(int))[3]"),
    *("row *", "int (*)[3]", "int (*)[4]", "const int (*)[3]"),
)
_ONLY_PARAMETERS: Final = ("int [3]", "row", "callback", "int *restrict", "__builtin_va_list")
# What BTF cannot tell from something else, or at all.
_NOT_IN_BTF: Final = (
    *("int (*)[3][4]", "int (*)[4][3]", "int (*)[12]"),
    *("_Atomic int", "_Atomic(int) *", "int (*)[]", "int (*)[0]", "int (*)()", "int *restrict *"),
)
_MESSAGE: Final = re.compile(r"^[^\n:]*:(\d+):\d+: error: ", re.MULTILINE)


class Universe:
    """`count` function types; with `everything` also those that BTF does not know."""

    def __init__(self, seed: int, count: int, *, everything: bool) -> None:
        chance = random.Random(seed)  # noqa: S311 - the same types in every run
        values = [*_VALUES, *(_NOT_IN_BTF if everything else ())]
        parameters = [*values, *_ONLY_PARAMETERS]
        self.functions: list[tuple[str, list[str] | None, bool]] = []
        while len(self.functions) < count:
            base = [chance.choice(parameters) for _ in range(chance.randint(0, 2))]
            result = chance.choice(["void", "int", "void *", *values[:12], chance.choice(values)])
            self._add(result, base, variadic=False)
            # Neighbours: one thing about them is another.
            for _ in range(4):
                changed, other = list(base), result
                where = chance.randrange(len(base) + 1)
                near = self._near(base[where] if where < len(base) else result, parameters, chance)
                if where < len(base):
                    changed[where] = near
                elif near in values:
                    other = near
                self._add(other, changed, variadic=bool(changed) and chance.random() < 0.1)
            if everything:
                self._add(result, None, variadic=False)
        del self.functions[count:]

    def _near(self, type_: str, pool: list[str], chance: random.Random) -> str:
        if type_ not in pool:
            return chance.choice(pool)
        place = pool.index(type_) + chance.randint(-4, 4)
        return pool[min(max(place, 0), len(pool) - 1)]

    def _add(self, result: str, parameters: list[str] | None, *, variadic: bool) -> None:
        self.functions.append((result, parameters, variadic))

    def name(self, number: int) -> str:
        return f"f{number}"

    def write(self, folder: Path) -> Path:
        """A source that defines all functions."""
        path = folder / "universe.c"
        path.write_text(PRELUDE + "".join(self._definition(n) for n in range(len(self.functions))))
        return path

    def _definition(self, number: int) -> str:
        result, parameters, variadic = self.functions[number]
        names = [f"__typeof__({type_}) p{n}" for n, type_ in enumerate(parameters or ())]
        list_ = ", ".join([*names, *(["..."] if variadic else [])]) or ("" if parameters is None else "void")
        return f"__typeof__({result}) f{number}({list_}) {{ __builtin_trap(); }}\n"

    def compatible(self, source: Path) -> set[tuple[int, int]]:
        """The pairs of functions whose types gcc takes as compatible."""
        count = len(self.functions)
        pairs = [(one, other) for one in range(count) for other in range(count)]
        # One line per question, so that the line of a message is its question.
        lines = [f"static __typeof__(&f{one}) p{one}_{other} = f{other};" for one, other in pairs]
        text = source.read_text()
        first = text.count("\n") + 1
        probe = source.with_name("pairs.c")
        probe.write_text(text + "\n".join(lines) + "\n")
        refused = {pairs[line - first] for line in complaints(probe) if line >= first}
        return set(pairs) - refused


def complaints(source: Path) -> set[int]:
    """The lines that gcc says something about."""
    command = ["gcc", "-std=gnu11", "-fsyntax-only", "-fmax-errors=0", "-fdiagnostics-plain-output"]
    command += ["-Werror=incompatible-pointer-types", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    return {int(line) for line in _MESSAGE.findall(done.stderr)}


def compile_object(source: Path, *flags: str, cc: str = "gcc") -> Path:
    """The object of a source, with debug data; raises `BuildError`."""
    target = source.with_name(f"{source.stem}-{cc}{''.join(flags)}.o")
    command = [cc, "-std=gnu11", "-w", "-g", "-c", *flags, str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode:
        raise BuildError(done.stderr)
    return target


def require(program: str) -> None:
    """Skip a test where a program is not installed; fail it where every test is meant to run."""
    if shutil.which(program) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {program}")
