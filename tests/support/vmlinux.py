"""What a kernel file says of its static calls, read without anything of staticcall's.

The oracle for reports and for the memory of running kernels. Pyelftools finds the sections, all else is done
here by the rules that include/linux/static_call.h and arch/x86/kernel/static_call.c state. For unpatched
files only: every site has to be a call or jump to its trampoline, and every trampoline a jump.
"""

from __future__ import annotations

import functools
import os
import struct
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from elftools.elf.elffile import ELFFile

KEY, TRAMPOLINE = "__SCK__", "__SCT__"
RETURN0, RETURN_THUNK, PLAIN_RETURN = "__static_call_return0", "__x86_return_thunk", "__static_call_return"
TABLE_START, TABLE_STOP = "__start_static_call_sites", "__stop_static_call_sites"
CALL, JMP, JCC = 0xE8, 0xE9, 0x0F
NOP = bytes.fromhex("0f1f440000")
XOR = bytes.fromhex("2e2e2e31c0")
RETURN = bytes.fromhex("c3cccccccc")
LINE = 64

_SYMBOL = struct.Struct("<IBBHQQ")
_FUNCTION = 2
_ALLOCATED = 2
_MASK = (1 << 64) - 1


class Section(NamedTuple):
    """A section that the file stores and the kernel has in memory."""

    name: str
    address: int
    offset: int
    size: int


class Call(NamedTuple):
    """One record of the table, the key by its name, and the instruction that it leads to."""

    record: int
    address: int
    key: str
    tail: bool
    code: bytes
    section: Section

    @property
    def file_offset(self) -> int:
        return self.section.offset + self.address - self.section.address

    @property
    def destination(self) -> int:
        return _branch(self.code, self.address)

    def crosses(self, size: int, start: int = 0) -> bool:
        """Whether the instruction, from its byte `start` on, touches two blocks of `size` bytes."""
        return (self.address + start) // size != (self.address + len(self.code) - 1) // size

    @property
    def stays(self) -> bool:
        """Whether a running kernel keeps the code; what only its start needs it frees."""
        return not self.section.name.startswith(".init")


class Key(NamedTuple):
    """One static call: its slot and its trampoline, and where these lead."""

    name: str
    address: int
    func: int
    trampoline: int
    trampoline_code: bytes

    @property
    def trampoline_destination(self) -> int:
        return _branch(self.trampoline_code[:5], self.trampoline)


class Vmlinux(NamedTuple):
    """A kernel file: its symbols, the extents of its functions, and its static calls."""

    path: Path
    release: str
    sections: tuple[Section, ...]
    symbols: Mapping[str, tuple[int, ...]]
    functions: Mapping[str, tuple[range, ...]]
    keys: Mapping[str, Key]
    calls: tuple[Call, ...]
    thunks: tuple[int, ...]
    """What a processor's return may be replaced by: __x86_return_thunk, srso_return_thunk and others."""

    def address(self, name: str) -> int:
        """The address of a name that belongs to one thing only."""
        (address,) = self.symbols[name]
        return address

    def section(self, address: int) -> Section:
        return _section(self.sections, address)

    def is_direct(self, call: Call, policy: str, line: int = LINE) -> bool:
        """Whether a site is patched directly, by the policies as their authors put them."""
        is_call = call.code[0] == CALL
        if policy == "lutomirski":
            return is_call and not call.crosses(line)
        if policy == "rel32":
            return is_call and not call.crosses(line, start=1)
        if policy == "block8":
            return is_call and not call.crosses(8, start=1)
        if policy == "torvalds":
            return False  # no kernel has a prefix at a site: it would not start
        chosen_at_boot = call.tail and self.keys[call.key].func == 0 and RETURN_THUNK in self.symbols
        return not chosen_at_boot

    def trampoline_of(self, key: Key) -> Call:
        """A trampoline as what it is: a tail jump to where the key leads."""
        return Call(-1, key.trampoline, key.name, True, key.trampoline_code[:5], self.section(key.trampoline))

    def codes_for(self, call: Call, func: int) -> set[bytes]:
        """What a running kernel has at a site whose key leads to `func`; where processors differ, each of them."""
        if call.tail:
            return self._tail_codes_for(call, func)
        if func == 0:
            return {NOP}
        return {XOR if func == self.address(RETURN0) else _retarget(call, func)}

    def _tail_codes_for(self, call: Call, func: int) -> set[bytes]:
        if func:
            return {_retarget(call, func)}
        if call.code[0] == JCC:
            return {_retarget(call, target) for target in (*self.thunks, *self.symbols.get(PLAIN_RETURN, ()))}
        return {RETURN, *(_retarget(call, target) for target in self.thunks)}


