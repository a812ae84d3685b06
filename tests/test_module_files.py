"""Debian's own modules: what a report says of them, and that a patch changes the relocations it is meant to, no more.

What a patch should come to is worked out here from what readelf prints of the original, and held against what
readelf prints of the result and against the bytes of both.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.support import modules
from tests.support.module_trees import code_places
from tests.support.modules import TABLE, Development, Record, Relocation
from tests.support.tool import digest, refused, report, succeed
from tests.support.vmlinux import CALL, JMP, KEY, LINE, NOP, RETURN, RETURN0, RETURN_THUNK, TRAMPOLINE, XOR

pytestmark = pytest.mark.kernel

TRAMPOLINES = ".static_call.text"
SAMPLE = 50
SITE_SIZE = 5
HEADER_SIZE, RELOCATION_SIZE = 64, 24

# The first two are static calls of tracepoints. All that a processor's module fills in later start as NULL.
PIO, FPU, NULL_AT_FIRST = "tp_func_kvm_pio", "tp_func_kvm_fpu", "kvm_x86_get_cpl"
INSIDE = "__traceiter_kvm_eoi"  # a function of the module's
# The kernel exports them, and this module never heard of them.
IMPORTED, IMPORTED_TOO = "__traceiter_pelt_cfs_tp", "__traceiter_pelt_rt_tp"


@pytest.fixture(scope="module")
def kvm(development: Development, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modules.packaged(development, "kvm", tmp_path_factory.mktemp("packaged"))


@pytest.fixture(scope="module")
def sample(development: Development, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every so many of Debian's modules."""
    folder = tmp_path_factory.mktemp("sample")
    names = sorted(archive.name.removesuffix(".ko.xz") for archive in development.modules.rglob("*.ko.xz"))
    return [modules.packaged(development, name, folder) for name in names[:: len(names) // SAMPLE]]


# Reports


def _verdict(record: Record, place: int) -> str:
    """What policy lutomirski says to a site, by where the kernel puts its section."""
    crossing = (place + record.offset) % LINE + SITE_SIZE > LINE
    return "trampoline" if record.opcode != CALL or crossing else "direct"


def _assert_report(module: Path) -> int:
    """Hold a report against the table's own relocations; returns the number of records."""
    records, places = modules.records(module), code_places(module)
    expected = {
        number: (
            record.section,
            record.offset,
            record.symbol.removeprefix(KEY).removeprefix(TRAMPOLINE),
            record.tail,
            {CALL: "call", JMP: "tail_jmp"}[record.opcode],
            _verdict(record, places[record.section]),
        )
        for number, record in enumerate(records)
    }
    image = report(module)
    assert {
        site["record"]: (site["section"], site["offset"], site["key"], site["tail"], site["form"], site["verdict"])
        for site in image["sites"]
    } == expected
    assert {tuple(site["sources"]) for site in image["sites"]} <= {("table", "relocation")}
    assert image["summary"]["sites"] == len(records)
    assert {finding["code"] for finding in image["findings"]} <= (set() if records else {"no-static-calls"})
    return len(records)


def test_a_report_on_kvm_says_what_its_table_says(kvm: Path) -> None:
    assert _assert_report(kvm) > 500


def test_reports_on_a_sample_of_all_modules_say_what_their_tables_say(sample: list[Path]) -> None:
    assert len(sample) >= SAMPLE
    assert sum(_assert_report(module) for module in sample) > SAMPLE


# Annotations


def _assert_annotation(module: Path, folder: Path) -> None:
    """Take a module's table away and let the tool make it again."""
    bare, again = folder / "bare.ko", folder / "again.ko"
    without = [f"--remove-section={TABLE}", f"--remove-section=.rela{TABLE}"]
    subprocess.run(["objcopy", *without, module, bare], check=True)
    assert modules.records(bare) == []
    succeed("annotate", "--module", bare, "-o", again)
    before, after = modules.relocations(module), modules.relocations(again)
    assert after[TABLE] == before[TABLE]
    assert after == before


def test_the_table_that_kvm_came_with_is_made_again(kvm: Path, tmp_path: Path) -> None:
    _assert_annotation(kvm, tmp_path)


def test_the_tables_that_modules_came_with_are_made_again(sample: list[Path], tmp_path: Path) -> None:
    tables = [module for module in sample if modules.records(module)]
    assert len(tables) > SAMPLE / 10
    for module in tables:
        _assert_annotation(module, tmp_path)


# Patches


class File(NamedTuple):
    """A module's file as readelf and pyelftools have it."""

    data: bytes
    relocations: Mapping[str, list[Relocation]]
    sections: list[tuple[str, str, int]]
    """Name, type and flags."""
    spans: Mapping[str, tuple[int, int]]
    """Offset and size."""
    symbols: list[tuple[str, str, str, str, int, int]]
    """Name, binding, type, section, value and size."""

    def content(self, section: str) -> bytes:
        offset, size = self.spans[section]
        return self.data[offset : offset + size]


def _read(path: Path) -> File:
    with path.open("rb") as file:
        elf = ELFFile(file)
        sections = list(elf.iter_sections())
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = [
            (
                symbol.name,
                str(symbol["st_info"]["bind"]),
                str(symbol["st_info"]["type"]),
                str(symbol["st_shndx"]),
                int(symbol["st_value"]),
                int(symbol["st_size"]),
            )
            for symbol in table.iter_symbols()
        ]
    return File(
        path.read_bytes(),
        {name: [_plain(entry) for entry in entries] for name, entries in modules.relocations(path).items()},
        [(section.name, str(section["sh_type"]), int(section["sh_flags"])) for section in sections],
        {
            section.name: (int(section["sh_offset"]), int(section["sh_size"]))
            for section in sections
            if section["sh_type"] != "SHT_NOBITS"
        },
        symbols,
    )


def _plain(entry: Relocation) -> Relocation:
    """What no loader reads of a relocation that does nothing is nobody's business."""
    return entry._replace(symbol="", addend=0) if entry.kind == "R_X86_64_NONE" else entry


class Expected(NamedTuple):
    """What should be there after a patch and was not before."""

    relocations: dict[str, dict[int, Relocation]]
    """By section and number."""
    code: dict[str, dict[int, bytes]]
    """By section and offset."""


def _expect(module: Path, before: File, wishes: Mapping[str, str], policy: str) -> Expected:
    expected = Expected({}, {})
    records, places = modules.records(module), code_places(module)
    values = {name: (section, value) for name, _, _, section, value, _ in before.symbols}
    names = [name for name, _, _ in before.sections]
    for key, target in wishes.items():
        for record in records:
            if record.symbol == KEY + key and (
                policy == "kernel" or _verdict(record, places[record.section]) == "direct"
            ):
                _expect_site(expected, before, record, target)
        slot_section, slot = values[KEY + key]
        function = {"NULL": "", "RET0": RETURN0}.get(target, target)
        _expect_symbol(expected, before, names[int(slot_section)], slot, function)
        jump = RETURN_THUNK if target == "NULL" else function
        _expect_symbol(expected, before, TRAMPOLINES, values[TRAMPOLINE + key][1] + 1, jump)
    return expected


def _expect_site(expected: Expected, before: File, record: Record, target: str) -> None:
    call = record.opcode == CALL
    code = {"NULL": NOP if call else RETURN, "RET0": XOR if call else b""}.get(target, b"")
    function = {"NULL": "", "RET0": RETURN0}.get(target, target)
    _expect_symbol(expected, before, record.section, record.offset + 1, "" if code else function)
    if code:
        expected.code.setdefault(record.section, {})[record.offset] = code


def _expect_symbol(expected: Expected, before: File, section: str, place: int, symbol: str) -> None:
    """Expect the relocation of a place to be against another symbol, or, without one, to do nothing."""
    entries = before.relocations[section]
    numbers = [number for number, entry in enumerate(entries) if entry.place == place]
    if numbers:
        (number,) = numbers
        new = entries[number]._replace(symbol=symbol) if symbol else Relocation(place, "R_X86_64_NONE", "", 0)
    else:
        # The slot of a key that was NULL has none so far.
        number, new = len(entries), Relocation(place, "R_X86_64_64", symbol, 0)
    expected.relocations.setdefault(section, {})[number] = new


def _assert_only(before: File, after: File, expected: Expected) -> None:
    """See that all that changed is what was to change, and that it did."""
    changed = {
        section: {
            number: new
            for number, (old, new) in enumerate(zip_longest(entries, after.relocations[section]))
            if old != new
        }
        for section, entries in before.relocations.items()
    }
    assert {section: entries for section, entries in changed.items() if entries} == expected.relocations
    assert after.relocations.keys() == before.relocations.keys()
    assert after.sections == before.sections
    assert after.symbols[: len(before.symbols)] == before.symbols
    for name, kind, _ in before.sections:
        if kind not in ("SHT_RELA", "SHT_SYMTAB", "SHT_NOBITS", "SHT_NULL") and name != ".strtab":
            content = bytearray(before.content(name))
            for offset, code in expected.code.get(name, {}).items():
                content[offset : offset + len(code)] = code
            assert after.content(name) == content, name


def _assert_bytes(before: File, after: File, expected: Expected, *, grown: Sequence[str]) -> None:
    """See that the file is what it was, even where no section is, but for what was meant.

    The sections that grew are at its end, which the ELF header says; where they were, nothing changed.
    """
    meant = set(range(HEADER_SIZE)) if grown else set()
    for section, entries in expected.relocations.items():
        start, _ = before.spans[f".rela{section}"]
        meant.update(start + RELOCATION_SIZE * number + byte for number in entries for byte in range(RELOCATION_SIZE))
    for section, codes in expected.code.items():
        start, _ = before.spans[section]
        meant.update(start + offset + byte for offset, code in codes.items() for byte in range(len(code)))
    original = modules.unsigned(before.data)
    assert len(after.data) == len(original) or grown
    kept = after.data[: len(original)]
    assert {offset for offset, (old, new) in enumerate(zip(original, kept, strict=True)) if old != new} <= meant
    assert {name for name, span in after.spans.items() if span != before.spans[name]} == set(grown)


def _patch(original: Path, folder: Path, wishes: Mapping[str, str], *options: str) -> Path:
    """A module that the tool patched, verified, and turned back."""
    output, edits, back = folder / "patched.ko", folder / "edits.json", folder / "back.ko"
    sets = [f"--set={key}={target}" for key, target in wishes.items()]
    if "NULL" in wishes.values():
        # Tracepoints return a number that nobody reads, which the module's type data alone does not tell.
        sets.append("--force=null-returns-value")
    if {IMPORTED, IMPORTED_TOO} & set(wishes.values()):
        sets.append("--force=unversioned-import")
    succeed("patch", original, *sets, "--strip-signature", *options, "-o", output, "--edits", edits)
    succeed("verify", original, output)
    succeed("revert", output, "--edits", edits, "-o", back)
    assert digest(back) == digest(original)
    return output


PATCHES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "a function": {PIO: INSIDE},
        "two keys": {PIO: INSIDE, FPU: INSIDE},
        "RET0": {PIO: "RET0"},
        "NULL": {PIO: "NULL", FPU: INSIDE},
        "from NULL": {NULL_AT_FIRST: INSIDE, FPU: INSIDE},
        "imported": {PIO: IMPORTED},
        "two imported": {PIO: IMPORTED, FPU: IMPORTED_TOO},
    }
)


