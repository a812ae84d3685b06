"""The proof of an annotated object: its original plus a right table, and nothing else."""

from staticcall.abi.static_call import RECORD_SIZE, TABLE_SECTIONS
from staticcall.errors import InputError, VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.calls import Calls
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.renumbered import Renumbering
from staticcall.verify.objects.structure import check_structure
from staticcall.verify.objects.table import check_records, find_tables

Data = bytes | bytearray
_RELA = b".rela"


def prove_annotation(
    original: Data, annotated: Data, *, section: str = ".static_call_sites", module: bool = False
) -> int:
    """Prove that an annotated object is its original plus a right table of static calls, and nothing else.

    Both are whole files, and may be the same where there is nothing to record. `section` is the table's name.
    With `module` a record may name the trampoline of a call whose key the object does not have. Returns the
    number of records added. Raises `VerificationError` with the offset in `annotated`, `MalformedError` or
    `UnsupportedError` where the original is broken or is no relocatable object of x86-64.
    """
    before = elf.read(original)
    name = section.encode()
    if original == annotated:
        if not _has_table(before, name):
            check_records(_calls(before, section), [], module=module)
        return 0
    try:
        return _prove(before, elf.read(annotated), name, module=module)
    except InputError as error:
        raise VerificationError(error.what, offset=error.offset) from error


def _calls(file: Elf, section: str) -> Calls:
    """What there is to record: no kernel accepts a call through the GOT in its own table."""
    return Calls(file, got=section != TABLE_SECTIONS[0])


def _prove(before: Elf, after: Elf, name: bytes, *, module: bool) -> int:
    renumbering = check_structure(before, after)
    extended = _new_extended(before, after)
    tables = find_tables(after, before.section_count, name, extended)
    if not tables or _has_table(before, name):
        raise VerificationError("the file changed, and not by a table that it did not have")
    names = {b"", name, _RELA + name, *(map(after.name, extended))}
    _check_names(before, after, names)
    through = check_records(_calls(after, name.decode()), tables, module=module)
    _check_added(before, after, renumbering, through)
    return sum(after.sizes[table.section] for table in tables) // RECORD_SIZE


def _has_table(file: Elf, name: bytes) -> bool:
    """Whether an object has a table already."""
    names = file.offsets[file.names_index]
    if file.data.find(name, names, names + file.sizes[file.names_index]) < 0:
        return False
    return any(
        kind == elf.SHT_PROGBITS and flags & elf.SHF_WRITE and file.name(i) == name
        for i, (kind, flags) in enumerate(zip(file.types, file.flags, strict=True))
    )


def _new_extended(before: Elf, after: Elf) -> tuple[int, ...]:
    """The section of the symbols' section numbers, where the object needs it now and had none.

    Old symbols have nothing there. The new ones are judged by what they resolve to.
    """
    old, new = before.symbols, after.symbols
    if old is None or new is None or old.extended_section or not new.extended_section:
        return ()
    section = new.extended_section
    header = (after.flags[section], after.addresses[section], after.infos[section], after.entry_sizes[section])
    numbers = elf.cells("I", after.content(section))
    added = slice(old.locals_, new.locals_)
    needed = [number >= elf.SHN_LORESERVE for number in numbers[added]]
    del numbers[added]
    if section < before.section_count or header != (0, 0, 0, elf.WORD.size) or any(numbers) or not any(needed):
        raise VerificationError("section numbers of symbols that need none", offset=new.extended)
    return (section,)


def _check_names(before: Elf, after: Elf, names: set[bytes]) -> None:
    """The names of sections grew by those of the new ones."""
    index = before.names_index
    grown = bytes(after.content(index)[before.sizes[index] :])
    if not set(grown.split(b"\0")) <= names:
        raise VerificationError("the section names grew by others than the table's", offset=after.offsets[index])


def _check_added(before: Elf, after: Elf, renumbering: Renumbering, through: set[int]) -> None:
    """Every new symbol is a section symbol that records go through, of a section that had none."""
    if not renumbering.added:
        return
    had = _sections_with_symbols(before)
    for number in renumbering.added:
        symbol = after.symbol(number)
        wanted = (b"", elf.STT_SECTION, 0, 0, 0, symbol.section if symbol.section >= elf.SHN_LORESERVE else 0)
        found = (symbol.name, symbol.info, symbol.other, symbol.value, symbol.size, after.extended(number))
        if found != wanted or symbol.section in had or number not in through:
            raise VerificationError(f"symbol {number} is new, and none that a record needs")
        had.add(symbol.section)


def _sections_with_symbols(file: Elf) -> set[int]:
    """The sections that have a section symbol."""
    table = file.symbols
    assert table is not None  # there are symbols to look for
    infos = bytes(
        file.view[table.start + elf.INFO_FIELD : table.start + table.locals_ * elf.SYMBOL.size : elf.SYMBOL.size]
    )
    found, at = set(), infos.find(elf.STT_SECTION)
    while at >= 0:
        found.add(file.symbol(at).section)
        at = infos.find(elf.STT_SECTION, at + 1)
    return found
