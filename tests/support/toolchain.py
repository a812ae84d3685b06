"""Builds the fixtures with the machine's own compilers and linkers, and reads the results without the tool.

    program = build("calls", tmp_path, kind="pie", cc="clang", linker="lld")
    assert run(program) == expected_output("calls")

A fixture is named by its folder below `fixtures/user` or `fixtures`; the source has the folder's name
("calls", "broken/overlap", "demo"). A folder's other sources are named in full: "library/host".

The second half are oracles. They share nothing with the tool: they ask binutils, and what is read by hand
here is little enough to check by eye.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

Kind = Literal["exec", "pie", "shared", "static"]
Compiler = Literal["gcc", "clang"]
Linker = Literal["bfd", "lld", "mold"]

TIMEOUT_SECONDS = 120  # builds and runs take well under one; the rest is for busy machines

_FIXTURES = Path(__file__).parents[2] / "fixtures"
_ROOTS = (_FIXTURES / "user", _FIXTURES)
_FLAGS = (
    "-std=c11",
    "-g",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wa,--fatal-warnings",
    "-Wl,--fatal-warnings",
)
_KIND_FLAGS: Final = MappingProxyType(
    {
        "exec": ("-fno-pie", "-no-pie"),
        "pie": ("-fPIE", "-pie"),
        "shared": ("-fPIC", "-shared"),
        "static": ("-fno-pie", "-static"),
    }
)
_RELR_FLAGS: Final = MappingProxyType(
    {
        "bfd": "-Wl,-z,pack-relative-relocs",
        "lld": "-Wl,--pack-dyn-relocs=relr",
        "mold": "-Wl,--pack-dyn-relocs=relr",
    }
)
_LINKER_PROGRAMS: Final = MappingProxyType({"bfd": "ld.bfd", "lld": "ld.lld", "mold": "ld.mold"})


class BuildError(Exception):
    """The compiler or the linker refused; the message is the command and what it said."""


class RunError(Exception):
    """A program did not end with exit code 0; the message holds all it wrote."""


def missing_tools(cc: Compiler = "gcc", linker: Linker = "bfd") -> list[str]:
    """What a build with these needs and this machine does not have."""
    needed = (cc, _LINKER_PROGRAMS[linker], "nm", "objdump", "readelf")
    return [program for program in needed if shutil.which(program) is None]


def source(fixture: str) -> Path:
    """The one source file that a fixture is built from."""
    name = fixture.rpartition("/")[2]
    for root in _ROOTS:
        for path in (root / fixture / f"{name}.c", root / f"{fixture}.c"):
            if path.is_file():
                return path
    raise FileNotFoundError(f"no fixture of the name {fixture!r}")


def expected_output(fixture: str) -> str:
    """What the fixture prints before anything rewrote it."""
    return (source(fixture).parent / "expected.txt").read_text(encoding="utf-8")


def build(
    fixture: str,
    out: Path,
    *,
    kind: Kind,
    cc: Compiler = "gcc",
    linker: Linker = "bfd",
    relr: bool = False,
    extra: Sequence[str] = (),
) -> Path:
    """Compile and link a fixture into the folder `out`; returns the file, whose name tells how it was made.

    Builds that differ only in `extra` have the same name and need folders of their own. `extra` comes last,
    so it can take back what stands before it. Raises `BuildError` with the compiler's output.
    """
    parts = [fixture.replace("/", "-"), kind, cc, linker, *(["relr"] if relr else [])]
    result = out / ("-".join(parts) + (".so" if kind == "shared" else ""))
    command = [cc, *_FLAGS, *_KIND_FLAGS[kind], f"-fuse-ld={linker}"]
    if relr:
        command.append(_RELR_FLAGS[linker])
    command += [str(source(fixture)), "-o", str(result), *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return result


def run(program: Path, *args: str | Path) -> str:
    """The program's standard output; raises `RunError` unless it ends with exit code 0."""
    command = [str(program.absolute()), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    if done.returncode != 0:
        raise RunError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


# ---- oracles ----


class Section(NamedTuple):
    """A section as readelf lists it."""

    type: str
    address: int
    offset: int
    size: int


class Record(NamedTuple):
    """One record of the table: the linked addresses that it leads to, the flags taken off the key."""

    site: int
    key: int
    flags: int


def _ask(*command: str | Path) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True, env={"LC_ALL": "C"}
    ).stdout


