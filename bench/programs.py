"""Builds the programs that the bench runs, with gcc and this project's tool and runtime."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

FIXTURES: Final = Path(__file__).parents[1] / "fixtures" / "bench"
_COMPILE = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fcf-protection=none")
_STATICCALL = (sys.executable, "-m", "staticcall")


def command(*words: str | Path) -> str:
    """Run a command and give what it printed; raises `SystemExit` with all that it said where it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def staticcall(*words: str | Path) -> str:
    """The same for the tool."""
    return command(*_STATICCALL, *words)


@cache
def runtime_source() -> Path:
    """The runtime, one C file."""
    return Path(staticcall("--runtime-source").strip())


@cache
def _include_folder() -> Path:
    return Path(staticcall("--include-dir").strip())


def compile_object(source: Path, folder: Path, *options: str) -> Path:
    """Compile C for a program that may be loaded anywhere."""
    result = folder / f"{source.stem}.o"
    command(*_COMPILE, "-fPIE", "-I", _include_folder(), *options, "-c", source, "-o", result)
    return result


def assemble_object(source: Path, result: Path, defined: Sequence[str], *, annotated: bool) -> Path:
    """Assemble with these names defined; `annotated` gives the object its table of static calls."""
    command("gcc", "-c", *(f"-D{name}" for name in defined), source, "-o", result)
    if annotated:
        staticcall("annotate", "--section", "static_call_sites", "--in-place", result)
    return result


def link_library(source: Path, result: Path, *options: str) -> Path:
    """Compile and link a shared library."""
    command(*_COMPILE, "-fPIC", "-shared", *options, source, "-o", result)
    return result


def link_program(objects: Sequence[Path], result: Path) -> Path:
    """Link a program that may be loaded anywhere, its libraries beside it and bound when they are first called."""
    command("gcc", "-pie", "-pthread", "-Wl,-z,lazy,-rpath,$ORIGIN", *objects, "-o", result)
    return result