def _branch(code: bytes, address: int) -> int:
    return (address + len(code) + int.from_bytes(code[-4:], "little", signed=True)) & _MASK


def _retarget(call: Call, target: int) -> bytes:
    return call.code[:-4] + struct.pack("<i", target - call.address - len(call.code))


@functools.cache
def read(path: Path) -> Vmlinux:
    """Read a kernel file, each only once."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        sections = tuple(
            Section(section.name, section["sh_addr"], section["sh_offset"], section["sh_size"])
            for section in elf.iter_sections()
            if section["sh_flags"] & _ALLOCATED and section["sh_type"] != "SHT_NOBITS" and section["sh_addr"]
        )
        symtab = elf.get_section_by_name(".symtab")
        assert symtab is not None
        symbols, functions = _read_symbols(symtab.data(), elf.get_section(symtab["sh_link"]).data())
        memory = _Memory(file.fileno(), sections)
        keys = _read_keys(memory, symbols)
        return Vmlinux(
            path=path,
            release=memory.read(symbols["linux_banner"][0], 100).decode().split()[2],
            sections=sections,
            symbols=symbols,
            functions=functions,
            keys=keys,
            calls=tuple(_read_calls(memory, symbols, {key.address: key.name for key in keys.values()})),
            thunks=tuple(chain.from_iterable(symbols[name] for name in symbols if name.endswith("_return_thunk"))),
        )


class _Memory:
    """The file by linked addresses."""

    def __init__(self, descriptor: int, sections: tuple[Section, ...]) -> None:
        self._descriptor = descriptor
        self.sections = sections

    def read(self, address: int, size: int) -> bytes:
        section = _section(self.sections, address)
        return os.pread(self._descriptor, size, section.offset + address - section.address)


def _section(sections: tuple[Section, ...], address: int) -> Section:
    return next(section for section in sections if 0 <= address - section.address < section.size)


def _read_symbols(entries: bytes, strings: bytes) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[range, ...]]]:
    """Every defined symbol's addresses by name, and the extents of the functions among them."""
    symbols: dict[str, tuple[int, ...]] = defaultdict(tuple)
    functions: dict[str, tuple[range, ...]] = defaultdict(tuple)
    for at, info, _, section, value, size in _SYMBOL.iter_unpack(entries):
        if section and at:
            name = strings[at : strings.index(b"\0", at)].decode()
            symbols[name] += (value,)
            if info & 15 == _FUNCTION:
                functions[name] += (range(value, value + size),)
    return dict(symbols), dict(functions)


def _read_keys(memory: _Memory, symbols: Mapping[str, tuple[int, ...]]) -> dict[str, Key]:
    keys = {}
    for symbol, addresses in symbols.items():
        if symbol.startswith(KEY):
            name = symbol.removeprefix(KEY)
            (address,), (trampoline,) = addresses, symbols[TRAMPOLINE + name]
            (func,) = struct.unpack("<Q", memory.read(address, 8))
            code = memory.read(trampoline, 8)
            assert code[0] == JMP, name
            keys[name] = Key(name, address, func, trampoline, code)
    return keys


def _read_calls(memory: _Memory, symbols: Mapping[str, tuple[int, ...]], names: Mapping[int, str]) -> list[Call]:
    (start,), (stop,) = symbols[TABLE_START], symbols[TABLE_STOP]
    calls = []
    for number, (site, key) in enumerate(struct.iter_unpack("<ii", memory.read(start, stop - start))):
        place = start + 8 * number
        address, key_address = place + site, place + 4 + key
        code = memory.read(address, 6)
        if code[0] in (CALL, JMP):
            code = code[:5]
        else:
            assert code[0] == JCC, f"record {number}"
            assert code[1] & 0xF0 == 0x80, f"record {number}"
        flags = key_address & 3
        assert flags in (0, 1), f"record {number}"
        calls.append(
            Call(number, address, names[key_address - flags], bool(flags), code, _section(memory.sections, address))
        )
    return calls