@pytest.mark.parametrize("policy", ["lutomirski", "kernel"])
@pytest.mark.parametrize("name", PATCHES)
def test_a_patched_kvm_differs_in_the_relocations_that_were_meant(
    name: str, policy: str, kvm: Path, tmp_path: Path
) -> None:
    wishes = PATCHES[name]
    before = _read(kvm)
    expected = _expect(kvm, before, wishes, policy)
    assert len(expected.relocations[TRAMPOLINES]) == len(wishes)
    assert len(expected.relocations[".text"]) >= 4 * len(wishes)
    after = _read(_patch(kvm, tmp_path, wishes, "--policy", policy))
    _assert_only(before, after, expected)
    imports = sorted(set(wishes.values()) - {symbol[0] for symbol in before.symbols} - {"NULL", "RET0"})
    assert after.symbols[len(before.symbols) :] == [
        (target, "STB_GLOBAL", "STT_NOTYPE", "SHN_UNDEF", 0, 0) for target in imports
    ]
    grown = [".symtab", ".strtab"] if imports else []
    grown += [".rela.data"] if NULL_AT_FIRST in wishes else []
    _assert_bytes(before, after, expected, grown=grown)


def test_a_linked_module_gets_no_import_that_it_has_no_version_of(kvm: Path, tmp_path: Path) -> None:
    output = tmp_path / "patched.ko"
    wish = f"--set={PIO}={IMPORTED}"
    assert IMPORTED in refused("patch", kvm, wish, "--strip-signature", "-o", output, code="unversioned-import")
    assert not output.exists()


def test_a_relocation_too_many_would_show(kvm: Path, tmp_path: Path) -> None:
    wishes = PATCHES["a function"]
    before = _read(kvm)
    expected = _expect(kvm, before, wishes, "lutomirski")
    path = _patch(kvm, tmp_path, wishes)
    _assert_only(before, _read(path), expected)
    changed = bytearray(path.read_bytes())
    start, _ = before.spans[f".rela{TABLE}"]
    changed[start + RELOCATION_SIZE - 8] += 4  # the addend of the first one
    path.write_bytes(changed)
    after = _read(path)
    with pytest.raises(AssertionError):
        _assert_only(before, after, expected)
    with pytest.raises(AssertionError):
        _assert_bytes(before, after, expected, grown=[])


def test_a_signed_module_is_refused_unless_its_signature_may_go(kvm: Path, tmp_path: Path) -> None:
    output = tmp_path / "patched.ko"
    signed = kvm.read_bytes()
    assert len(modules.unsigned(signed)) < len(signed)
    refused("patch", kvm, f"--set={PIO}={INSIDE}", "-o", output, code="module-signature")
    assert not output.exists()
    _patch(kvm, tmp_path, {PIO: INSIDE})
    assert modules.unsigned(output.read_bytes()) == output.read_bytes()
