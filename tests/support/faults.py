"""Programs of `fixtures/faults`: how they are built, and what a run with injected faults tells.

workshop = Workshop(tmp_path)
for fault in faults(workshop.injecting(), "emulate", "copied"):
    assert fault.led == (0 if fault.update else 1)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.runtime import FIXTURES, INCLUDE, RUNTIME
from tests.support.tool import succeed
from tests.support.toolchain import TIMEOUT_SECONDS
from tests.support.user_objects import run_tool

PROTOCOLS: Final = ("emulate", "torvalds", "lutomirski", "rel32", "block8", "out-of-line")
FORMS: Final = 6
KEYS: Final = 2
DIRECT: Final = {"emulate": 6, "torvalds": 2, "lutomirski": 2, "rel32": 2, "block8": 2, "out-of-line": 0}
"""How many sites of a key lead straight to its target under a protocol: of those that `sites.S` has."""

CALLS: Final = (
    *("open", "pwrite", "mmap", "mprotect", "munmap", "madvise", "memfd_create", "fopen", "syscall", "sigaction"),
    *("malloc", "calloc", "realloc", "pthread_atfork"),
)
"""What the runtime calls that can fail."""

_FOLDER: Final = FIXTURES / "faults"
_FLAGS: Final = ("-std=c11", "-g", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", f"-I{INCLUDE}")
_ANNOTATED: Final = ("program", "own", "offering", "stale", "using")
_NUMBER = re.compile(r"-?\d+")


class Fault(NamedTuple):
    """One call that failed: what in, what that came to, and what was seen after an update and after a next one."""

    phase: str
    failed: str
    first: int
    update: int
    led: int
    traps: int
    next: int
    led_next: int
    traps_next: int
    descriptors: int
    direct: int
    protocol: str


def faults(program: Path, protocol: str, *options: str) -> list[Fault]:
    """One for each call that the runtime makes; the program itself sees to it that none crashes."""
    return [_fault(line) for line in run(program, protocol, *options).splitlines()]


def _fault(line: str) -> Fault:
    fields = [field.partition("=") for field in line.split()]
    values: dict[str, Any] = {name: int(text) if _NUMBER.fullmatch(text) else text for name, _, text in fields}
    return Fault(**values)


def missing_tools() -> list[str]:
    """What the builds need and this machine does not have."""
    return [tool for tool in ("gcc", "ld.bfd", "nm", "objdump", "readelf") if shutil.which(tool) is None]


def run(program: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """What a program printed, which has to end well and to have no complaint."""
    inherited = {name: value for name, value in os.environ.items() if name != "STATICCALL_PROTOCOL"}
    wished = {**inherited, **(environment or {})}
    command = [program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, env=wished)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


class Followed(NamedTuple):
    """What `follow` saw: 0 or a negative errno of each step, generations, and the runtime's state."""

    choice: int
    init: int
    updates: list[int]
    led: list[int]
    protocol: str
    text: int
    sites: int
    direct: int
    trampoline: int
    foreign: int


def follow(program: Path, *protocol: str, environment: Mapping[str, str] | None = None) -> Followed:
    """One run; `protocol` is the one that the program chooses, if any, and the one that it chooses in the end."""
    return Followed(**json.loads(run(program, *protocol, environment=environment)))


class Workshop:
    """Builds objects and programs into one folder, each once: copy them, do not change them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._built: set[Path] = set()

    def object(self, name: str, *options: str) -> Path:
        """One source compiled, and annotated if it has static calls."""
        source = RUNTIME if name == "staticcall" else _FOLDER / f"{name}.c"
        output = self.folder / ("".join([name, *options]).replace("=", "-") + ".o")
        if output not in self._built:
            run_tool("gcc", *_FLAGS, *options, "-c", source, "-o", output)
            if name in _ANNOTATED:
                succeed("annotate", "--quiet", "--in-place", "--section", "static_call_sites", output)
            self._built.add(output)
        return output

    def keys(self, *options: str) -> Path:
        """The two keys with all their sites in one object, so that they can be bound there."""
        output = self.folder / ("".join(["keys", *options]) + ".o")
        if output not in self._built:
            sites = self.folder / "sites.o"
            run_tool("gcc", "-c", _FOLDER / "sites.S", "-o", sites)
            run_tool("ld.bfd", "-r", self.object("program", *options), sites, "-o", output)
            succeed("annotate", "--quiet", "--in-place", "--section", "static_call_sites", output)
            self._built.add(output)
        return output

    def bound(self) -> Path:
        """The same with every site led straight to its first target."""
        output = self.folder / "bound.o"
        if output not in self._built:
            unprefixed = self.folder / "bound-unprefixed.o"
            succeed("patch", self.keys(), "-o", unprefixed, "--bind", "--policy", "kernel", "--quiet")
            succeed("patch", unprefixed, "-o", output, "--bind", "--policy", "torvalds", "--quiet")
            self._built.add(output)
        return output

    def link(self, name: str, parts: Sequence[Path], *options: str) -> Path:
        """A program, or a library if its name ends so."""
        output = self.folder / name
        if output not in self._built:
            kind = "-shared" if output.suffix == ".so" else "-pie"
            flags = ("-fuse-ld=bfd", kind, "-pthread", "-Wl,--fatal-warnings", f"-Wl,-rpath,{self.folder}")
            run_tool("gcc", *flags, *parts, *options, "-ldl", "-o", output)
            self._built.add(output)
        return output

    def parts(self, main: str, *, keys: Path | None = None, targets: Path | None = None) -> list[Path]:
        """What a program with the two keys is made of; the one with `main` comes first."""
        return [
            *(self.object(main), keys or self.keys()),
            *(targets or self.object("targets"), self.object("staticcall")),
        ]

    def injecting(self) -> Path:
        """`inject`, which gets all that the runtime calls into its hands."""
        return self.link("inject", self.parts("inject"), *(f"-Wl,--wrap={call}" for call in CALLS))
