"""Before and after: the places that a patch changed, with the bytes and instructions that were and are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from staticcall.abi import elf64, static_call, x86
from staticcall.errors import printable
from staticcall.model.change import Edit, EditKind
from staticcall.model.form import Instruction
from staticcall.model.image import Image
from staticcall.model.report import ImageReport
from staticcall.report.instructions import instruction_text

_CODE: Final = (EditKind.SITE, EditKind.TRAMPOLINE)
# More bytes than an instruction, a pointer or a relocation has are the rest of a file.
_MOST_HEX: Final = 24
_RELOCATION_TYPES: Final = {
    elf64.R_X86_64_64: "R_X86_64_64",
    elf64.R_X86_64_PC32: "R_X86_64_PC32",
    elf64.R_X86_64_PLT32: "R_X86_64_PLT32",
}


class Place(NamedTuple):
    """One edit: where, what it touches, and both states as bytes and in words."""

    where: str
    function: str
    key: str
    kind: str
    old: str
    old_text: str
    new: str
    new_text: str


class _Entry(NamedTuple):
    """An entry of an object's relocation section; `symbol` is the address where its symbol is pretended to be."""

    type: int
    symbol: int | None
    addend: int


class Edited(NamedTuple):
    """All edits of a file in its order, and how many of each kind made what of what, the most frequent first."""

    places: tuple[Place, ...]
    changes: tuple[tuple[str, str, str, int], ...]


def edited_places(report: ImageReport) -> Edited:
    """Before and after of the edits that made the image; empty where they are not known."""
    if not report.edits:
        return Edited((), ())
    image = report.image
    decoded = [(_decoded(edit, edit.old), _decoded(edit, edit.new)) for edit in report.edits]
    pointers = {_pointer(data) for edit in report.edits for data in (edit.old, edit.new) if _is_pointer(edit, data)}
    leads = {instruction.destination for pair in decoded for instruction in pair if instruction is not None}
    entries = [_entry(image, edit, data) for edit in report.edits for data in (edit.old, edit.new)]
    leads |= {entry.symbol for entry in entries if entry is not None}
    # Together, because a look-up walks the symbol table.
    names = image.names_at(pointers | {destination for destination in leads if destination is not None})
    changes: Counter[tuple[str, str, str]] = Counter()
    places = []
    for edit, (old, new) in zip(report.edits, decoded, strict=True):
        at_site = edit.address if edit.kind is EditKind.SITE else None
        function = None if at_site is None else image.symbols.function_at(at_site)
        before, after = (
            _text(edit, data, instruction, names) or _entry_text(_entry(image, edit, data), names)
            for data, instruction in ((edit.old, old), (edit.new, new))
        )
        changes[edit.kind.value, _short(old), _short(new)] += 1
        places.append(
            Place(
                where=f"file offset {edit.file_offset:#x}" if edit.address is None else f"{edit.address:#x}",
                function=printable(function or ""),
                key=printable(edit.key),
                kind=edit.kind.value,
                old=_hex(edit.old),
                old_text=printable(before),
                new=_hex(edit.new),
                new_text=printable(after),
            )
        )
    return Edited(tuple(places), tuple((*change, count) for change, count in changes.most_common()))


def _decoded(edit: Edit, code: bytes) -> Instruction | None:
    if edit.kind not in _CODE or edit.address is None or not code:
        return None
    return x86.decode(code, edit.address)


def _is_pointer(edit: Edit, data: bytes) -> bool:
    return edit.kind is EditKind.KEY and len(data) == elf64.POINTER_SIZE


def _pointer(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _text(edit: Edit, data: bytes, instruction: Instruction | None, names: Mapping[int, str]) -> str:
    """What the bytes say."""
    if instruction is not None:
        leads = instruction.destination if instruction.slot is None else instruction.slot
        name = "" if leads is None else names.get(leads) or f"{leads:#x}"
        return instruction_text(instruction, data, name if instruction.slot is None else f"*{name}")
    if _is_pointer(edit, data):
        value = _pointer(data)
        return f"leads to {names.get(value) or f'{value:#x}'}" if value else "leads to NULL"
    if edit.kind is EditKind.RECORD and edit.address is not None and len(data) == static_call.RECORD_SIZE:
        site, _ = static_call.RECORD.unpack(data)
        return f"record of {edit.address + site & x86.ADDRESS_MASK:#x}"
    return ""


def _entry(image: Image, edit: Edit, data: bytes) -> _Entry | None:
    placement = image.placement
    if edit.kind is not EditKind.RELOCATION or placement is None or len(data) != elf64.RELA.size:
        return None
    _, info, addend = elf64.RELA.unpack(data)
    number, kind = info >> 32, info & 0xFFFF_FFFF
    return _Entry(kind, placement.addresses[number] if number < len(placement.addresses) else None, addend)


def _entry_text(entry: _Entry | None, names: Mapping[int, str]) -> str:
    """An entry as `objdump -r` has it: its type, symbol and addend."""
    if entry is None:
        return ""
    if entry.type == elf64.R_X86_64_NONE:
        return "no relocation"
    kind = _RELOCATION_TYPES.get(entry.type, f"type {entry.type}")
    name = names.get(entry.symbol or 0, "(a symbol without a name)")
    return f"{kind} {name}{entry.addend:+#x}" if entry.addend else f"{kind} {name}"


def _short(instruction: Instruction | None) -> str:
    return "" if instruction is None else instruction.form.value


def _hex(data: bytes) -> str:
    return data.hex(" ") if 0 < len(data) <= _MOST_HEX else f"{len(data):,} bytes"
