"""What stands at a site, in a trampoline and in a key's slot of an object: bytes and relocation, read together.

Sources: Intel SDM volume 2; arch/x86/kernel/static_call.c, Linux 5.10 to 6.12, for what stands there when the
target is NULL or __static_call_return0.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from staticcall.abi.static_call import (
    NOP5,
    PLAIN_RETURN,
    RET0_FORMS,
    RET_SITE,
    RET_TRAMPOLINE,
    RET_TRAMPOLINE_NOPS,
    RETURN0,
    RETURN_THUNK,
    TRAMPOLINE_SIZE,
    is_live_trampoline,
)
from staticcall.model.form import Form
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.entries import Entry
from staticcall.verify.objects.places import Place

_PREFIXES = rb"([\x26\x2e\x36\x3e\x64\x65\x67\x40-\x4f]{0,10}?)"
# By the name of the group: what the opcode with its prefixes is, and whether nothing comes back.
_SITE = re.compile(
    _PREFIXES
    + rb"(?:(?P<NOP>"
    + re.escape(NOP5)
    + rb")|(?P<RET0>"
    + b"|".join(map(re.escape, RET0_FORMS))
    + rb")|(?P<RET>"
    + re.escape(RET_SITE)
    + rb")|(?P<CALL>\xe8)|(?P<TAIL_JMP>\xe9)|(?P<JCC>\x0f[\x80-\x8f])|(?P<SHORT_JMP>[\xeb\x70-\x7f])"
    rb"|(?P<INDIRECT_CALL>\xff\x15)|(?P<INDIRECT_JMP>\xff\x25))",
    re.DOTALL,
)
_FIXED = {Form.NOP, Form.RET0, Form.RET}
_INDIRECT = {Form.INDIRECT_CALL, Form.INDIRECT_JMP}
TAILS = frozenset({Form.TAIL_JMP, Form.JCC, Form.RET, Form.INDIRECT_JMP, Form.SHORT_JMP})
MOST_BYTES = 16

_BRANCH_TYPES = frozenset({elf.R_X86_64_PC32, elf.R_X86_64_PLT32})
_GOT_TYPES = frozenset({elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX})
_TYPES = {
    Form.INDIRECT_CALL: _GOT_TYPES,
    Form.INDIRECT_JMP: _GOT_TYPES,
    Form.SHORT_JMP: frozenset({elf.R_X86_64_PC8}),
}
_FIELD_SIZE = 4
_WIDTHS = {Form.SHORT_JMP: 1}
SLOT_SIZE = 8
TRAMPOLINE_CODE = 5

# What a static call leads to: NULL, RET0, a place in this file, what a slot at a place holds, or a symbol of another
# file.
Target = tuple[str, bytes, int, int]
NULL: Target = ("NULL", b"", 0, 0)
RET0: Target = ("RET0", b"", 0, 0)
UNKNOWN: Target = ("unknown", b"", 0, 0)
_RETURNS = {RETURN_THUNK.encode(), PLAIN_RETURN.encode()}


class State(NamedTuple):
    """What stands at one place.

    `code` are its bytes and `entries` the relocations in it. `opcode` are the bytes that must stay with the site:
    prefixes, and the condition of a jcc. `clean` tells that there is the one relocation that the form needs, if any,
    and zeros below it.
    """

    form: Form
    code: bytes
    entries: tuple[Entry, ...]
    opcode: bytes
    target: Target
    clean: bool


Entries = Mapping[tuple[int, int], Entry]


def site_state(file: Elf, place: Place, entries: Entries) -> State:
    """Read a site; `Form.UNKNOWN` and `UNKNOWN` where it is none of what the kernel or a compiler writes."""
    section, at = place
    content = _code(file, place, MOST_BYTES)
    found = _SITE.match(content)
    if found is None or found.lastgroup is None:
        return State(Form.UNKNOWN, content[:1], _inside(entries, place, 1), b"", UNKNOWN, clean=False)
    form, prefix = Form[found.lastgroup], found[1]
    if form in _FIXED:
        inside = _inside(entries, place, found.end())
        return State(form, found[0], inside, prefix, RET0 if form is Form.RET0 else NULL, clean=not inside)
    width = _WIDTHS.get(form, _FIELD_SIZE)
    code, inside = content[: found.end() + width], _inside(entries, place, found.end() + width)
    field, below = at + found.end(), code[found.end() :]
    target = UNKNOWN
    relocation = entries.get((section, field))
    if relocation is not None:
        if relocation[1] in _TYPES.get(form, _BRANCH_TYPES):
            target = _branch_target(file, relocation, width)
        elif form in _INDIRECT and relocation[1] in _BRANCH_TYPES:
            kind, name, home, offset = target_of(file, relocation[2], relocation[3] + width)
            target = ("slot", name, home, offset) if kind == "place" else UNKNOWN
    elif form not in _INDIRECT:
        target = ("place", b"", section, field + width + int.from_bytes(below, "little", signed=True))
    if target == NULL and form not in TAILS:
        target = UNKNOWN  # a call of a bare return comes back, but is not what the kernel writes
    opcode = prefix + (found[found.lastgroup] if form is Form.JCC else b"")
    if form is Form.CALL and prefix:
        form = Form.PREFIXED_CALL
    clean = relocation is not None and len(inside) == 1 and below == bytes(width)
    return State(form, code, inside, opcode, target, clean)


def trampoline_state(file: Elf, place: Place, entries: Entries) -> State:
    """Read the code of a trampoline, so its first five bytes; those of user programs have six, which never change."""
    section, at = place
    whole = _code(file, place, TRAMPOLINE_SIZE)
    if is_live_trampoline(whole):
        return _indirect_state(file, place, whole, entries)
    code, inside = _code(file, place, TRAMPOLINE_CODE), _inside(entries, place, TRAMPOLINE_CODE)
    if code in (RET_TRAMPOLINE, RET_TRAMPOLINE_NOPS):
        return State(Form.RET, code, inside, b"", NULL, clean=not inside)
    relocation = entries.get((section, at + 1))
    if code[:1] != b"\xe9" or relocation is None or relocation[1] not in _BRANCH_TYPES:
        return State(Form.UNKNOWN, code, inside, b"", UNKNOWN, clean=False)
    clean = code[1:] == bytes(_FIELD_SIZE) and len(inside) == 1
    return State(Form.TAIL_JMP, code, inside, b"", _branch_target(file, relocation, _FIELD_SIZE), clean)


def _indirect_state(file: Elf, place: Place, whole: bytes, entries: Entries) -> State:
    """Read the trampoline of a user program: jmp *slot and the start of a ud1."""
    section, at = place
    inside, relocation = _inside(entries, place, len(whole)), entries.get((section, at + 2))
    target = UNKNOWN
    if relocation is not None and relocation[1] in _BRANCH_TYPES:
        kind, name, home, offset = target_of(file, relocation[2], relocation[3] + _FIELD_SIZE)
        target = ("slot", name, home, offset) if kind == "place" else UNKNOWN
    clean = whole[2:6] == bytes(_FIELD_SIZE) and len(inside) == 1
    return State(Form.INDIRECT_JMP, whole, inside, b"\xff\x25", target, clean)


def slot_state(file: Elf, place: Place, entries: Entries) -> State:
    """Read the pointer of a key; its form means nothing."""
    section, at = place
    inside = _inside(entries, place, SLOT_SIZE)
    # Memory without bytes in the file is zero, and takes no relocation.
    stored = file.types[section] != elf.SHT_NOBITS
    code = _code(file, place, SLOT_SIZE) if stored else bytes(SLOT_SIZE)
    clean = code == bytes(SLOT_SIZE) and len(inside) <= stored
    relocation = entries.get((section, at))
    target = UNKNOWN
    if relocation is not None and relocation[1] == elf.R_X86_64_64:
        target = target_of(file, relocation[2], relocation[3])
    elif not inside and clean:
        target = NULL
    return State(Form.UNKNOWN, code, inside, b"", target, clean)


def _code(file: Elf, place: Place, size: int) -> bytes:
    """At most `size` bytes at a place, which is not left."""
    section, at = place
    start = file.offsets[section]
    return bytes(file.view[start + at : min(start + at + size, start + file.sizes[section])])


def _inside(entries: Entries, place: Place, length: int) -> tuple[Entry, ...]:
    """The relocations within a place."""
    section, at = place
    return tuple(entries[section, offset] for offset in range(at, at + length) if (section, offset) in entries)


def _branch_target(file: Elf, relocation: Entry, width: int) -> Target:
    """Where a jump leads; to a bare return is what the kernel writes for NULL."""
    target = target_of(file, relocation[2], relocation[3] + width)
    return NULL if target[1] in _RETURNS and not target[3] else target


def target_of(file: Elf, number: int, offset: int) -> Target:
    """What a symbol and an offset stand for: by place if the file defines it and no other can, else by name.

    Raises `MalformedError` where there is no such symbol.
    """
    symbol = file.symbol(number)
    name = symbol.name
    if name == RETURN0.encode() and not offset:
        return RET0
    if name in _RETURNS:
        return ("symbol", name, 0, offset)
    if symbol.section == elf.SHN_UNDEF or symbol.binding not in (elf.STB_LOCAL, elf.STB_GLOBAL):
        return ("symbol", name, symbol.section, offset)
    return ("place", b"", symbol.section, symbol.value + offset)
