"""What a kernel file says of its static calls, read without anything of staticcall's.

The oracle for reports and for the memory of running kernels: the layout comes from pyelftools, all else from
struct and the rules that include/linux/static_call.h and arch/x86/kernel/static_call.c state.
"""

from __future__ import annotations

import functools
import struct
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from elftools.elf.elffile import ELFFile

KEY, TRAMPOLINE = "__SCK__", "__SCT__"
RETURN0, RETURN_THUNK, PLAIN_RETURN = "__static_call_return0", "__x86_return_thunk", "__static_call_return"
LINE = 64

_SYMBOL = struct.Struct("<IBBHQQ")
_ALLOCATED = 2
_FUNCTION = 2


class Section(NamedTuple):
    """A section that is loaded from the file."""

    name: str
    address: int
    offset: int
    size: int


class Call(NamedTuple):
    """One record: the instruction that it leads to, and whose static call that is."""

    record: int
    address: int
    key: str
    tail: bool
    code: bytes
    section: str
    file_offset: int

    @property
    def destination(self) -> int:
        """Where the instruction leads."""
        (displacement,) = struct.unpack("<i", self.code[-4:])
        return self.address + len(self.code) + int(displacement)

    @property
    def crosses_line(self) -> bool:
        """Whether the instruction touches two cache lines."""
        return self.address % LINE + len(self.code) > LINE

    @property
    def stays(self) -> bool:
        """Whether a running kernel keeps this code; the code for its start it frees."""
        return not self.section.startswith(".init")


class Key(NamedTuple):
    """One static call: where its slot and its trampoline are, and where both lead in this file."""

    name: str
    address: int
    func: int
    trampoline: int
    trampoline_code: bytes

    @property
    def trampoline_leads_to(self) -> int:
        """Where the trampoline, a jmp, leads."""
        (displacement,) = struct.unpack_from("<i", self.trampoline_code, 1)
        return self.trampoline + 5 + int(displacement)


class Vmlinux(NamedTuple):
    """A kernel file. `functions` are name and size of what is a function, by address."""

    path: Path
    sections: tuple[Section, ...]
    symbols: dict[str, tuple[int, ...]]
    names: dict[int, tuple[str, ...]]
    sizes: dict[str, set[tuple[int, int]]]
    keys: dict[str, Key]
    calls: tuple[Call, ...]

    def address(self, name: str) -> int:
        """The address of a name that only one thing has."""
        (address,) = self.symbols[name]
        return address

    @property
    def version(self) -> str:
        """The release as the kernel itself has it in its banner: 6.12.117."""
        banner = read_at(self.path, self.sections, self.address("linux_banner"), 40)
        return banner.removeprefix(b"Linux version ").decode().split("+")[0].split("-")[0].split()[0]

    @property
    def has_return_thunk(self) -> bool:
        """Whether this kernel chooses at boot how its functions return."""
        return RETURN_THUNK in self.symbols

    def calls_of(self, key: str) -> list[Call]:
        """The sites of one static call."""
        return [call for call in self.calls if call.key == key]

    def code_for(self, call: Call, func: int) -> set[bytes]:
        """What may stand at a site when its key leads to `func`: the kernel's choice, or choices."""
        thunk = self.symbols.get(RETURN_THUNK, ())
        if not call.tail:
            if func == 0:
                return {bytes.fromhex("0f1f440000")}
            if func == self.address(RETURN0):
                return {bytes.fromhex("2e2e2e31c0")}
            return {b"\xe8" + _rel32(call, func)}
        if call.code[0] == 0x0F:
            returns = (*self.symbols.get(PLAIN_RETURN, ()), *thunk)
            return {call.code[:2] + _rel32(call, target) for target in ([func] if func else returns)}
        if func == 0:
            return {bytes.fromhex("c3cccccccc"), *(b"\xe9" + _rel32(call, target) for target in thunk)}
        return {b"\xe9" + _rel32(call, func)}


def _rel32(call: Call, target: int) -> bytes:
    return struct.pack("<i", target - call.address - len(call.code))


def read_at(path: Path, sections: tuple[Section, ...], address: int, size: int) -> bytes:
    """What the file holds for an address."""
    section = next(s for s in sections if s.address <= address < s.address + s.size)
    with path.open("rb") as file:
        file.seek(section.offset + address - section.address)
        return file.read(size)


@functools.cache
def read(path: Path) -> Vmlinux:
    """Read a kernel file; a session reads each only once."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        headers = [section for section in elf.iter_sections() if section["sh_flags"] & _ALLOCATED]
        sections = tuple(
            Section(s.name, s["sh_addr"], s["sh_offset"], s["sh_size"])
            for s in headers
            if s["sh_type"] != "SHT_NOBITS" and s["sh_addr"]
        )
        symtab = elf.get_section_by_name(".symtab")
        entries, strings = symtab.data(), elf.get_section(symtab["sh_link"]).data()
    symbols, sizes = _symbols(entries, strings)
    names: dict[int, list[str]] = defaultdict(list)
    for name, addresses in symbols.items():
        for address in addresses:
            names[address].append(name)
    keys = _keys(path, sections, symbols)
    calls = _calls(path, sections, symbols, {key.address: key.name for key in keys.values()})
    return Vmlinux(
        path,
        sections,
        {name: tuple(addresses) for name, addresses in symbols.items()},
        {address: tuple(found) for address, found in names.items()},
        sizes,
        keys,
        calls,
    )
