"""DWARF that is damaged or made to waste time: the end is a type, nothing, or an error, and it comes soon."""

from __future__ import annotations

import random
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from staticcall.errors import MalformedError, StaticcallError
from staticcall.model.types import Prototype
from staticcall.read.dwarf_types import DwarfTypes
from staticcall.read.image import open_image
from tests.support.c_types import compile_object
from tests.support.elf_edit import Elf
from tests.support.refusals import at_most

SECONDS = 2
SOURCE = """\
struct job { int size; };
typedef struct { int x; } pair;
enum state { IDLE };
typedef int callback(struct job *, void *, ...);
int other(pair *);
enum state f(struct job *job, const callback *call, pair pair, int (*row)[3], unsigned long n)
{
    return job->size + other(&pair);
}
int main(void) { return 0; }
"""
TEXT = "enum state f(struct job *, const callback *, pair, int (*)[3], unsigned long)"


@pytest.fixture(scope="module", params=["-gdwarf-5", "-gdwarf-4"])
def typed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object with one function."""
    source = tmp_path_factory.mktemp("dwarf") / "source.c"
    source.write_text(SOURCE)
    return compile_object(source, request.param)


def text_in(path: Path, name: str = "f") -> str | None:
    with open_image(path) as image:
        (symbol,) = image.symbols.named(name)
        type_ = DwarfTypes(image).type_of(name, symbol.address)
        assert type_ is None or isinstance(type_, Prototype)
        return type_.declared(name) if type_ else None


@pytest.mark.parametrize("section", [".debug_info", ".debug_abbrev", ".debug_str"])
def test_whatever_is_in_it_the_end_is_a_type_or_an_error(section: str, typed: Path, tmp_path: Path) -> None:
    whole = typed.read_bytes()
    span = Elf(whole).span(section)
    path, chance, ends = tmp_path / "bad.o", random.Random(6), set()  # noqa: S311 - the same in every run
    for _ in range(700):
        bad = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = span.offset + chance.randrange(span.size)
            bad[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path.write_bytes(bad)
        try:
            with at_most(10 * SECONDS):
                ends.add(text_in(path))
        except StaticcallError:
            ends.add("an error")
    assert TEXT in ends
    assert len(ends) > 2


def _with(typed: Path, folder: Path, **sections: bytes) -> Path:
    """A copy of an object with other sections of debug data."""
    target = folder / "changed.o"
    options: list[str | Path] = []
    for name, content in sections.items():
        (folder / name).write_bytes(content)
        options += ["--add-section", f".{name}={folder / name}"]
    subprocess.run(["objcopy", "--strip-debug", *options, typed, target], check=True, capture_output=True)
    return target


def _unit(entries: bytes) -> bytes:
    return struct.pack("<IHIB", len(entries) + 7, 4, 0, 8) + entries


def _leb(*numbers: int) -> bytes:
    return b"".join(
        bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80, number >> 7]) for number in numbers
    )


# Code 1: a unit with children; code 2: a function with a place; code 3: a function without anything; code 4: a pointer
# to another entry; code 5: a function whose result is another entry and that has children; code 6: a parameter.
ABBREVIATIONS = (
    _leb(1, 0x11, 1, 0x13, 0x0B, 0, 0)
    + _leb(2, 0x2E, 0, 0x11, 0x01, 0x03, 0x08, 0x27, 0x19, 0, 0)
    + _leb(3, 0x2E, 1, 0, 0)
    + _leb(4, 0x0F, 0, 0x49, 0x13, 0, 0)
    + _leb(5, 0x2E, 1, 0x11, 0x01, 0x03, 0x08, 0x49, 0x13, 0x27, 0x19, 0, 0)
    + _leb(6, 0x05, 0, 0x49, 0x13, 0, 0)
    + _leb(7, 0x15, 1, 0x27, 0x19, 0, 0)
    + _leb(0)
)
_TOP = _leb(1, 12)


@pytest.fixture
def address(typed: Path) -> bytes:
    with open_image(typed) as image:
        (symbol,) = image.symbols.named("f")
        return struct.pack("<Q", symbol.address)


def test_the_made_up_data_is_understood(typed: Path, tmp_path: Path, address: bytes) -> None:
    function = _leb(2) + address + b"f\0" + _leb(0)
    pointer = _leb(4) + struct.pack("<I", 11)
    texts = [
        text_in(_with(typed, tmp_path, debug_info=_unit(_TOP + types + function), debug_abbrev=ABBREVIATIONS))
        for types in (pointer, b"")
    ]
    # Nothing is known of a function in a unit without any type.
    assert texts == ["void f(void)", None]


@pytest.mark.parametrize("flag", ["-g1", "-gdwarf-4 -g1"])
def test_functions_without_their_types_say_nothing(flag: str, typed: Path) -> None:
    path = compile_object(typed.with_name("source.c"), *flag.split())
    listing = subprocess.run(["readelf", "--debug-dump=info", path], capture_output=True, text=True, check=True).stdout
    assert "DW_TAG_subprogram" in listing
    assert "DW_TAG_base_type" not in listing
    assert text_in(path) is None


def _circle(address: bytes) -> bytes:
    # Headers take 11 bytes, the top entry 2: the pointer stands at 13 and leads to itself.
    return _leb(4) + struct.pack("<I", 13) + _leb(5) + address + b"f\0" + struct.pack("<I", 13) + _leb(0)


def _bush(address: bytes) -> bytes:
    """Each type takes the one before it twice."""
    entries, start, last = b"", 13, 13
    for _ in range(40):
        own = _leb(7) + 2 * (_leb(6) + struct.pack("<I", last)) + _leb(0)
        last = start + len(entries)
        entries += own
    return entries + _leb(5) + address + b"f\0" + struct.pack("<I", last) + _leb(0)


def _deep(address: bytes) -> bytes:
    entries = b"".join(_leb(4) + struct.pack("<I", 13 + 5 * (n + 1)) for n in range(5000))
    return entries + _leb(5) + address + b"f\0" + struct.pack("<I", 13) + _leb(0)


@pytest.mark.parametrize("entries", [_circle, _bush, _deep])
def test_a_type_without_an_end_is_refused(entries: object, typed: Path, tmp_path: Path, address: bytes) -> None:
    assert callable(entries)
    path = _with(typed, tmp_path, debug_info=_unit(_TOP + entries(address) + _leb(0)), debug_abbrev=ABBREVIATIONS)
    with at_most(10 * SECONDS), pytest.raises(MalformedError, match="circles"):
        text_in(path)


@pytest.mark.parametrize("code", [2, 3, 0])
def test_masses_of_entries_are_not_searched_for_long(code: int, typed: Path, tmp_path: Path, address: bytes) -> None:
    one = _leb(2) + address + b"g\0" if code == 2 else _leb(code)
    masses = one * (6_000_000 // len(one))
    info = _unit(_TOP + masses + _leb(2) + address + b"f\0" + _leb(0))
    path = _with(typed, tmp_path, debug_info=info, debug_abbrev=ABBREVIATIONS)
    started = time.process_time()  # other processes do not count
    assert text_in(path) is None
    assert time.process_time() - started < 2 * SECONDS


def test_very_many_functions_in_one_place_say_nothing(typed: Path, tmp_path: Path, address: bytes) -> None:
    info = _unit(_TOP + _leb(4) + struct.pack("<I", 11) + (_leb(2) + address + b"f\0") * 40_000 + _leb(0))
    path = _with(typed, tmp_path, debug_info=info, debug_abbrev=ABBREVIATIONS)
    with at_most(10 * SECONDS):
        assert text_in(path) is None


def test_an_abbreviation_of_very_many_attributes_is_refused(typed: Path, tmp_path: Path, address: bytes) -> None:
    many = _leb(1, 0x11, 1, *([0x49, 0x19] * 200_000), 0, 0) + ABBREVIATIONS
    info = _unit(_leb(1) + _leb(2) + address + b"f\0" + _leb(0))
    with at_most(10 * SECONDS), pytest.raises(MalformedError, match="more attributes"):
        text_in(_with(typed, tmp_path, debug_info=info, debug_abbrev=many))


@pytest.mark.parametrize(("method", "size"), [(1, 1 << 40), (1, 10_000_000), (1, 5)])
def test_compressed_data_is_what_it_says_it_is(method: int, size: int, typed: Path, tmp_path: Path) -> None:
    packed = zlib.compress(b"\0" * 10_000_000)
    info = struct.pack("<IIQQ", method, 0, size, 1) + packed
    path = _with(typed, tmp_path, debug_info=info, debug_abbrev=ABBREVIATIONS)
    elf = Elf(path.read_bytes())
    elf.section(".debug_info")["flags"] |= 0x800
    path.write_bytes(elf.data)
    with at_most(10 * SECONDS), pytest.raises(MalformedError):
        text_in(path)


def test_data_in_a_compression_without_a_reader_says_nothing(typed: Path, tmp_path: Path) -> None:
    """That is what gcc 13 and later make with -gz=zstd."""
    info = struct.pack("<IIQQ", 2, 0, 100, 1) + bytes(20)
    path = _with(typed, tmp_path, debug_info=info, debug_abbrev=ABBREVIATIONS)
    elf = Elf(path.read_bytes())
    elf.section(".debug_info")["flags"] |= 0x800
    path.write_bytes(elf.data)
    assert text_in(path) is None
    with open_image(path) as image:
        assert "not compressed with zlib" in DwarfTypes(image).hint
