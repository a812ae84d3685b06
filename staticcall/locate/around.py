"""The instructions around a place, for people to read."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

import capstone

from staticcall.abi import elf64, x86
from staticcall.model.explain import CodeLine
from staticcall.model.image import Image, Placement

# Without a function's symbol, decoding starts this many bytes early: x86 code falls into step soon.
_RUN_UP: Final = 256
# A damaged symbol can make a function of all the code.
_LONGEST_FUNCTION: Final = 1 << 20
_ADDRESS: Final = re.compile(r"0x[0-9a-f]+")
_THROUGH_GOT: Final = (elf64.R_X86_64_GOTPCREL, elf64.R_X86_64_GOTPCRELX, elf64.R_X86_64_REX_GOTPCRELX)
_RELATIVE_TYPES: Final = (elf64.R_X86_64_PC32, elf64.R_X86_64_PLT32)
_RELATIVE: Final = re.compile(r"(-?)(0x[0-9a-f]+|[0-9]+)\(%rip\)")


def instructions_around(image: Image, address: int, before: int, after: int) -> tuple[CodeLine, ...]:
    """The instruction that begins at a linked address, and up to so many before and behind it in its section.

    Those before are decoded from the start of the function on, or from somewhere before, and then may be wrong as
    long as x86 code takes to fall into step. In an object the text has names in place of addresses.
    """
    section = image.section_at(address)
    load = image.load_at(address)
    if load is None:
        return ()
    low, high = load.address, load.address + load.file_size
    if section is not None:
        low, high = max(low, section.address), min(high, section.address + section.size)
    function = image.symbols.containing(address)
    begin = max(low, address - _RUN_UP)
    if function is not None and function.address >= low and address - function.address <= _LONGEST_FUNCTION:
        begin = function.address
    end = min(high, address + (after + 1) * x86.MAX_INSTRUCTION)
    lines = _decoded(image, begin, address)[-before:] if before else []
    return tuple(_named(image, [*lines, *_decoded(image, address, end)[: after + 1]]))


def _decoded(image: Image, begin: int, end: int) -> list[tuple[CodeLine, str]]:
    """Instructions, and their text by the file's own bytes, in which an object has no addresses yet."""
    if begin >= end:
        return []
    data = image.read_at(begin, end - begin)
    offset = image.offset_of(begin, end - begin)
    assert offset is not None, "what was read is in the file"
    own = image.in_file(offset, data)
    plain = {} if own == data else {start: text for start, _, text in _texts(own, begin)}
    return [
        (CodeLine(start, own[start - begin : start - begin + size], text), plain.get(start, text))
        for start, size, text in _texts(data, begin)
    ]


def _texts(data: bytes, begin: int) -> Iterator[tuple[int, int, str]]:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.syntax = capstone.CS_OPT_SYNTAX_ATT
    decoder.skipdata = True
    for start, size, mnemonic, operands in decoder.disasm_lite(data, begin):
        yield start, size, f"{mnemonic} {operands}".rstrip()


def _named(image: Image, lines: list[tuple[CodeLine, str]]) -> list[CodeLine]:
    """The same with names for the places that they lead to."""
    placed = image.placement
    # Of an object each variable has a pretended address, those of a CPU's own as well.
    places = [_place(line, everywhere=placed is not None) for line, _ in lines]
    names = image.names_at(place for place in places if place is not None)
    outside = _outside(image, placed, [line for line, _ in lines]) if placed and lines else {}
    named = []
    for (line, plain), place in zip(lines, places, strict=True):
        inside = "" if place is None else names.get(place) or _inside(image, place)
        name = outside.get(line.address, inside)
        text = line.text if placed is None else plain if place is None else _spelt(line.text, name)
        named.append(line._replace(text=text, leads_to=name))
    return named


def _outside(image: Image, placed: Placement, lines: list[CodeLine]) -> dict[int, str]:
    """What instructions of an object reach in other files, as their relocations say, by the instructions' addresses."""
    section = image.section_at(lines[0].address)
    if section is None:
        return {}
    starts = [line.address - section.address for line in lines]
    found: dict[int, str] = {}
    for own in placed.file.relocations_by_target().get(section.number, ()):
        table = placed.file.relocations(own)
        entries = zip(table.places(), table.types(), table.symbols(), table.addends(), strict=True)
        for place, kind, number, addend in entries:
            line = lines[bisect_right(starts, place) - 1]
            behind = line.address + len(line.code) - section.address - place
            if place < starts[0] or behind <= 0 or number >= len(placed.file.symbols):
                continue
            if kind in _THROUGH_GOT:
                found[line.address] = f"{placed.file.symbols.symbol(number).name}@GOTPCREL"
            elif number in placed.undefined:
                offset = addend + (behind if kind in _RELATIVE_TYPES else 0)
                found[line.address] = placed.file.symbols.symbol(number).name + (f"{offset:+#x}" if offset else "")
    return found


def _spelt(text: str, name: str) -> str:
    """The text of an instruction of an object, whose addresses are pretended, with a name in place of one."""
    relative = _RELATIVE.search(text)
    if not name:
        return text
    if relative is None:
        return f"{text.rpartition(' ')[0]} {name}"
    return f"{text[: relative.start()]}{name}(%rip){text[relative.end() :]}"


def _place(line: CodeLine, *, everywhere: bool) -> int | None:
    """Where an instruction leads: the target of a branch, or what it reaches relative to itself."""
    mnemonic, _, operands = line.text.rpartition(" ")
    relative = _RELATIVE.search(line.text)
    # What is relative to a segment is a CPU's own, and has no address where the file is linked.
    if relative and (everywhere or not ("%gs:" in line.text or "%fs:" in line.text)):
        distance = int(relative[2], 0)
        return line.address + len(line.code) + (-distance if relative[1] else distance)
    if mnemonic.rpartition(" ")[2].startswith(("call", "j")) and _ADDRESS.fullmatch(operands):
        return int(operands, 16)
    return None


def _inside(image: Image, place: int) -> str:
    """A place in a function or variable, by name and offset; its address where nothing has it."""
    for type_ in (elf64.STT_FUNC, elf64.STT_OBJECT):
        symbol = image.symbols.containing(place, type_)
        if symbol is not None:
            return f"{symbol.name}+{place - symbol.address:#x}"
    return image.where(place) if image.in_memory(place) else ""
