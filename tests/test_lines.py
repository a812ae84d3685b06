"""Places in the source, against addr2line: for each byte of programs and objects, and for sites of the real kernel."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from staticcall.locate.linked import locate
from staticcall.model.aids import NameAids
from staticcall.model.lines import SourceLine
from staticcall.read.image import open_image
from staticcall.read.lines import source_lines
from tests.support.elf_edit import Elf
from tests.support.refusals import at_most
from tests.support.toolchain import Compiler, build, missing_tools

SECONDS = 10
STEPS = ["-gdwarf-5", "-gdwarf-4", "-gdwarf-3", "-gdwarf-5 -gz", "-gdwarf-5 -ffunction-sections", "-gdwarf-4 -O0"]
# A function within a function, lines far apart, and files that take turns.
SOURCE = """\
#include "inner.h"
int outer(int x) { return inner(x) + 1; }
#line 70000 "folder/far away.c"
int far(int x) { return
    inner(x) * outer(x); }
#line 5
__attribute__((section(".text.cold"))) int cold(int *x) { for (int i = 0; i < 9; i++) x[i] = inner(x[i]); return *x; }
int main(int argc, char **argv) { return far(argc) + cold((int *)argv); }
"""
INNER = "static inline int inner(int x)\n{\n    if (x > 3)\n        return x * 7;\n    return x / 3;\n}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "source.c").write_text(SOURCE)
    (folder / "inner.h").write_text(INNER)
    return folder


def compiled(folder: Path, cc: Compiler, flags: str, *more: str) -> Path:
    if missing := missing_tools(cc):
        pytest.skip(f"not installed: {', '.join(missing)}")
    path = folder / f"{cc}{flags}{''.join(more)}".replace(" ", "")
    command = [cc, "-O2", *flags.split(), *more, "source.c", "-o", str(path)]
    subprocess.run(command, cwd=folder, check=True)
    return path


def told(path: Path, addresses: Iterable[int], section: str | None = None) -> list[str | None]:
    """What addr2line says of each address, or of each offset in a section: the path and line, None where nothing."""
    command = ["addr2line", "-e", str(path), *(["-j", section] if section else [])]
    text = "".join(f"{address:#x}\n" for address in addresses)
    listing = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    lines = [line.partition(" (discriminator")[0] for line in listing.splitlines()]
    return [None if line.endswith((":?", ":0")) else line for line in lines]


def is_same(own: SourceLine | None, other: str | None) -> bool:
    """Whether a place is the one that addr2line names, which puts the compiler's folder in front."""
    if own is None or other is None:
        return own is None and other is None
    return f"/{other}".endswith(f"/{own.path.removeprefix('./')}:{own.line}".replace("//", "/"))


def assert_same(lines: Sequence[SourceLine | None], others: Sequence[str | None]) -> None:
    wrong = [pair for pair in zip(lines, others, strict=True) if not is_same(*pair)]

    assert not wrong, f"{len(wrong)} of {len(lines)}: {wrong[:3]}"


@pytest.mark.parametrize("flags", STEPS)
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_each_byte_of_a_program_is_where_addr2line_has_it(cc: Compiler, flags: str, folder: Path) -> None:
    path = compiled(folder, cc, flags)
    with open_image(path) as image:
        section = image.section_named([".text"])
        assert section
        addresses = range(section.address - 3, section.address + section.size + 3)
        lines = source_lines(image, addresses)

    assert_same([lines.get(address) for address in addresses], told(path, addresses))
    assert {line.path.rpartition("/")[2] for line in lines.values()} == {"source.c", "inner.h", "far away.c"}


