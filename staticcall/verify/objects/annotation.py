"""The proof of an annotated object: its original plus a right table, and nothing else."""

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.objects import elf
from staticcall.verify.objects.calls import Calls
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.renumbered import Renumbering
from staticcall.verify.objects.structure import check_structure
from staticcall.verify.objects.table import check_records, find_tables

_RELA = b".rela"


def prove_annotation(
    original: bytes, annotated: bytes, *, section: str = ".static_call_sites", module: bool = False
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
            check_records(Calls(before), [], module=module)
        return 0
    try:
        return _prove(before, elf.read(annotated), name, module=module)
    except MalformedError as error:
        raise VerificationError(error.what, offset=error.offset) from error


def _prove(before: Elf, after: Elf, name: bytes, *, module: bool) -> int:
    renumbering = check_structure(before, after)
    tables = find_tables(after, before.section_count, name)
    if not tables or _has_table(before, name):
        raise VerificationError("the file changed, and not by a table that it did not have")
    _check_names(before, after, name)
    through = check_records(Calls(after), tables, module=module)
    _check_added(before, after, renumbering, through)
    return sum(after.sizes[table.section] for table in tables) // 8


def _has_table(file: Elf, name: bytes) -> bool:
    """Whether an object has a table already."""
    return any(
        kind == elf.SHT_PROGBITS and flags & elf.SHF_WRITE and file.name(i) == name
        for i, (kind, flags) in enumerate(zip(file.types, file.flags, strict=True))
    )


def _check_names(before: Elf, after: Elf, name: bytes) -> None:
    """The names of sections grew by those of the new ones."""
    index = before.names_index
    grown = bytes(after.content(index)[before.sizes[index] :])
    if not set(grown.split(b"\0")) <= {b"", name, _RELA + name}:
        raise VerificationError("the section names grew by others than the table's", offset=after.offsets[index])


def _check_added(before: Elf, after: Elf, renumbering: Renumbering, through: set[int]) -> None:
    """Every new symbol is a section symbol that records go through, of a section that had none."""
    if not renumbering.added:
        return
    had = _sections_with_symbols(before)
    for number in renumbering.added:
        symbol = after.symbol(number)
        wanted = (b"", elf.STT_SECTION, 0, 0, 0)
        found = (symbol.name, symbol.info, symbol.other, symbol.value, symbol.size)
        if found != wanted or symbol.section in had or number not in through:
            raise VerificationError(f"symbol {number} is new, and none that a record needs")
        had.add(symbol.section)


def _sections_with_symbols(file: Elf) -> set[int]:
    """The sections that have a section symbol."""
    table = file.symbols
    assert table is not None  # there are symbols to look for
    infos = bytes(file.view[table.start + 4 : table.start + table.locals_ * elf.SYMBOL.size : elf.SYMBOL.size])
    found, at = set(), infos.find(elf.STT_SECTION)
    while at >= 0:
        found.add(file.symbol(at).section)
        at = infos.find(elf.STT_SECTION, at + 1)
    return found
