"""Sites of a relocatable object: the instructions whose relocation leads to a trampoline.

In an object the displacement of a call is zero and its relocation names the trampoline. Which relocations are
sites follows the kernel's own build tool (tools/objtool/check.c, Linux 6.12), measured on its output:

- the section is executable, and none of `.altinstr_replacement`;
- the instruction is a call, jmp or jcc with a displacement, whatever its prefixes; a jmp or jcc only inside of a
  function with a size, or of a symbol with a size and no type if the trampoline is a function of the same object;
- the trampoline is a global symbol `__SCT__...`, defined or not. A relocation against its section, or an
  instruction of the same section that needs no relocation, counts if it leads exactly to its start.

Loads of a trampoline's address (lea, mov, push) are no sites. Calls and jumps through a GOT entry are found too,
which objtool does not know: a linker that finds the trampoline turns them into direct ones.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from itertools import chain, compress
from operator import attrgetter

from staticcall.abi import elf64, static_call, x86
from staticcall.abi.lengths import instruction_length
from staticcall.errors import MalformedError
from staticcall.model.form import Form
from staticcall.model.image import Section
from staticcall.model.object import Extents, ObjectFile, RelocatedSite, Relocations

# Code that the kernel copies elsewhere before it runs.
_NOT_RUN_IN_PLACE = ".altinstr_replacement"
_PREFIX = static_call.TRAMPOLINE_PREFIX.encode()
_GOT_TYPES = frozenset({elf64.R_X86_64_GOTPCREL, elf64.R_X86_64_GOTPCRELX, elf64.R_X86_64_REX_GOTPCRELX})
_BRANCH_TYPES = frozenset({elf64.R_X86_64_PC32, elf64.R_X86_64_PLT32})
_REL32_ADDEND = -x86.REL32_SIZE
_LONG = {x86.CALL_REL32: Form.CALL, x86.JMP_REL32: Form.TAIL_JMP}
_INDIRECT = {x86.GROUP5_CALL_RIP: Form.INDIRECT_CALL, x86.GROUP5_JMP_RIP: Form.INDIRECT_JMP}
_OPCODES = bytes(
    byte in (x86.CALL_REL32, x86.JMP_REL32, x86.JMP_REL8, x86.TWO_BYTE) or byte in x86.JCC_REL8 for byte in range(256)
)

_LONG_CONDITIONS = frozenset(bytes([byte]) for byte in x86.JCC_REL32)

Opcode = tuple[int, Form]
# From so many bytes before, decoding forward is quicker than looking for the function.
_NEAR = 256
_DAMAGED = "the object is damaged"
_OFFSET = attrgetter("offset")
_NO_FUNCTIONS: Extents = ([], [])


def relocated_sites(file: ObjectFile) -> list[RelocatedSite]:
    """Every site of an object, in order of sections and of offsets in them.

    Raises `MalformedError` for relocations and symbols that lead out of their tables.
    """
    symbols = file.symbols
    trampolines = frozenset(
        number
        for number, name in symbols.endings(_PREFIX).items()
        if name and symbols.binding(number) == elf64.STB_GLOBAL
    )
    if not trampolines:
        return []
    search = _Search(file, trampolines)
    entries = file.relocations_by_target()
    found: list[RelocatedSite] = []
    for section in file.sections:
        if _runs_in_place(section):
            found += search.sites_in(section, [file.relocations(own) for own in entries.get(section.number, ())])
    return found


def _runs_in_place(section: Section) -> bool:
    code = section.flags & elf64.SHF_EXECINSTR and section.type != elf64.SHT_NOBITS
    return bool(code) and section.name != _NOT_RUN_IN_PLACE


class _Search:
    """What the search of every section shares: the trampolines, by symbol and by place, and the functions."""

    def __init__(self, file: ObjectFile, trampolines: frozenset[int]) -> None:
        self._file = file
        self._trampolines = trampolines
        self._places = file.symbols.places_of(trampolines)
        self._homes = {section for section, _ in self._places}
        self._section_symbols: dict[int, int] = {}
        if self._homes:
            numbers = file.symbols.section_symbols()
            self._section_symbols = {numbers[home]: home for home in self._homes if home in numbers}
        self._wanted = trampolines | self._section_symbols.keys()
        self._functions: Mapping[int, Extents] | None = None
        self._untyped: Mapping[int, Extents] | None = None

    def sites_in(self, section: Section, tables: list[Relocations]) -> list[RelocatedSite]:
        """The sites of one section, in order of their offsets."""
        code = self._file.content(section)
        starts = _Starts(code, tables, self._starts_of(section))
        found: list[RelocatedSite] = []
        for table in tables:
            for number in self._plain_calls(section.number, code, table, found):
                site = self._by_relocation(section, code, table, number, starts)
                if site is not None:
                    found.append(site)
        if section.number in self._homes:
            found += self._by_displacement(section, code, tables, starts)
        found = [site for site in found if not site.tail or self._leaves_function(section, site)]
        found.sort(key=_OFFSET)
        if len(set(map(_OFFSET, found))) < len(found):
            raise MalformedError(
                f"section {section.name} has two relocations of one call", offset=section.offset, advice=_DAMAGED
            )
        return found

    def _plain_calls(self, section: int, code: bytes, table: Relocations, found: list[RelocatedSite]) -> Iterator[int]:
        """Add calls without prefixes, as nearly all sites are, to what was found; gives the entries that are others."""
        trampolines, prefixes, unpack = self._trampolines, x86.ANY_PREFIXES, elf64.RELA.unpack_from
        last = len(code) - x86.REL32_SIZE
        plt32, call = elf64.R_X86_64_PLT32, x86.CALL_REL32
        for number in compress(range(table.count), map(self._wanted.__contains__, table.symbols())):
            place, info, addend = unpack(table.raw, number * elf64.RELA.size)
            plain = addend == _REL32_ADDEND and info & 0xFFFFFFFF == plt32 and 2 <= place <= last
            if plain and code[place - 1] == call and code[place - 2] not in prefixes and info >> 32 in trampolines:
                offset = table.offset + number * elf64.RELA.size
                found.append(RelocatedSite(section, place - 1, 0, Form.CALL, info >> 32, offset))
            else:
                yield number

    def _by_relocation(
        self, section: Section, code: bytes, table: Relocations, number: int, starts: _Starts
    ) -> RelocatedSite | None:
        place, kind, symbol, addend = table.entry(number)
        if place >= len(code):
            raise MalformedError(
                f"a relocation of {section.name} names a place that does not exist",
                offset=table.offset + number * elf64.RELA.size,
                advice=_DAMAGED,
            )
        opcode = _opcode_before(code, place, kind)
        if opcode is None:
            return None
        width = 1 if kind == elf64.R_X86_64_PC8 else x86.REL32_SIZE
        # A displacement counts from its own end, and a relocation from its start.
        trampoline = self._trampoline_at(symbol, addend + width, by_name=kind in _GOT_TYPES)
        if trampoline is None:
            return None
        at, form = opcode
        # Nothing but a branch has such bytes before a 32-bit field that counts from its own end and leads to a
        # trampoline: what loads an address that way has a ModRM byte of mod 0 and r/m 5 there, and other fields do not
        # count from where they are. So the opcode is known to be one.
        first = starts.first_byte(at, certain=kind != elf64.R_X86_64_PC8)
        if first is None:
            return None
        return _site(section, first, at, form, trampoline, table.offset + number * elf64.RELA.size)

    def _trampoline_at(self, symbol: int, offset: int, *, by_name: bool) -> int | None:
        """The trampoline that starts at an offset from a symbol."""
        if symbol in self._trampolines:
            return None if offset else symbol
        return None if by_name else self._places.get((self._section_symbols[symbol], offset))

    def _by_displacement(
        self, section: Section, code: bytes, tables: list[Relocations], starts: _Starts
    ) -> Iterator[RelocatedSite]:
        """The branches inside one section that the assembler resolved by itself."""
        relocated: set[int] = set()
        for table in tables:
            relocated.update(table.places())
        for at in compress(range(len(code)), code.translate(_OPCODES)):
            if code[at] == x86.TWO_BYTE and (at + 2 in relocated or code[at + 1 : at + 2] not in _LONG_CONDITIONS):
                continue
            if at + 1 in relocated:
                continue
            branch = x86.decode(code[at : at + x86.JCC_SIZE], at)
            if branch.destination is None or branch.opcode:
                continue
            trampoline = self._places.get((section.number, branch.destination))
            width = 1 if branch.length == 2 else x86.REL32_SIZE
            if trampoline is None or at + branch.length - width in relocated:
                continue
            first = starts.first_byte(at, certain=False)
            if first is not None:
                yield _site(section, first, at, branch.form, trampoline, None)

    def _starts_of(self, section: Section) -> _Functions:
        return _Functions(self, section.number)

    def functions_in(self, section: int) -> Extents:
        """The extents of a section's functions; looked for once for all sections, and only when asked."""
        if self._functions is None:
            self._functions = self._file.symbols.functions()
        return self._functions.get(section, _NO_FUNCTIONS)

    def _leaves_function(self, section: Section, site: RelocatedSite) -> bool:
        """Whether a jump is in a function, or in assembly that is none but has a size, and leads to a function here."""
        if self._starts_of(section).contains(site.offset):
            return True
        trampoline = self._file.symbols.symbol(site.trampoline)
        if not trampoline.section or trampoline.type != elf64.STT_FUNC or not trampoline.size:
            return False
        if self._untyped is None:
            self._untyped = self._file.symbols.untyped()
        return _within(self._untyped.get(section.number, _NO_FUNCTIONS), site.offset)


