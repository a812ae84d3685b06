"""What `staticcall annotate` makes is what linkers, binutils and running programs take it for."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.support import elf_object, toolchain
from tests.support.objects import SMALL_CASES, SOURCES, Objects, run
from tests.support.programs import COMPILERS, TOOLCHAINS, Toolchain
from tests.support.tool import succeed
from tests.support.toolchain import Compiler, Kind

TABLE = "static_call_sites"
_KIND_FLAGS: Final = MappingProxyType(
    {
        "exec": ("-fno-pie", "-no-pie"),
        "pie": ("-fPIE", "-pie"),
        "shared": ("-fPIC", "-shared"),
        "static": ("-fno-pie", "-static"),
    }
)
_RESULTS = """\
log both
both 16
tail 11
conditional 16 4
chosen 15 49
loop 10
log start
start 81
log end
seldom 19
replaceable 5
address 21
"""
_HIDDEN = '-DSC_VISIBILITY="hidden"'
_KINDS: tuple[Kind, ...] = ("exec", "pie", "shared", "static")

every_toolchain = pytest.mark.parametrize("tools", TOOLCHAINS, ids="-".join)
every_compiler = pytest.mark.parametrize("compiler", COMPILERS)
each_case = pytest.mark.parametrize(("name", "compiler"), SMALL_CASES, ids=map("-".join, SMALL_CASES))


class Parts:
    """The parts of the program, compiled and annotated: once for each compiler and set of options."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[tuple[str, Sequence[str]], Path] = {}

    def __call__(self, compiler: Compiler, *options: str) -> Path:
        """A folder of annotated objects, each with its source's name."""
        key = (compiler, options)
        if key not in self._parts:
            folder = self._folder / f"parts{len(self._parts)}"
            folder.mkdir()
            for source in (SOURCES / "calls.c", *(SOURCES / "program").glob("*.[cS]")):
                self.compile(compiler, source, folder, *options)
            self._parts[key] = folder
        return self._parts[key]

    @staticmethod
    def compile(compiler: str, source: Path, folder: Path, *options: str) -> Path:
        """One annotated object; sources without sites stay what they are."""
        result = folder / f"{source.stem}.o"
        run(compiler, "-O2", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", *options, "-c", source, "-o", result)
        succeed("annotate", "--section", TABLE, "--in-place", result)
        return result


@pytest.fixture(scope="module")
def parts(made: Objects, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """`made` knows what the machine lacks."""
    assert made
    return Parts(tmp_path_factory.mktemp("parts"))


def _link(tools: Toolchain, kind: Kind, inputs: Sequence[Path], result: Path, *options: str) -> Path:
    command = [tools.cc, f"-fuse-ld={tools.linker}", *_KIND_FLAGS[kind], "-Wl,--fatal-warnings", *options]
    run(*command, *inputs, "-o", result)
    return result


def _program(tools: Toolchain, kind: Kind, folder: Path, work: Path, *options: str) -> tuple[Path, Path]:
    """Link the parts; returns what holds the table, and the program that runs it."""
    main = folder / "main.o"
    rest = [folder / f"{name}.o" for name in ("calls", "keys", "sites", "run")]
    if kind != "shared":
        program = _link(tools, kind, [main, *rest], work / "program", *options)
        return program, program
    library = _link(tools, "shared", rest, work / "library.so", *options)
    return library, _link(tools, "pie", [main, library], work / "program")


def _check(image: Path, program: Path, results: str, filler: bytes = b"") -> int:
    """See that the table is right, by objdump and by the program's own word; returns the number of records.

    Records lead to the `filler` that the linker put in front of every call and jump.
    """
    sites = _sites(image)
    prefix = "__SCK__"
    keys = {at: name.removeprefix(prefix) for name, at in toolchain.symbols(image).items() if name.startswith(prefix)}
    recorded = {record.site + len(filler): (keys[record.key], record.flags) for record in toolchain.records(image)}
    assert recorded == sites
    assert {toolchain.bytes_at(image, site - len(filler), len(filler)) for site in sites} == {filler}
    assert len(toolchain.records(image)) == len(sites)
    out = toolchain.run(program)
    shown = [line.split()[1:] for line in out.splitlines() if line.startswith("site ")]
    assert Counter((name, tail == "tail") for name, tail, _ in shown) == Counter(
        (name, flag == 1) for name, flag in sites.values()
    )
    assert all((tail == "tail") == (form != "call") for _, tail, form in shown)
    assert "".join(line for line in out.splitlines(keepends=True) if not line.startswith("site ")) == results
    return len(sites)


def _sites(image: Path) -> dict[int, tuple[str, int]]:
    """Every call and jump to a trampoline in a linked file, by objdump: its name, and 1 for a jump."""
    listing = subprocess.run(
        ["objdump", "-dw", "--no-show-raw-insn", image], capture_output=True, text=True, check=True
    ).stdout
    line = re.compile(
        r"^ *([0-9a-f]+):\t(?:[a-z0-9.]+ )*?(call|j[a-z]+)(?:,p[nt])? +[0-9a-f]+ <__SCT__(\w+)>$", re.MULTILINE
    )
    return {int(at, 16): (name, int(branch != "call")) for at, branch, name in line.findall(listing)}


@every_toolchain
@pytest.mark.parametrize("kind", _KINDS)
def test_programs_find_their_sites(tools: Toolchain, kind: Kind, parts: Parts, tmp_path: Path) -> None:
    options = [flag for flag in _KIND_FLAGS[kind] if flag.startswith("-f")]
    image, program = _program(tools, kind, parts(tools.cc, _HIDDEN, *options), tmp_path)
    assert _check(image, program, _RESULTS) == 13


@every_toolchain
@pytest.mark.parametrize("kind", ["exec", "pie", "shared"])
def test_programs_find_the_sites_that_linkers_made_direct(
    tools: Toolchain, kind: Kind, parts: Parts, tmp_path: Path
) -> None:
    """With -fno-plt a call goes through the GOT until a linker sees that the trampoline is in the same file."""
    options = [flag for flag in _KIND_FLAGS[kind] if flag.startswith("-f")]
    image, program = _program(tools, kind, parts(tools.cc, "-fno-plt", *options), tmp_path)
    # Six bytes become five: others put a prefix there, or leave the rest behind a jump.
    filler = b"\x90" if tools.linker == "mold" else b""
    # clang calls through a register in the loop.
    assert _check(image, program, _RESULTS, filler) == {"gcc": 13, "clang": 12}[tools.cc]


@every_compiler
@pytest.mark.parametrize("kind", ["exec", "pie", "shared"])
def test_a_linker_may_make_them_prefixed_calls(compiler: Compiler, kind: Kind, parts: Parts, tmp_path: Path) -> None:
    options = [flag for flag in _KIND_FLAGS[kind] if flag.startswith("-f")]
    folder = parts(compiler, "-fno-plt", *options)
    image, program = _program(Toolchain(compiler, "bfd"), kind, folder, tmp_path, "-Wl,-z,call-nop=prefix-0x2e")
    _check(image, program, _RESULTS)
    calls = [record.site for record in toolchain.records(image) if not record.flags]
    assert {toolchain.bytes_at(image, site, 2) for site in calls} == {b"\x2e\xe8"}


@every_toolchain
@pytest.mark.parametrize("kind", ["exec", "pie"])
def test_sections_that_nobody_needs_take_no_records_along(
    tools: Toolchain, kind: Kind, parts: Parts, tmp_path: Path
) -> None:
    options = [flag for flag in _KIND_FLAGS[kind] if flag.startswith("-f")]
    folder = parts(tools.cc, _HIDDEN, *options, "-ffunction-sections", "-fdata-sections")
    # To lld a section's __start_ symbol is no reason to keep the section, unless it is told so.
    keep = ["-Wl,-z,nostart-stop-gc"] if tools.linker == "lld" else []
    image, program = _program(tools, kind, folder, tmp_path, "-Wl,--gc-sections", *keep)
    assert _check(image, program, _RESULTS) == 13


@every_toolchain
def test_a_relocatable_link_keeps_the_table(tools: Toolchain, parts: Parts, tmp_path: Path) -> None:
    folder = parts(tools.cc, _HIDDEN, "-fPIE")
    combined = tmp_path / "combined.o"
    inputs = [folder / f"{name}.o" for name in ("keys", "run", "calls", "sites")]
    run(f"ld.{tools.linker}", "-r", "-o", combined, *inputs)
    records = elf_object.records(elf_object.read(combined), TABLE)
    before = elf_object.records(elf_object.read(folder / "calls.o"), TABLE)
    assert [(record.section, record.key, record.flags) for record in records] == [
        (record.section, record.key, record.flags) for record in before
    ]
    program = _link(tools, "pie", [folder / "main.o", combined], tmp_path / "program")
    assert _check(program, program, _RESULTS) == 13


@every_toolchain
@pytest.mark.parametrize("kind", ["exec", "pie"])
@pytest.mark.parametrize("first", ["inline_one", "inline_two"])
def test_a_discarded_copy_of_an_inline_function_takes_its_records_along(
    tools: Toolchain, kind: Kind, first: str, parts: Parts, tmp_path: Path
) -> None:
    inputs = _inline(tools.cc, parts, tmp_path, *[flag for flag in _KIND_FLAGS[kind] if flag.startswith("-f")])
    inputs.sort(key=lambda path: path.stem != first)
    cxx = Toolchain(tools.cc, tools.linker)
    program = _link(cxx, kind, inputs, tmp_path / "program", "-lstdc++")
    # plus(), checked(), scaled<3>(), scaled<5>() once each; one() and two() have a site each.
    assert _check(program, program, "one 26\ntwo 72\n") == 6


@every_toolchain
def test_a_relocatable_link_discards_the_copies_records_too(tools: Toolchain, parts: Parts, tmp_path: Path) -> None:
    inputs = _inline(tools.cc, parts, tmp_path, "-fPIE")
    combined = tmp_path / "combined.o"
    run(f"ld.{tools.linker}", "-r", "-o", combined, *inputs)
    assert len(elf_object.records(elf_object.read(combined), TABLE)) == 6
    program = _link(tools, "pie", [combined], tmp_path / "program", "-lstdc++")
    assert _check(program, program, "one 26\ntwo 72\n") == 6


def _inline(compiler: Compiler, parts: Parts, work: Path, *options: str) -> list[Path]:
    folder = parts(compiler, _HIDDEN, *options)
    driver = {"gcc": "g++", "clang": "clang++"}[compiler]
    sources = (SOURCES / "inline_one.cc", SOURCES / "inline_two.cc", SOURCES / "program" / "inline_main.cc")
    compiled = [Parts.compile(driver, source, work, _HIDDEN, *options) for source in sources]
    return [*compiled, folder / "keys.o", folder / "sites.o"]


# ---- what others say of an annotated object ----


def _annotated(name: str, compiler: Compiler, made: Objects, work: Path) -> Path:
    succeed("annotate", "--module", made(name, compiler), "-o", work / "annotated.o")
    return work / "annotated.o"


def _records(path: Path) -> list[tuple[str, int, str, int]]:
    """The records without the numbers of sections, which may change when others go."""
    return [
        (record.section, record.offset, record.key, record.flags)
        for record in elf_object.records(elf_object.read(path))
    ]


@each_case
def test_readelf_has_nothing_to_complain_about(name: str, compiler: Compiler, made: Objects, tmp_path: Path) -> None:
    annotated = _annotated(name, compiler, made, tmp_path)
    done = subprocess.run(["readelf", "-aW", annotated], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "readelf: " not in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("objcopy",),
        ("objcopy", "--strip-debug"),
        ("strip", "--strip-debug", "-o"),
        ("strip", "--strip-unneeded", "-o"),
        ("llvm-objcopy",),
        ("llvm-strip", "--strip-debug", "-o"),
    ],
    ids=" ".join,
)
@each_case
def test_the_table_outlives_binutils(
    name: str, compiler: Compiler, command: Sequence[str], made: Objects, tmp_path: Path
) -> None:
    annotated, result = _annotated(name, compiler, made, tmp_path), tmp_path / "result.o"
    before = _records(annotated)
    operands = [result, annotated] if command[-1] == "-o" else [annotated, result]
    run(*command, *operands)
    assert _records(result) == before


@every_toolchain
@pytest.mark.parametrize("command", [("strip", "--strip-debug"), ("objcopy",)], ids=" ".join)
def test_what_binutils_made_of_it_links(tools: Toolchain, command: Sequence[str], parts: Parts, tmp_path: Path) -> None:
    folder = shutil.copytree(parts(tools.cc, _HIDDEN, "-fPIE", "-g"), tmp_path / "parts")
    for path in folder.iterdir():
        run(*command, path)
    image, program = _program(tools, "pie", folder, tmp_path)
    assert _check(image, program, _RESULTS) == 13


@each_case
def test_annotating_again_changes_nothing(name: str, compiler: Compiler, made: Objects, tmp_path: Path) -> None:
    annotated = _annotated(name, compiler, made, tmp_path)
    once = annotated.read_bytes()
    out = succeed("annotate", "--module", annotated, "-o", tmp_path / "again.o")
    assert ("has its table already" if _records(annotated) else "no sites") in out
    assert (tmp_path / "again.o").read_bytes() == once
    succeed("annotate", "--module", "--in-place", annotated)
    assert annotated.read_bytes() == once


def test_annotating_is_deterministic(made: Objects, tmp_path: Path) -> None:
    inputs = [made(name, compiler) for name, compiler in SMALL_CASES]
    for number, jobs in enumerate(["1", "1", "2"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        succeed("annotate", "--module", "-j", jobs, "--output-dir", folder, *inputs)
    for path in inputs:
        first, second, parallel = (tmp_path / str(number) / path.name for number in range(3))
        assert first.read_bytes() == second.read_bytes() == parallel.read_bytes()


@every_compiler
def test_a_table_for_programs_and_one_for_the_kernel_hold_the_same(
    compiler: Compiler, made: Objects, tmp_path: Path
) -> None:
    original = made("calls", compiler)
    succeed("annotate", original, "-o", tmp_path / "kernel.o")
    succeed("annotate", "--section", TABLE, original, "-o", tmp_path / "program.o")
    kernel, program = (elf_object.read(tmp_path / name) for name in ("kernel.o", "program.o"))
    assert elf_object.records(kernel) == elf_object.records(program, TABLE)
    assert [section.name for section in program.sections[-2:]] == [TABLE, f".rela{TABLE}"]