@pytest.mark.parametrize("flags", ["-gdwarf-5 -ffunction-sections -gz", "-gdwarf-4"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_an_object_has_lines_in_each_section(cc: Compiler, flags: str, folder: Path) -> None:
    path = compiled(folder, cc, flags, "-c")
    with open_image(path) as image:
        sections = [section for section in image.sections if section.executable and section.size]
        for section in sections:
            addresses = range(section.address, section.address + section.size)
            lines = source_lines(image, addresses)

            assert lines
            assert_same([lines.get(a) for a in addresses], told(path, range(section.size), section.name))
    assert len(sections) > 1


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_the_sites_of_a_program_have_lines(cc: Compiler, tmp_path: Path) -> None:
    if missing := missing_tools(cc):
        pytest.skip(f"not installed: {', '.join(missing)}")
    path = build("demo", tmp_path, kind="exec", cc=cc, extra=["-g"])
    with open_image(path) as image:
        addresses = [site.address for site in locate(image).sites]
        lines = source_lines(image, addresses)

    assert len(lines) == len(addresses) > 0
    assert_same([lines.get(address) for address in addresses], told(path, addresses))


def test_the_sites_of_the_kernel_are_where_addr2line_has_them(vmlinux_612: Path) -> None:
    with open_image(vmlinux_612) as image:
        addresses = sorted({site.address for site in locate(image).sites})
        with at_most(SECONDS):
            lines = source_lines(image, addresses)
    some = addresses[::23]

    assert len(lines) == len(addresses)
    assert_same([lines.get(address) for address in some], told(vmlinux_612, some))


def test_a_debug_file_has_the_lines_of_what_was_stripped(folder: Path) -> None:
    whole = compiled(folder, "gcc", "-gdwarf-5", "-Wl,--build-id")
    debug, stripped = folder / "debug", folder / "stripped"
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    subprocess.run(["strip", "-o", stripped, whole], check=True)
    with open_image(whole) as image:
        (main,) = image.symbols.named("main")
        expected = source_lines(image, [main.address])
    with open_image(stripped) as image:
        assert not source_lines(image, [main.address])
    with open_image(stripped, aids=NameAids(debug_file=debug)) as image:
        assert source_lines(image, [main.address]) == expected != {}


@pytest.mark.parametrize("flags", ["-gdwarf-5", "-gdwarf-4", "-gdwarf-5 -c", "-gdwarf-4 -gz"])
def test_whatever_is_in_it_the_end_is_lines_or_none(flags: str, folder: Path, tmp_path: Path) -> None:
    whole = compiled(folder, "gcc", flags).read_bytes()
    elf = Elf(whole)
    path, chance, ends = tmp_path / "bad", random.Random(11), set()  # noqa: S311 - the same in every run
    names = [".debug_line"] if "-gdwarf-4" in flags else [".debug_line", ".debug_line_str"]
    for _ in range(100):
        bad = bytearray(whole)
        span = elf.span(chance.choice(names))
        for _ in range(chance.choice((1, 1, 8))):
            bad[span.offset + chance.randrange(span.size)] = chance.choice(
                (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
            )
        path.write_bytes(bad)
        with open_image(path) as image:
            text = image.section_named([".text"])
            assert text
            ends.add(len(source_lines(image, range(text.address, text.address + text.size))))

    assert len(ends) > 1


def program_of(tables: bytes, code: bytes, version: int = 4) -> bytes:
    """A unit of .debug_line with one program."""
    head = struct.pack("<BBBbBB12s", 1, 1, 1, -5, 14, 13, bytes((0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1))) + tables
    unit = struct.pack("<H", version) + (b"\x08\0" if version == 5 else b"")
    unit += struct.pack("<I", len(head)) + head + code
    return struct.pack("<I", len(unit)) + unit


def set_address(address: int) -> bytes:
    return b"\0\x09\x02" + struct.pack("<Q", address)


OLD_TABLES = b"\0a.c\0\0\0\0\0"
HOSTILE = {
    "nothing but starts": lambda start: program_of(OLD_TABLES, set_address(start) * 200_000),
    "numbers without end": lambda start: program_of(OLD_TABLES, set_address(start) + b"\x03" + b"\x80" * 3_000_000),
    "rows without end": lambda start: program_of(OLD_TABLES, set_address(start) + b"\x05\x01" * 1_500_000),
    "one address for ever": lambda start: program_of(OLD_TABLES, set_address(start) + b"\x01" * 3_000_000),
    "more files than atoms": lambda start: program_of(
        b"\x01\x01\x0f" + b"\xff" * 9 + b"\x01", set_address(start) + b"\x13\x21\x02\x09\0\1\1", 5
    ),
    "unit after unit": lambda start: program_of(OLD_TABLES, set_address(start) + b"\x21\0\1\1") * 50_000,
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_lines_that_never_end_waste_no_time(case: str, folder: Path, tmp_path: Path) -> None:
    whole = compiled(folder, "gcc", "-gdwarf-4")
    with open_image(whole) as image:
        section = image.section_named([".text"])
        assert section
    path = with_lines(HOSTILE[case](section.address), whole, tmp_path)
    with open_image(path) as image, at_most(SECONDS):
        source_lines(image, range(section.address, section.address + section.size))


def with_lines(content: bytes, whole: Path, folder: Path) -> Path:
    """A copy of a program with other lines."""
    lines, path = folder / "lines", folder / "made"
    lines.write_bytes(content)
    subprocess.run(["objcopy", "--update-section", f".debug_line={lines}", whole, path], check=True)
    return path


def many_files(start: int, count: int) -> bytes:
    """A row of the last of very many files, each of which takes a byte."""
    tables = b"\x01\x01\x08\x01/\0" + b"\x01\x01\x08" + leb(count) + b"\0" * (count - 1) + b"x\0"
    return program_of(tables, set_address(start) + b"\x04" + leb(count - 1) + b"\x01\x02\x01\0\1\1", 5)


def leb(number: int) -> bytes:
    return bytes((number >> shift & 0x7F) | 0x80 for shift in (0, 7, 14)) + bytes((number >> 21,))


GOOD = b"\x01\x02\x05\0\1\1"
FEW: dict[str, tuple[Callable[[int], bytes], int]] = {
    "a row": (lambda start: program_of(OLD_TABLES, set_address(start) + GOOD), 5),
    "no row before the first step": (lambda start: program_of(OLD_TABLES, set_address(start) + GOOD[1:]), 0),
    "tables up to the end": (lambda start: program_of(b"\x01\x01\x0b\x0b" + set_address(start), b"", 5), 0),
    "few files": (lambda start: many_files(start, 9), 1),
    "more files than a source has": (lambda start: many_files(start, 1 << 20), 0),
    "more files than all sources have": (
        lambda start: b"".join(many_files(start + number, 60_000) for number in range(30)),
        20,
    ),
    "more units than a program has": (
        lambda start: bytes(4 << 20) + program_of(OLD_TABLES, set_address(start) + GOOD),
        0,
    ),
}


@pytest.mark.parametrize("case", list(FEW))
def test_what_no_compiler_makes_has_few_lines_or_none(case: str, folder: Path, tmp_path: Path) -> None:
    whole = compiled(folder, "gcc", "-gdwarf-4")
    with open_image(whole) as image:
        section = image.section_named([".text"])
        assert section
    content, most = FEW[case]
    path = with_lines(content(section.address), whole, tmp_path)
    with open_image(path) as image:
        found = source_lines(image, range(section.address, section.address + section.size))

    assert min(most, 1) <= len(found) <= most


def test_a_made_up_program_is_told_by_its_opcodes(folder: Path, tmp_path: Path) -> None:
    whole = compiled(folder, "gcc", "-gdwarf-4")
    with open_image(whole) as image:
        section = image.section_named([".text"])
        assert section
    base = section.address
    code = (
        b"\x05\x80\x80\x01"  # a column of three bytes, before the address
        + set_address(base)
        + b"\x03\xe4\x00\x01"  # line 101
        + b"\x09\x04\x00\x01"  # 4 bytes on by a fixed step
        + b"\x04\x02\x03\x9f\x7f\x01"  # the second file, 97 lines back, at the same address
        + b"\x08\x01"  # 17 bytes on
        + b"\x03\xfc\xff\xff\xff\x0f\x02\x03\x01"  # a line that no source has
        + b"\x02\x01\0\1\1"
    )
    path = with_lines(program_of(b"sub\0\0one.c\0\0\0\0two.c\0\1\0\0\0", code), whole, tmp_path)
    with open_image(path) as image:
        found = source_lines(image, range(base, base + 40))

    one, two = SourceLine("one.c", 101), SourceLine("sub/two.c", 4)
    assert found == {base + n: one if n < 4 else two for n in range(24)}