class _Functions:
    """The functions of one section."""

    def __init__(self, search: _Search, section: int) -> None:
        self._search = search
        self._section = section

    def contains(self, offset: int) -> bool:
        """Whether an offset lies in any of them; they may overlap."""
        return _within(self._search.functions_in(self._section), offset)

    def start_before(self, offset: int) -> int:
        """The last start of a function at or before an offset, 0 where there is none."""
        starts, _ = self._search.functions_in(self._section)
        position = bisect_right(starts, offset) - 1
        return starts[position] if position >= 0 else 0


class _Starts:
    """Where instructions start, in the code of one section.

    Only bytes that may be prefixes pose the question. It is answered by decoding forward from the nearest place
    that is known to be a start: a function's first byte, or the end of a relocated displacement that is the last
    part of its instruction.
    """

    def __init__(self, code: bytes, tables: list[Relocations], functions: _Functions) -> None:
        self._code = code
        self._tables = tables
        self._functions = functions
        self._ends: list[int] | None = None
        self._passed: list[int] = []

    def first_byte(self, opcode: int, *, certain: bool) -> int | None:
        """The offset of the first byte of the instruction whose opcode is at `opcode`; None where none is there.

        `certain` says that the opcode is known to be one, so that only its prefixes are in question.
        """
        code = self._code
        earliest = opcode
        while earliest and code[earliest - 1] in x86.ANY_PREFIXES and opcode - earliest < x86.MAX_INSTRUCTION:
            earliest -= 1
        if certain and earliest == opcode:
            return opcode
        passed = bisect_right(self._passed, earliest) - 1
        position = max(self._anchor(earliest), self._passed[passed] if passed >= 0 else 0)
        milestone = position + _NEAR
        while position < opcode:
            length = instruction_length(code, position)
            if length is None or position + length > opcode:
                break
            position += length
            if position >= milestone:
                # So that the next one need not start from as far back, however many there are.
                insort(self._passed, position)
                milestone = position + _NEAR
        if position >= earliest:
            return position
        return opcode if certain else None

    def _anchor(self, offset: int) -> int:
        """The last known start at or before an offset."""
        if self._ends is None:
            self._ends = sorted(chain.from_iterable(table.branch_ends() for table in self._tables))
        position = bisect_right(self._ends, offset) - 1
        end = self._ends[position] if position >= 0 else -_NEAR
        return end if offset - end < _NEAR else max(end, self._functions.start_before(offset))


