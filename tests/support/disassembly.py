"""Static-call sites of an object as objdump shows them, and what each policy says to one, worked out again.

    for site in sites(path):
        answers(site, "lutomirski", alignment=16)

Nothing here is the tool's. A site is a line of `objdump -dr` with a relocation against a trampoline.
"""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.support import elf_object
from tests.support.elf_object import Object

_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67, *range(0x40, 0x50)})  # those that do nothing
_LINE = re.compile(
    r"^ *(?P<offset>[0-9a-f]+):\t(?P<code>(?:[0-9a-f]{2} )+) *\t(?P<text>.*?)\s*"
    r"\t[0-9a-f]+: R_X86_64_(?P<type>\w+)\t__SCT__(?P<key>\w+)-0x4$"
)
_SECTION = "Disassembly of section "
_DIRECT, _INDIRECT = ("PC32", "PLT32"), ("GOTPCREL", "GOTPCRELX", "REX_GOTPCRELX")
_NOT_RUN_IN_PLACE = ".altinstr_replacement"
_BLOCK = 8


class Site(NamedTuple):
    """A call or jump: where it is, its bytes as they are in the file, and the static call's name."""

    section: int
    offset: int
    form: str
    code: bytes
    key: str
    relocation: str

    @property
    def tail(self) -> bool:
        """Whether nothing comes back."""
        return self.form in ("tail_jmp", "jcc", "indirect_jmp")

    @property
    def prefixes(self) -> int:
        """How many bytes stand before the opcode."""
        return _opcode(self.code)


def _opcode(code: bytes) -> int:
    return next(at for at, byte in enumerate(code) if byte in (0xE8, 0xE9, 0x0F, 0xFF))


def sites(path: Path) -> list[Site]:
    """Every site, by section and offset."""
    command = ["objdump", "-drwz", "--insn-width=15", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sorted(_sites(elf_object.read(path), listing))


def _sites(elf: Object, listing: str) -> Iterator[Site]:
    globals_ = {symbol.name for symbol in elf.symbols if symbol.binding == elf_object.STB_GLOBAL}
    section = elf.sections[0]
    for text in listing.splitlines():
        if text.startswith(_SECTION):
            # Names may be the same; the sections with code come in their order.
            name = text.removeprefix(_SECTION).rstrip(":")
            section = next(own for own in elf.sections[section.number + 1 :] if own.name == name and own.size)
        found = _LINE.match(text) if "__SCT__" in text else None
        if found is None or section.name == _NOT_RUN_IN_PLACE or f"__SCT__{found['key']}" not in globals_:
            continue
        offset, code = int(found["offset"], 16), bytes.fromhex(found["code"])
        form = _form(found["text"], found["type"], code)
        site = Site(section.number, offset, form, code, found["key"], found["type"])
        if form and not (_leaves(found["text"]) and function_at(elf, section.number, offset) is None):
            yield site


def _leaves(text: str) -> bool:
    return any(word.startswith("j") for word in text.split())


def _form(text: str, kind: str, code: bytes) -> str:
    """The form of an instruction that leads to a trampoline; empty for what does not."""
    branch = next((word for word in text.split() if word.startswith(("call", "j"))), "")
    indirect = "*" in text
    if not branch or kind not in (_INDIRECT if indirect else _DIRECT):
        return ""
    prefixes = code[: _opcode(code)]
    if set(prefixes) - _PREFIXES:
        return "unknown"
    if indirect:
        return {"call": "indirect_call", "jmp": "indirect_jmp"}[branch]
    return {"call": "prefixed_call" if prefixes else "call", "jmp": "tail_jmp"}.get(branch, "jcc")


def function_at(elf: Object, section: int, offset: int) -> str | None:
    """The function with a size around an offset, as name+0x12; the one that starts last where they overlap."""
    around = [
        symbol
        for symbol in elf.symbols
        if symbol.type == elf_object.STT_FUNC
        and symbol.section == section
        and symbol.value <= offset < symbol.value + symbol.size
    ]
    if not around:
        return None
    symbol = max(around, key=lambda symbol: symbol.value)
    return f"{symbol.name}+{offset - symbol.value:#x}"


# ---- what is known of cache lines ----


@cache
def crossings(offset: int, size: int, alignment: int, line: int) -> frozenset[bool]:
    """Whether so many bytes touch two lines, for every place that a section with this alignment may be put."""
    return frozenset(
        (base + offset) // line != (base + offset + size - 1) // line
        for base in range(0, alignment * line, max(alignment, 1))
    )


def answers(site: Site, policy: str, alignment: int, line: int = 64) -> set[bool]:
    """Whether a policy patches a site, for every place that it may come to."""
    call, length = site.form in ("call", "prefixed_call"), len(site.code)
    displacement = site.offset + length - 4
    fixed = {
        "torvalds": site.form == "prefixed_call",
        "kernel": site.form in ("call", "tail_jmp", "jcc") and not site.prefixes,
    }
    if policy in fixed:
        return {fixed[policy]}
    if not call:
        return {False}
    crossing = {
        "lutomirski": crossings(site.offset, length, alignment, line),
        "rel32": crossings(displacement, 4, alignment, line),
        "block8": crossings(displacement, 4, alignment, _BLOCK),
    }[policy]
    return {not one for one in crossing}


def verdict(site: Site, policy: str, alignment: int, line: int = 64) -> str:
    """The three answers in words."""
    found = answers(site, policy, alignment, line)
    return "undecided" if len(found) > 1 else "direct" if True in found else "trampoline"
