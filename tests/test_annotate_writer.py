"""The writer of objects appends: what was there stays, and whatever names a symbol still names the same one."""

import os
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import lief
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from tests.support import elf_object
from tests.support.elf_object import Object, Section, Symbol
from tests.support.objects import MANY_SECTIONS, SMALL_CASES, Objects, run
from tests.support.programs import COMPILERS
from tests.support.tool import staticcall, succeed
from tests.support.toolchain import Compiler

_SHT_REL, _SHT_CALL_GRAPH_PROFILE = 9, 0x6FFF4C09
_RELOCATIONS = (elf_object.SHT_RELA, _SHT_REL)
_OLD_PROFILE_ENTRY = 16  # with symbol numbers in it; newer ones have relocations
# What may have other bytes than before: names and symbols are more, and symbols' numbers are in the rest.
_REWRITTEN = (
    elf_object.SHT_SYMTAB,
    elf_object.SHT_STRTAB,
    elf_object.SHT_GROUP,
    elf_object.SHT_SYMTAB_SHNDX,
    elf_object.SHT_LLVM_ADDRSIG,
    *_RELOCATIONS,
)

each_case = pytest.mark.parametrize(("name", "compiler"), SMALL_CASES, ids=map("-".join, SMALL_CASES))


def _annotate(original: Path, work: Path, *options: str) -> Path:
    succeed("annotate", "--module", *options, original, "-o", work / "annotated.o")
    return work / "annotated.o"