def symbols(path: Path) -> dict[str, int]:
    """Every defined symbol and its address, by nm; a name with several addresses is left out."""
    found = {
        (name, int(value, 16)) for value, _, name in map(str.split, _ask("nm", "--defined-only", path).splitlines())
    }
    addresses = Counter(name for name, _ in found)
    return {name: value for name, value in found if addresses[name] == 1}


def sections(path: Path) -> dict[str, Section]:
    """The sections by name, by readelf."""
    line = re.compile(r"^ +\[ *\d+\] (\S+) +([A-Z_]+) +([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+) ", re.MULTILINE)
    return {
        name: Section(type_, int(address, 16), int(offset, 16), int(size, 16))
        for name, type_, address, offset, size in line.findall(_ask("readelf", "-SW", path))
    }


def bytes_at(path: Path, address: int, size: int) -> bytes:
    """The bytes that the file loads at a linked address; raises `ValueError` where it holds none."""
    image = path.read_bytes()
    table, entry_size, count = (*struct.unpack_from("<Q", image, 32), *struct.unpack_from("<HH", image, 54))
    for at in range(table, table + entry_size * count, entry_size):
        (kind,) = struct.unpack_from("<I", image, at)
        offset, start, _, file_size = struct.unpack_from("<QQQQ", image, at + 8)
        if kind == 1 and start <= address and address + size <= start + file_size:  # 1: PT_LOAD
            return image[offset + address - start :][:size]
    raise ValueError(f"{path.name} holds no {size} bytes for {address:#x}")


def records(path: Path) -> list[Record]:
    """The table `static_call_sites`, in its own order."""
    table = sections(path)["static_call_sites"]
    content = bytes_at(path, table.address, table.size)
    result = []
    for at in range(0, table.size, 8):
        site, key = struct.unpack_from("<ii", content, at)
        here = table.address + at
        result.append(Record(here + site, (here + 4 + key) & ~3, (here + 4 + key) & 3))
    return result


def disassemble(path: Path, address: int) -> str:
    """The one instruction at a linked address in AT&T syntax, by objdump, blanks made one."""
    listing = _ask(
        "objdump",
        "-dw",
        "--no-show-raw-insn",
        f"--start-address={address}",
        f"--stop-address={address + 16}",
        path,
    )
    match = re.search(rf"^ *{address:x}:\s+(.*)$", listing, re.MULTILINE)
    if match is None:
        raise ValueError(f"{path.name} holds no code at {address:#x}")
    return " ".join(match[1].split())


def relative_addends(path: Path) -> dict[int, int]:
    """Slot and value of every R_X86_64_RELATIVE entry with an addend (not the packed ones), by readelf."""
    line = re.compile(r"^([0-9a-f]+) +[0-9a-f]+ R_X86_64_RELATIVE +([0-9a-f]+)$", re.MULTILINE)
    return {int(slot, 16): int(value, 16) for slot, value in line.findall(_ask("readelf", "-rW", path))}


def packed_slots(path: Path) -> set[int]:
    """The slots that `.relr.dyn` relocates, decoded by hand: not every readelf shows them."""
    table = sections(path).get(".relr.dyn")
    if table is None:
        return set()
    slots: set[int] = set()
    base = 0
    for (entry,) in struct.iter_unpack("<Q", bytes_at(path, table.address, table.size)):
        if entry & 1:  # a bitmap of the 63 slots that follow
            slots.update(base + 8 * bit for bit in range(63) if entry >> (bit + 1) & 1)
            base += 8 * 63
        else:
            slots.add(entry)
            base = entry + 8
    return slots
