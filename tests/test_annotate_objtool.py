"""`staticcall annotate` makes the records that objtool makes, in its order, on real objects and on made-up ones."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import elf_object, kbuild, objtool
from tests.support.elf_object import BrokenTableError, Object, Record
from tests.support.modules import Development
from tests.support.objects import CASES, SMALL_CASES, Objects, run
from tests.support.programs import COMPILERS
from tests.support.tool import Outcome, staticcall, succeed
from tests.support.toolchain import Compiler

# What objtool gives up on: a call that leads into a trampoline's middle, bytes that are no instruction, the zeros that
# mold fills gaps in code with, and a symbol whose section is the first to need an extended number.
_GIVEN_UP = ("inside", "undecodable", "combined-mold", "many_nameless")
_NO_KEY = re.compile(r"can't find static_call_key symbol: (\w+)")
# The kernel's own code is in these objects of the corpus; in what is linked of them every key is somewhere.
_NOT_BUILT_IN = ("arch/x86/kvm", "arch/x86/crypto", "virt", "drivers/block", "net/bridge")

# What objdump does not show: trampolines that are reached without a relocation against their name, code that is called
# an object, jumps that count though they are in no function.
_UNNAMED = ("chain", "nearby", "outside", "section_relative", "untyped")
_SHOWN = [case for case in SMALL_CASES if case[0] not in _UNNAMED]

# The large ones once: --module makes no difference to them.
_MADE = [(*case, False) for case in CASES] + [(*case, True) for case in SMALL_CASES]

each_mode = pytest.mark.parametrize("module", [False, True], ids=["built-in", "module"])


def _annotate(original: Path, output: Path, *, module: bool) -> Outcome:
    return staticcall("annotate", original, "-o", output, *(["--module"] if module else []))


def _table(path: Path) -> list[Record]:
    return elf_object.records(elf_object.read(path))


def _whole(path: Path) -> bool:
    """Whether there is a table that is not broken."""
    try:
        return bool(_table(path))
    except BrokenTableError:
        return False


def _in_order(records: list[Record]) -> list[Record]:
    """As objtool orders them: all jumps, then all calls."""
    return sorted(records, key=lambda record: (not record.flags & 1, record.section_number, record.offset))


def _difference(tool: Path, original: Path, work: Path, *, module: bool) -> str:
    """What is different between objtool's table and ours; empty where nothing is."""
    theirs, ours = work / "theirs.o", work / "ours.o"
    ours.unlink(missing_ok=True)
    judgement = objtool.annotate(tool, original, theirs, module=module)
    outcome = _annotate(original, ours, module=module)
    if key := _NO_KEY.search(judgement.said):
        # Objtool leaves a broken table there and calls it a success.
        assert not _whole(theirs)
        refused = outcome.code == 3 and not outcome.out and key[1] in outcome.err and outcome.err.count("\n") == 1
        return "" if refused and not ours.exists() else f"not refused: {outcome}"
    if judgement != (0, "") or (outcome.code, outcome.err) != (0, ""):
        return f"{judgement}, {outcome}"
    expected, found = _table(theirs), _table(ours)
    return "" if found == expected else f"{len(expected)} records, not {len(found)}: {set(expected) ^ set(found)}"


@pytest.mark.kernel
@each_mode
@pytest.mark.parametrize("compiler", COMPILERS)
def test_real_objects_get_the_records_that_objtool_makes(
    compiler: Compiler, module: bool, kernel_objects: Path, development: Development, tmp_path: Path
) -> None:
    paths = sorted((kernel_objects / compiler).rglob("*.o"))
    assert len(paths) >= {"gcc": 100, "clang": 15}[compiler]
    differences = {path: _difference(development.objtool, path, tmp_path, module=module) for path in paths}
    assert not {path: difference for path, difference in differences.items() if difference}


@pytest.mark.kernel
def test_the_real_objects_have_sites_of_every_sort(
    kernel_objects: Path, development: Development, tmp_path: Path
) -> None:
    """The corpus is worth its time: what objtool finds there is more than calls from .text."""
    found: set[tuple[str, int, str]] = set()
    for path in kernel_objects.rglob("*.o"):
        objtool.annotate(development.objtool, path, tmp_path / "copy.o", module=True)
        found |= {(record.section, record.flags, record.key[:6]) for record in _table(tmp_path / "copy.o")}
    sections = {section for section, _, _ in found}
    assert {".text", ".init.text", ".noinstr.text", ".sched.text", ".cpuidle.text"} <= sections
    assert {(flags, prefix) for _, flags, prefix in found} >= {(0, "__SCK_"), (1, "__SCK_"), (0, "__SCT_")}


