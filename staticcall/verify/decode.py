"""The instructions at sites and in trampolines, as capstone sees them.

Capstone says what an instruction is, how long it is and where it leads. It does not say where its prefixes
end, nor that a prefix truncates the target (66), so the opcode is looked for where capstone's length puts it,
and what stands before it must be prefixes that do nothing.

Source: Intel SDM volume 2, CALL, JMP, Jcc, RET, and section 2.1.1 on prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import capstone

from staticcall.abi.static_call import NOP5, RET0_FORMS, RET_SITE
from staticcall.model.form import Form

MOST_BYTES = 15
# The size of most sites and of all trampolines' code.
_CELL = 5

# Segment overrides, address size, REX.
_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67, *range(0x40, 0x50)})
_MASK = (1 << 64) - 1
# Segments other than fs and gs are ignored in 64-bit mode.
_POINTER = re.compile(r"qword ptr (?:[cdes]s:)?\[rip(?: ([+-]) (0x[0-9a-f]+|\d+))?\]")
_PLAIN = {(0xE8, "call"): Form.CALL, (0xE9, "jmp"): Form.TAIL_JMP}
_PADDED = {"nop": (NOP5,), "xor": RET0_FORMS, "ret": (RET_SITE,)}
_PADDED_FORMS = {"nop": Form.NOP, "xor": Form.RET0, "ret": Form.RET}


class Decoded(NamedTuple):
    """What stands at a place.

    `length` is the place's length in bytes, so with the padding of a padded `ret`. `prefix` are the bytes
    before the opcode, `mnemonic` is capstone's. `destination` is where a direct branch leads, `pointer` the
    address that an indirect one reads its destination from.
    """

    form: Form
    length: int
    prefix: bytes = b""
    mnemonic: str = ""
    destination: int | None = None
    pointer: int | None = None


class Code(NamedTuple):
    """Bytes that start with an instruction, and the linked address they stand at."""

    address: int
    code: bytes


Decoder = Callable[[Sequence[Code]], list[Decoded]]


def make_decoder() -> Decoder:
    """Return `decode(codes)`, which decodes the one instruction at the start of each code.

    Whatever a static call is not made of comes back as `Form.UNKNOWN`.
    """
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def decode(codes: Sequence[Code]) -> list[Decoded]:
        swept = _sweep(engine, codes)
        return [swept.get(i * _CELL) or _single(engine, address, code) for i, (address, code) in enumerate(codes)]

    return decode


def _sweep(engine: Any, codes: Sequence[Code]) -> dict[int, Decoded]:
    """Decode the first five bytes of every code in one call, which is several times as fast as one by one.

    An instruction that starts and ends with its cell is the same one that stands at its own address, only its
    destination has moved along. All others are left out: they are longer or shorter, or follow one that is.
    """
    cells = b"".join(code[:_CELL] for _, code in codes)
    if len(cells) != len(codes) * _CELL:
        return {}
    found = {}
    for at, size, mnemonic, operands in engine.disasm_lite(cells, 0):
        if size == _CELL and at % _CELL == 0:
            moved = codes[at // _CELL].address - at
            form = _PLAIN.get((cells[at], mnemonic))
            if form:  # nearly all there are, so without further ado
                found[at] = Decoded(form, size, b"", mnemonic, (int(operands, 0) + moved) & _MASK)
            else:
                found[at] = _decoded(cells[at : at + _CELL], size, mnemonic, operands, moved)
    return found


def _single(engine: Any, address: int, code: bytes) -> Decoded:
    for _, size, mnemonic, operands in engine.disasm_lite(code, 0, 1):
        return _decoded(code, size, mnemonic, operands, address)
    return Decoded(Form.UNKNOWN, min(1, len(code)))


def _decoded(code: bytes, size: int, mnemonic: str, operands: str, moved: int) -> Decoded:
    """Make sense of what capstone says; `moved` is to be added to every address in it."""
    if operands[:1].isdigit() and operands.isalnum():  # numbers below ten are shown in decimal
        return _direct(code, size, mnemonic, (int(operands, 0) + moved) & _MASK)
    if mnemonic in _PADDED:
        return _padded(code, size, mnemonic, operands)
    pointer = _POINTER.fullmatch(operands)
    if pointer and mnemonic in ("call", "jmp"):
        return _indirect(size, mnemonic, moved + size, pointer)
    return Decoded(Form.UNKNOWN, size, mnemonic=mnemonic)


def _direct(code: bytes, size: int, mnemonic: str, destination: int) -> Decoded:
    name = mnemonic.removeprefix("notrack ")  # how capstone shows 3e, which on a direct branch does nothing
    found = _opcode(code, size, name)
    if found is None:
        return Decoded(Form.UNKNOWN, size, mnemonic=mnemonic)
    form, opcode = found
    prefix = code[:opcode]
    if not _PREFIXES.issuperset(prefix):
        return Decoded(Form.UNKNOWN, size, mnemonic=mnemonic)
    if form is Form.CALL and prefix:
        form = Form.PREFIXED_CALL
    return Decoded(form, size, prefix, name, destination)


def _opcode(code: bytes, size: int, mnemonic: str) -> tuple[Form, int] | None:
    """Find the form of a direct branch of `size` bytes and the offset of its opcode."""
    far = code[size - 5] if size >= 5 else -1
    if mnemonic == "call":
        return (Form.CALL, size - 5) if far == 0xE8 else None
    if mnemonic == "jmp":
        if far == 0xE9:
            return Form.TAIL_JMP, size - 5
        return (Form.SHORT_JMP, size - 2) if code[size - 2] == 0xEB else None
    if not mnemonic.startswith("j"):
        return None
    if size >= 6 and code[size - 6] == 0x0F and far & 0xF0 == 0x80:
        return Form.JCC, size - 6
    return (Form.JCC, size - 2) if code[size - 2] & 0xF0 == 0x70 else None


def _padded(code: bytes, size: int, mnemonic: str, operands: str) -> Decoded:
    """Those of the kernel's five-byte forms that are no branches, and the plain one-byte ret."""
    opcode = 0
    while opcode < size:
        for body in _PADDED[mnemonic]:
            whole = 1 if mnemonic == "ret" else len(body)
            if code.startswith(body, opcode) and size == opcode + whole:
                return Decoded(_PADDED_FORMS[mnemonic], opcode + len(body), code[:opcode], mnemonic)
        if code[opcode] not in _PREFIXES:
            break
        opcode += 1
    if mnemonic == "ret" and not operands and size == opcode + 1:
        return Decoded(Form.RET, size, code[:opcode], mnemonic)
    return Decoded(Form.UNKNOWN, size, mnemonic=mnemonic)


def _indirect(size: int, mnemonic: str, end: int, pointer: re.Match[str]) -> Decoded:
    sign, digits = pointer.groups()
    displacement = int(digits, 0) if digits else 0
    address = (end - displacement if sign == "-" else end + displacement) & _MASK
    form = Form.INDIRECT_CALL if mnemonic == "call" else Form.INDIRECT_JMP
    return Decoded(form, size, mnemonic=mnemonic, pointer=address)
