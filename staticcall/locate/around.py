"""The instructions around a place, for people to read."""

from __future__ import annotations

import re
from typing import Final

import capstone

from staticcall.abi import elf64, x86
from staticcall.model.explain import CodeLine
from staticcall.model.image import Image

# Without a function's symbol, decoding starts this many bytes early: x86 code falls into step soon.
_RUN_UP: Final = 256
# A damaged symbol can make a function of all the code.
_LONGEST_FUNCTION: Final = 1 << 20
_ADDRESS: Final = re.compile(r"0x[0-9a-f]+")
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


def _decoded(image: Image, begin: int, end: int) -> list[CodeLine]:
    if begin >= end:
        return []
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.syntax = capstone.CS_OPT_SYNTAX_ATT
    decoder.skipdata = True
    data = image.read_at(begin, end - begin)
    offset = image.offset_of(begin, end - begin)
    assert offset is not None, "what was read is in the file"
    own = image.in_file(offset, data)
    return [
        CodeLine(start, own[start - begin : start - begin + size], f"{mnemonic} {operands}".rstrip())
        for start, size, mnemonic, operands in decoder.disasm_lite(data, begin)
    ]


def _named(image: Image, lines: list[CodeLine]) -> list[CodeLine]:
    """The same with names for the places that they lead to."""
    places = [_place(line) for line in lines]
    names = image.names_at(place for place in places if place is not None)
    named = []
    for each, place in zip(lines, places, strict=True):
        line = each
        name = "" if place is None else names.get(place) or _inside(image, place)
        if image.placement is not None and name:
            line = line._replace(text=_spelt(line.text, name))
        named.append(line._replace(leads_to=name))
    return named


def _spelt(text: str, name: str) -> str:
    """The text of an instruction of an object, whose addresses are pretended, with a name in place of one."""
    relative = _RELATIVE.search(text)
    if relative is None:
        return f"{text.rpartition(' ')[0]} {name}"
    return f"{text[: relative.start()]}{name}(%rip){text[relative.end() :]}"


def _place(line: CodeLine) -> int | None:
    """Where an instruction leads: the target of a branch, or what it reaches relative to itself."""
    mnemonic, _, operands = line.text.rpartition(" ")
    # What is relative to a segment is a CPU's own, and has no address here.
    relative = None if "%gs:" in line.text or "%fs:" in line.text else _RELATIVE.search(line.text)
    if relative:
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