@pytest.mark.kernel
@pytest.mark.parametrize("linker", ["ld.bfd", "ld.lld"])
def test_a_combination_of_real_objects_gets_the_records_that_objtool_makes(
    linker: str, kernel_objects: Path, development: Development, tmp_path: Path
) -> None:
    root = kernel_objects / "gcc"
    parts = [path for path in sorted(root.rglob("*.o")) if not str(path.relative_to(root)).startswith(_NOT_BUILT_IN)]
    combined = tmp_path / "vmlinux.o"
    run(linker, "-r", "-o", combined, *parts)
    assert _difference(development.objtool, combined, tmp_path, module=False) == ""
    assert len(_table(tmp_path / "ours.o")) > 4000


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("module", "parts"),
    [
        ("arch/x86/kvm/kvm.o", ["arch/x86/kvm/*.o", "arch/x86/kvm/mmu/*.o", "virt/kvm/*.o"]),
        ("arch/x86/kvm/kvm-amd.o", ["arch/x86/kvm/svm/*.o"]),
    ],
)
def test_a_module_has_the_records_of_its_parts(
    module: str, parts: list[str], kernel_objects: Path, tmp_path: Path
) -> None:
    """By the names of the calls: a key that one part lacks may be in another."""
    root = kernel_objects / "gcc"

    def records_of(path: Path) -> Counter[tuple[str, int]]:
        succeed("annotate", "--module", path, "-o", tmp_path / "annotated.o")
        return Counter((record.key[6:], record.flags) for record in _table(tmp_path / "annotated.o"))

    of_parts: Counter[tuple[str, int]] = Counter()
    for path in (path for pattern in parts for path in root.glob(pattern)):
        if str(path.relative_to(root)) not in kbuild.LINKED_MODULES:
            of_parts += records_of(path)
    assert of_parts == records_of(root / module)
    assert of_parts.total() >= 100


@pytest.mark.kernel
@pytest.mark.parametrize(("name", "compiler", "module"), _MADE, ids=["-".join(map(str, case)) for case in _MADE])
def test_made_up_objects_get_the_records_that_objtool_makes(
    name: str, compiler: Compiler, module: bool, made: Objects, development: Development, tmp_path: Path
) -> None:
    original = made(name, compiler)
    theirs, ours = tmp_path / "theirs.o", tmp_path / "ours.o"
    judgement = objtool.annotate(development.objtool, original, theirs, module=module)
    outcome = _annotate(original, ours, module=module)
    if name == "no_key" and not module:
        assert "can't find static_call_key symbol: __SCK__unknown" in judgement.said
        assert outcome.code == 3
        assert "__SCK__unknown" in outcome.err
        assert not ours.exists()
        return
    assert (outcome.code, outcome.err) == (0, "")
    found = _table(ours)
    if name in _GIVEN_UP:
        assert "warning: objtool" in judgement.said
        assert not _whole(theirs)
        assert found
        assert _in_order(found) == _in_order(_disassembled(original))
        return
    assert judgement == (0, "")
    # Records of groups stand in tables of their own, one after the other.
    assert (_in_order(found) if _has_groups(ours) else found) == _table(theirs)
    if not found:
        assert ours.read_bytes() == original.read_bytes()