def _within(extents: Extents, offset: int) -> bool:
    """Whether an offset lies in any of some extents."""
    starts, ends = extents
    position = bisect_right(starts, offset) - 1
    return position >= 0 and offset < ends[position]


def _opcode_before(code: bytes, place: int, kind: int) -> Opcode | None:
    """The branch whose displacement a relocation of this type fills in: where its opcode is, and its form."""
    if not 1 <= place <= len(code) - 1:
        return None
    last = code[place - 1]
    if kind in _BRANCH_TYPES:
        form = _LONG.get(last)
        if form is not None:
            return place - 1, form
        if last in x86.JCC_REL32 and place >= 2 and code[place - 2] == x86.TWO_BYTE:
            return place - 2, Form.JCC
    elif kind in _GOT_TYPES:
        form = _INDIRECT.get(last)
        if form is not None and place >= 2 and code[place - 2] == x86.GROUP5:
            return place - 2, form
    elif kind == elf64.R_X86_64_PC8:
        if last == x86.JMP_REL8:
            return place - 1, Form.SHORT_JMP
        if last in x86.JCC_REL8:
            return place - 1, Form.JCC
    return None


def _site(section: Section, first: int, opcode: int, form: Form, trampoline: int, entry: int | None) -> RelocatedSite:
    if form is Form.CALL and first < opcode:
        form = Form.PREFIXED_CALL
    return RelocatedSite(section.number, first, opcode - first, form, trampoline, entry)
