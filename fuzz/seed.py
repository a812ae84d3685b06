"""A sound file, what it needs beside it, and what is known of it; and how one is made."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

from fuzz.mutate import Sample
from fuzz.packing import MEMBER
from fuzz.regions import regions_of
from tests.support.toolchain import TIMEOUT_SECONDS, BuildError

Kind = Literal[
    "image",
    "kernel",
    "object",
    "plain",
    "archive",
    "patched",
    "undo",
    "options",
    "relocs",
    "vmlinux",
    "core",
    "container",
    "members",
    "system map",
    "debug file",
    "told",
]

# Files that others need beside them, by the names that they have in arguments.
ORIGINAL, PATCHED, UNDO = "original.elf", "patched.elf", "undo.json"

FIXTURES: Final = Path(__file__).parents[1] / "fixtures"
SMALL: Final = ("-Wl,-z,noseparate-code,-z,max-page-size=0x1000,--build-id=none",)
BARE: Final = ("-nostdlib", "-O2", "-fno-asynchronous-unwind-tables", *SMALL)
KERNEL: Final = ("-static", "-no-pie", "-Wl,-Ttext-segment=0xffffffff81000000")


class Names(NamedTuple):
    """Keys of a file, and functions in it or elsewhere."""

    keys: tuple[str, ...]
    targets: tuple[str, ...]


class Seed(NamedTuple):
    """A sound file, what it needs beside it, and what one may ask of it."""

    name: str
    kind: Kind
    sample: Sample
    names: Names
    beside: Mapping[str, bytes]
    """Other files by the names that arguments give them."""
    around: tuple[str, ...] = ()
    """The layers around it, the innermost first."""
    inner: tuple[Sample, ...] = ()
    """What is inside of each of those layers, in the same order; `sample` is the outermost file."""

    @property
    def member(self) -> str:
        """How the file inside is called behind the name of the archive, in its brackets; nothing if it is no member."""
        return f"({MEMBER})" * sum(layer in ("cpio", "deb") for layer in self.around)

    @property
    def content(self) -> bytes:
        """The sound file."""
        return self.sample.content


class Stock(NamedTuple):
    """All seeds, and all that parts may be borrowed from."""

    seeds: tuple[Seed, ...]
    samples: tuple[Sample, ...]


def seed_of(name: str, kind: Kind, content: bytes, names: Names, beside: Mapping[str, bytes] = {}) -> Seed:
    """A seed of a file that has its map in itself."""
    return Seed(name, kind, Sample(content, regions_of(content)), names, beside)


@cache
def _steady() -> tuple[str, ...]:
    """What runs a program always at the same addresses, where that may be done."""
    command = ("setarch", "-R")
    if shutil.which(command[0]) is None:
        return ()
    return command if not subprocess.run([*command, "true"], capture_output=True, check=False).returncode else ()  # noqa: S603 - its own


def run(*command: str | Path) -> None:
    """Run a program of the machine's; raises `BuildError` where it fails."""
    # In what order gcc writes BTF depends on where it lies in memory.
    done = subprocess.run([*_steady(), *command], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)  # noqa: S603 - the machine's compiler
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