@pytest.mark.parametrize(("name", "compiler"), _SHOWN, ids=map("-".join, _SHOWN))
def test_made_up_objects_get_the_records_that_objdump_shows(
    name: str, compiler: Compiler, made: Objects, tmp_path: Path
) -> None:
    original = made(name, compiler)
    succeed("annotate", "--module", original, "-o", tmp_path / "ours.o")
    assert _in_order(_table(tmp_path / "ours.o")) == _in_order(_disassembled(original))


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["calls", "sections", "no_key"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_tables_sections_are_as_objtool_makes_them(
    name: str, compiler: Compiler, made: Objects, development: Development, tmp_path: Path
) -> None:
    original = made(name, compiler)
    objtool.annotate(development.objtool, original, tmp_path / "theirs.o", module=True)
    succeed("annotate", "--module", original, "-o", tmp_path / "ours.o")
    theirs, ours = (elf_object.read(tmp_path / file) for file in ("theirs.o", "ours.o"))
    (expected,), (found,) = elf_object.tables(theirs), elf_object.tables(ours)
    for own, other in ((found.section, expected.section), (found.relocations, expected.relocations)):
        assert own._replace(offset=0, content=b"") == other._replace(offset=0, content=b"")
    # Objtool makes its section symbols one after the other, so the globals that they displace end in another order.
    assert sorted(ours.symbols) == sorted(theirs.symbols)


@pytest.mark.kernel
@pytest.mark.parametrize("compiler", COMPILERS)
def test_what_objtool_annotated_is_left_as_it_is(
    compiler: Compiler, made: Objects, development: Development, tmp_path: Path
) -> None:
    annotated = tmp_path / "annotated.o"
    objtool.annotate(development.objtool, made("calls", compiler), annotated)
    before = annotated.read_bytes()
    out = succeed("annotate", annotated, "-o", tmp_path / "again.o")
    assert out == f"{annotated}: has its table already, left as it is\n"
    assert (tmp_path / "again.o").read_bytes() == before
    succeed("annotate", annotated, "--in-place")
    assert annotated.read_bytes() == before


@pytest.mark.kernel
@pytest.mark.parametrize("compiler", COMPILERS)
def test_objtool_leaves_what_we_annotated_as_it_is(
    compiler: Compiler, made: Objects, development: Development, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.o"
    succeed("annotate", made("calls", compiler), "-o", ours)
    judgement = objtool.annotate(development.objtool, ours, tmp_path / "theirs.o")
    assert "file already has .static_call_sites section" in judgement.said
    assert (tmp_path / "theirs.o").read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_calls_through_the_got_are_no_records_of_a_kernel(compiler: Compiler, made: Objects, tmp_path: Path) -> None:
    original, output = made("calls-no_plt", compiler), tmp_path / "ours.o"
    out = succeed("annotate", original, "-o", output)
    assert re.fullmatch(r".*: no sites, left as it is \(1[23] through the GOT not recorded, .*\)\n", out)
    assert output.read_bytes() == original.read_bytes()


def test_a_missing_key_says_which_and_where(made: Objects, tmp_path: Path) -> None:
    original, copy = made("no_key"), tmp_path / "copy.o"
    shutil.copy(original, copy)
    for arguments in (["-o", tmp_path / "out.o"], ["--in-place"], ["--output-dir", tmp_path / "out"]):
        outcome = staticcall("annotate", copy, *arguments)
        assert outcome.code == 3
        assert re.search(r"no symbol __SCK__unknown for .* at \.text\+0xa\b.*--module", outcome.err)
        assert copy.read_bytes() == original.read_bytes()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [copy]


# ---- an oracle of its own: objdump ----


def _has_groups(path: Path) -> bool:
    return any(section.type == elf_object.SHT_GROUP for section in elf_object.read(path).sections)


def _disassembled(path: Path) -> list[Record]:
    """The records that an object must get, by objdump: jumps and calls with a relocation against a trampoline."""
    elf = elf_object.read(path)
    return list(_lines_of_calls(elf, _objdump(path)))


def _objdump(path: Path) -> str:
    return subprocess.run(
        ["objdump", "-drw", "-z", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout


def _lines_of_calls(elf: Object, listing: str) -> Iterator[Record]:
    names = {symbol.name for symbol in elf.symbols}
    globals_ = {symbol.name for symbol in elf.symbols if symbol.binding == elf_object.STB_GLOBAL}
    functions = [symbol for symbol in elf.symbols if symbol.type == elf_object.STT_FUNC]
    line = re.compile(r"^ *([0-9a-f]+):\t(.*?)\t[0-9a-f]+: R_X86_64_(?:PLT|PC)32\t__SCT__(\w+)-0x4$")
    section = elf.sections[0]
    for text in listing.splitlines():
        if text.startswith("Disassembly of section "):
            # Names may be the same; the sections with code come in their order.
            name = text.removeprefix("Disassembly of section ").rstrip(":")
            section = next(own for own in elf.sections[section.number + 1 :] if own.name == name and own.size)
        found = line.match(text)
        if found is None or section.name == ".altinstr_replacement" or f"__SCT__{found[3]}" not in globals_:
            continue
        offset, words = int(found[1], 16), found[2].split()
        branch = next((word for word in words if word.startswith(("call", "j"))), "")
        if any(word.startswith("*") for word in words):
            continue  # through a pointer that is taken from the trampoline's own bytes
        inside = any(own.section == section.number and own.value <= offset < own.value + own.size for own in functions)
        if branch.startswith("call") or (branch and inside):
            key = f"__SCK__{found[3]}"
            named = key if key in names else f"__SCT__{found[3]}"
            yield Record(section.name, section.number, offset, named, int(not branch.startswith("call")))