class Pair:
    """An object before and after, and where each of its old symbols went."""

    def __init__(self, before: Path, after: Path) -> None:
        self.before_bytes, self.after_bytes = before.read_bytes(), after.read_bytes()
        self.before, self.after = elf_object.read(before), elf_object.read(after)
        self.annotated = self.before_bytes != self.after_bytes

    def check(self) -> None:
        """All that the writer promises of any object."""
        self._check_sections()
        self._check_symbols()
        for old, new in zip(self.before.sections, self.after.sections, strict=False):
            if old.type in _RELOCATIONS:
                assert _named(self.after, new) == _named(self.before, old), old.name
            elif old.type == elf_object.SHT_GROUP:
                self._check_group(old, new)
            elif old.type == elf_object.SHT_LLVM_ADDRSIG:
                assert _listed(self.after, new) == _listed(self.before, old)
        # No byte of the old file is gone: what moved left its old bytes where they were.
        changed = [old for old in self.before.sections if old.type in _REWRITTEN]
        kept = bytearray(self.after_bytes[: len(self.before_bytes)])
        kept[:64] = self.before_bytes[:64]
        for section in changed:
            kept[section.offset : section.offset + section.size] = section.content
        assert kept == self.before_bytes

    def _check_sections(self) -> None:
        old, new = self.before.sections, self.after.sections
        assert len(new) >= len(old)
        for one, other in zip(old, new, strict=False):
            assert _header(one) == _header(other)
            if one.type == elf_object.SHT_STRTAB:
                assert other.content.startswith(one.content)
        for section in new[len(old) :]:
            assert section.name in (".static_call_sites", ".rela.static_call_sites", ".symtab_shndx")
            assert section.offset >= len(self.before_bytes)
        spans = sorted(
            (own.offset, own.offset + own.size) for own in new[1:] if own.size and own.type != elf_object.SHT_NOBITS
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert all(not own.alignment or own.offset % own.alignment == 0 for own in new[len(old) :])

    def _check_symbols(self) -> None:
        old, new = self.before.symbols, self.after.symbols
        before, after = self.before.sections[self.before.symtab].info, self.after.sections[self.after.symtab].info
        made = new[before:after]
        assert new[:before] == old[:before]
        assert all(own.binding == elf_object.STB_LOCAL for own in new[:after])
        assert all(own.binding != elf_object.STB_LOCAL for own in new[after:])
        # The new ones are of sections with code that had none, one each.
        had = {own.section for own in old if own.type == elf_object.STT_SECTION}
        assert len({own.section for own in made}) == len(made)
        for own in made:
            assert own == Symbol("", elf_object.STT_SECTION, elf_object.STB_LOCAL, 0, own.section, 0, 0)
            assert own.section not in had
            assert self.after.sections[own.section].flags & elf_object.SHF_EXECINSTR
        # Those that they displace went to the end, all others are where they were.
        displaced = old[before : before + len(made)]
        still = old[before + len(made) :]
        assert sorted(new[after:]) == sorted([*displaced, *still])
        if len(old) - before >= len(made):
            assert new[after : after + len(still)] == still
            assert sorted(new[after + len(still) :]) == sorted(displaced)

    def _check_group(self, old: Section, new: Section) -> None:
        assert self.after.symbols[new.info] == self.before.symbols[old.info]
        before, after = _words(old), _words(new)
        assert after[: len(before)] == before
        for member in after[len(before) :]:
            section = self.after.sections[member]
            assert member >= len(self.before.sections)
            assert section.name in (".static_call_sites", ".rela.static_call_sites")
            assert section.flags & elf_object.SHF_GROUP


def _header(section: Section) -> Section:
    """What must not change in a section's header, and in its bytes."""
    if section.type in _REWRITTEN:
        section = section._replace(offset=0, size=0, content=b"")
    # The symbol table's info is its first global, a group's is its own symbol, and the first header's size and link
    # are numbers of the file's that did not fit.
    if section.type in (elf_object.SHT_SYMTAB, elf_object.SHT_GROUP) or not section.number:
        section = section._replace(info=0)
    return section if section.number else section._replace(size=0)


def _words(section: Section) -> list[int]:
    return [word for (word,) in struct.iter_unpack("<I", section.content)]


def _named(elf: Object, section: Section) -> list[tuple[int, int, Symbol, int]]:
    """The entries with the symbols that they name, in place of their numbers."""
    if section.type == _SHT_REL:
        return [
            (offset, kind, elf.symbols[symbol], 0)
            for offset, kind, symbol in struct.iter_unpack("<QII", section.content)
        ]
    return [(entry.offset, entry.type, elf.symbols[entry.symbol], entry.addend) for entry in elf.relocations(section)]


def _listed(elf: Object, section: Section) -> list[Symbol]:
    """The symbols whose numbers a list of ULEB128 holds."""
    return [elf.symbols[number] for number in _uleb128s(section.content)]


def _uleb128s(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift = shift + 7 if byte & 0x80 else 0
        if not byte & 0x80:
            yield number
            number = 0


@each_case
def test_what_was_there_stays(name: str, compiler: Compiler, made: Objects, tmp_path: Path) -> None:
    Pair(made(name, compiler), _annotate(made(name, compiler), tmp_path)).check()


@pytest.mark.kernel
@pytest.mark.parametrize("compiler", COMPILERS)
def test_what_was_there_stays_in_real_objects(compiler: Compiler, kernel_objects: Path, tmp_path: Path) -> None:
    annotated = 0
    for original in sorted((kernel_objects / compiler).rglob("*.o")):
        pair = Pair(original, _annotate(original, tmp_path))
        pair.check()
        annotated += pair.annotated
    assert annotated >= {"gcc": 80, "clang": 12}[compiler]


@each_case
def test_the_reader_of_these_tests_agrees_with_readelf(
    name: str, compiler: Compiler, made: Objects, tmp_path: Path
) -> None:
    """It is the oracle of the others, so it has one itself."""
    _agree_with_readelf(_annotate(made(name, compiler), tmp_path))


def _agree_with_readelf(path: Path) -> None:
    elf = elf_object.read(path)
    shown = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == len(elf.symbols)
    numbers = {"UND": 0, "ABS": 0xFFF1, "COM": 0xFFF2}
    for row, symbol in zip(rows, elf.symbols, strict=True):
        section = int(row[6]) if row[6].isdigit() else numbers[row[6]]
        assert (int(row[1], 16), section) == (symbol.value, symbol.section)
        if symbol.type != elf_object.STT_SECTION:
            assert (row[7] if len(row) > 7 else "") == symbol.name


@each_case
def test_pyelftools_reads_it(name: str, compiler: Compiler, made: Objects, tmp_path: Path) -> None:
    annotated = _annotate(made(name, compiler), tmp_path)
    elf = elf_object.read(annotated)
    with annotated.open("rb") as stream:
        file = ELFFile(stream)
        assert file.num_sections() == len(elf.sections)
        for section, expected in zip(file.iter_sections(), elf.sections, strict=True):
            assert section.name == expected.name
            if isinstance(section, SymbolTableSection):
                assert [symbol.name for symbol in section.iter_symbols()] == [symbol.name for symbol in elf.symbols]
            elif isinstance(section, RelocationSection) and section.is_RELA():
                found = [(entry["r_offset"], entry["r_info_sym"]) for entry in section.iter_relocations()]
                assert found == [(entry.offset, entry.symbol) for entry in elf.relocations(expected)]


@pytest.mark.parametrize("kind", ["made", pytest.param("real", marks=pytest.mark.kernel)])
def test_to_lief_nothing_is_new_but_the_table(
    kind: str, made: Objects, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "made":
        paths = [made(name, compiler) for name, compiler in SMALL_CASES]
    else:
        folder: Path = request.getfixturevalue("kernel_objects")
        paths = [path for path in folder.rglob("*.o") if path.name in ("kvm-amd.o", "core.o", "main.o", "softirq.o")]
    for original in paths:
        annotated = _annotate(original, tmp_path)
        elf = elf_object.read(annotated)
        old, new = lief.ELF.parse(original), lief.ELF.parse(annotated)
        assert old is not None
        assert new is not None
        assert [section.name for section in new.sections] == [section.name for section in elf.sections]
        assert [symbol.value for symbol in new.symtab_symbols] == [symbol.value for symbol in elf.symbols]
        before, after = _relocations(old), _relocations(new)
        assert not before - after
        assert (after - before).total() == 2 * len(elf_object.records(elf))


def _relocations(file: lief.ELF.Binary) -> Counter[tuple[int, str, int]]:
    return Counter(
        (entry.address, str(entry.symbol.name) if entry.symbol else "", entry.addend)
        for entry in file.object_relocations
    )


@pytest.mark.parametrize("options", [["--in-place"], ["-o", "out.o"], ["--output-dir", "."]], ids=" ".join)
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755])
def test_mode_bits_stay_and_the_input_is_not_touched(
    options: list[str], mode: int, made: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    (tmp_path / "output").mkdir()
    monkeypatch.chdir(tmp_path / "output")
    original = made("calls")
    copy = Path(shutil.copy(original, folder / "calls.o"))
    copy.chmod(mode)
    os.utime(copy, ns=(10**18, 10**18))
    succeed("annotate", copy, *options)
    output = {"--in-place": copy, "-o": Path("out.o"), "--output-dir": Path("calls.o")}[options[0]]
    assert output.stat().st_mode & 0o777 == mode
    assert len(elf_object.records(elf_object.read(output))) == 13
    if output is not copy:
        assert copy.read_bytes() == original.read_bytes()
        assert copy.stat().st_mtime_ns == 10**18
    assert sorted(path.name for path in folder.iterdir()) == ["calls.o"]


def test_lists_of_clang_follow_the_displaced_symbols(made: Objects, tmp_path: Path) -> None:
    """Not only in general, see above: this object has them, and its symbols do move."""
    original = made("clang_tables", "clang")
    pair = Pair(original, _annotate(original, tmp_path))
    (old,), (new,) = pair.before.named(".llvm_addrsig"), pair.after.named(".llvm_addrsig")
    assert old.content != new.content
    assert {symbol.name for symbol in _listed(pair.after, new)} == {"target", "__SCT__one", "first", "__SCK__one"}
    (old,), (new,) = (elf.named(".rel.llvm.call-graph-profile") for elf in (pair.before, pair.after))
    assert old.content != new.content
    assert [entry[2].name for entry in _named(pair.after, new)] == ["other", "target", "target", "__SCT__one"]


@pytest.mark.parametrize("profile", [[("other", "target", 7)], []], ids=["entries", "empty"])
def test_old_call_graph_profiles_follow_the_displaced_symbols(
    profile: list[tuple[str, str, int]], made: Objects, tmp_path: Path
) -> None:
    """They held the numbers themselves: two words and a weight."""
    original = tmp_path / "original.o"
    numbers = {symbol.name: at for at, symbol in enumerate(elf_object.read(made("clang_tables", "clang")).symbols)}
    content = b"".join(struct.pack("<IIQ", numbers[one], numbers[other], weight) for one, other, weight in profile)
    _replace_profile(made("clang_tables", "clang"), original, content)
    pair = Pair(original, _annotate(original, tmp_path))
    names = [symbol.name for symbol in pair.after.symbols]
    (section,) = pair.after.named(".llvm.call-graph-profile")
    found = [(names[one], names[other], weight) for one, other, weight in struct.iter_unpack("<IIQ", section.content)]
    assert found == profile
    assert not profile or content != section.content


def _replace_profile(original: Path, result: Path, content: bytes) -> None:
    """Make an object with a call graph's profile in the old format: its relocations are gone from the file."""
    data = bytearray(original.read_bytes())
    elf = elf_object.read(original)
    (profile,), (relocations,) = elf.named(".llvm.call-graph-profile"), elf.named(".rel.llvm.call-graph-profile")
    (start,) = struct.unpack_from("<Q", data, 40)
    header = start + 64 * profile.number
    struct.pack_into("<QQ", data, header + 24, len(data), len(content))
    struct.pack_into("<Q", data, header + 56, _OLD_PROFILE_ENTRY)
    struct.pack_into("<Q", data, start + 64 * relocations.number + 32, 0)
    result.write_bytes(data + content)


def test_an_unknown_section_with_symbol_numbers_is_refused(made: Objects, tmp_path: Path) -> None:
    """What links to the symbol table may hold numbers that would be wrong afterwards."""
    original = tmp_path / "original.o"
    data = bytearray(made("clang_tables", "clang").read_bytes())
    elf = elf_object.read(made("clang_tables", "clang"))
    (section,) = elf.named(".llvm_addrsig")
    (start,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<I", data, start + 64 * section.number + 4, 0x6FFF4CFF)
    original.write_bytes(data)
    outcome = staticcall("annotate", original, "-o", tmp_path / "out.o")
    assert outcome.code == 3
    assert "0x6fff4cff" in outcome.err
    assert not (tmp_path / "out.o").exists()


@pytest.mark.parametrize(("name", "compiler"), [("many_sections", "gcc"), ("many_nameless", "clang")])
def test_section_numbers_that_do_not_fit_are_extended(
    name: str, compiler: Compiler, made: Objects, tmp_path: Path
) -> None:
    annotated = _annotate(made(name, compiler), tmp_path)
    pair = Pair(made(name, compiler), annotated)
    pair.check()
    _agree_with_readelf(annotated)
    had = [section for section in pair.before.sections if section.type == elf_object.SHT_SYMTAB_SHNDX]
    (extended,) = (section for section in pair.after.sections if section.type == elf_object.SHT_SYMTAB_SHNDX)
    assert len(had) == (1 if name == "many_sections" else 0)
    assert extended.link == pair.after.symtab
    assert extended.size == 4 * len(pair.after.symbols)
    assert len(pair.after.sections) > MANY_SECTIONS
    through = {record.section_number for record in elf_object.records(pair.after)}
    assert len([number for number in through if number >= 0xFF00]) >= 20


def test_names_go_to_the_table_that_sections_and_symbols_share(made: Objects, tmp_path: Path) -> None:
    """clang writes one string table for both."""
    original = made("calls", "clang")
    pair = Pair(original, _annotate(original, tmp_path))
    assert pair.before.named(".shstrtab") == []
    assert pair.after.names == pair.after.sections[pair.after.symtab].link
    assert pair.after.named(".static_call_sites")


def test_a_section_symbol_that_is_there_is_used(made: Objects, tmp_path: Path) -> None:
    """`ld -r` leaves one for every section, so nothing moves."""
    combined = tmp_path / "combined.o"
    run("ld.bfd", "-r", "-o", combined, made("sections"), made("conditional"))
    pair = Pair(combined, _annotate(combined, tmp_path))
    assert pair.after.symbols == pair.before.symbols


def test_where_there_are_more_new_symbols_than_globals_all_globals_follow(made: Objects, tmp_path: Path) -> None:
    source = tmp_path / "one.S"
    lines = [f'.section .text.f{number}, "ax", @progbits\n call __SCT__one\n' for number in range(20)]
    source.write_text("".join(lines))
    original = tmp_path / "one.o"
    run("gcc", "-c", source, "-o", original)
    pair = Pair(original, _annotate(original, tmp_path))
    pair.check()
    assert [symbol.name for symbol in pair.after.symbols if symbol.binding != elf_object.STB_LOCAL] == ["__SCT__one"]
    assert made
