"""Programs and memory for the tests of allow-lists, and memory images changed by hand."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elftools.elf.elffile import ELFFile

from tests.support.runtime import FIXTURES, INCLUDE, RUNTIME
from tests.support.tool import Json, Outcome, staticcall, succeed, validate

# Its driver's own function is put there by a copy from another field, which nothing in the file tells.
UNKNOWN = {"apic_call_native_eoi"}

SOURCE = FIXTURES / "integrity" / "program.c"


def make_program(folder: Path, *, pie: bool = True, flags: tuple[str, ...] = ()) -> Path:
    """The fixture as a program with an annotated table and the runtime; its object is beside it."""
    program, made = folder / "program", folder / "program.o"
    compile_, link = ("-fPIE", "-pie") if pie else ("-fno-pie", "-no-pie")
    common = ["gcc", "-O2", compile_, f"-I{INCLUDE}", *flags]
    subprocess.run([*common, "-c", "-o", made, SOURCE], check=True)
    succeed("annotate", "--in-place", "--section", "static_call_sites", made)
    subprocess.run([*common, link, "-o", program, made, RUNTIME], check=True)
    return program


def core_of(program: Path, folder: Path, protocol: str = "emulate") -> Path:
    """What gcore says of the running program, once it has done its updates."""
    environment = {**os.environ, "STATICCALL_PROTOCOL": protocol}
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as running:
        assert running.stdin
        assert running.stdout
        try:
            line = running.stdout.readline()
            assert line.startswith(b"0 "), line
            subprocess.run(["gcore", "-o", folder / "core", str(running.pid)], check=True, capture_output=True)
        finally:
            running.stdin.write(b"\n")
            running.stdin.close()
        assert running.wait() == 0
    return folder / f"core.{running.pid}"


def offset_in(core: Path, address: int, *, physical: bool = False) -> int:
    """Where a core holds the byte at an address."""
    with core.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            start = segment["p_paddr" if physical else "p_vaddr"]
            if start <= address < start + segment["p_filesz"]:
                return int(segment["p_offset"] + address - start)
    raise AssertionError(f"{core} does not hold {address:#x}")


def memory(core: Path, offset: int, size: int) -> bytes:
    with core.open("rb") as file:
        file.seek(offset)
        return file.read(size)


@contextmanager
def poked(core: Path, offset: int, data: bytes) -> Iterator[None]:
    """A core with other bytes at a place, until the block ends; cores are large, so it is the file itself."""
    core.chmod(0o600)
    before = memory(core, offset, len(data))
    _write(core, offset, data)
    try:
        yield
    finally:
        _write(core, offset, before)


def _write(core: Path, offset: int, data: bytes) -> None:
    with core.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def branch(code: bytes, address: int, target: int) -> bytes:
    """The same call or jump leading to another place."""
    return code[:-4] + struct.pack("<i", target - address - len(code))


def validate_sorts(document: Json, name: str) -> None:
    """See that a document is what its schema promises, looking at one of its ranges and keys of every sort.

    A schema's validator takes a minute for all those of a kernel. Two of a sort differ in names, and in digits.
    """
    lists = {part: [*{_sort(one): one for one in document[part]}.values()] for part in ("ranges", "keys")
             if part in document}  # fmt: skip
    validate(document | lists, name)


_NAMES = ("key", "function", "target", "name")


def _sort(value: object) -> object:
    if isinstance(value, dict):
        return tuple((name, type(one) if name in _NAMES else _sort(one)) for name, one in value.items())
    if isinstance(value, list):
        return frozenset(map(_sort, value))
    if isinstance(value, str):
        return _DIGITS.sub("0", value)
    return value > 0 if type(value) is int else value


_DIGITS = re.compile("[0-9a-f]+")


def check(file: Path, core: Path, *options: str, code: int = 0) -> Json:
    outcome = staticcall("check-memory", file, "--core", core, "--format", "json", *options)
    assert (outcome.code, outcome.err) == (code, ""), outcome
    document = json.loads(outcome.out)
    assert isinstance(document, dict)
    validate_sorts(document, "check-memory")
    return document


def codes(document: Json) -> list[str]:
    return [finding["code"] for finding in document["findings"]]


def only(document: Json, address: int) -> Json:
    """The one range that is not as it was, besides those that are unknown anyway."""
    (one,) = (one for one in document["ranges"] if one["key"] not in UNKNOWN)
    assert int(one["address"], 16) == address
    assert isinstance(one, dict)
    return one


def one_line(outcome: Outcome) -> int:
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("staticcall: ")
    return outcome.code
