"""The tables in which a kernel keeps its names, read back from kernels in each layout; damaged ones are refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from staticcall.errors import MalformedError
from staticcall.model.image import Image
from staticcall.read.image import open_image, read_image
from staticcall.read.kallsyms import read_kallsyms
from staticcall.read.object import BytesSource
from staticcall.read.spelling import Spelling
from tests.support import kallsyms
from tests.support.kallsyms import LAYOUTS, RODATA, TEXT, TEXT_SIZE, Layout, Symbol

# Read-only data around the tables: text, zeros, small numbers.
BEFORE = (b"Linux version 6.12.1 (a@b) (cc) #1\n\0" + bytes(range(1, 60)) * 3 + bytes(40)).ljust(512, b"\0")
BEHIND = bytes(range(16)) * 9


def symbols_of(count: int) -> list[Symbol]:
    return [Symbol(TEXT + 48 * n, "Tt"[n % 2], f"function_{n}_of_{count % 7}") for n in range(count)]


def built(symbols: Sequence[Symbol], layout: Layout, *, headers: bool = True) -> bytes:
    made = kallsyms.tables(symbols, layout, RODATA + len(BEFORE))
    return kallsyms.image(BEFORE + made.data + BEHIND, headers=headers)


def opened(data: bytes) -> Image:
    return read_image(Path("vmlinux"), BytesSource(data))


def listed(image: Image, symbols: Sequence[Symbol]) -> set[tuple[int, str]]:
    """Every address and name that the image has; some of those that may be asked for are asked for, too."""
    listing = read_kallsyms(image.source, image.sections, image.segments)
    if listing is None:
        return set()
    found = {(address, listing.name(number).decode()) for number, address in enumerate(listing.addresses)}
    for symbol in symbols[:: max(len(symbols) // 10, 1)]:
        named = {(other.address, other.name) for other in image.symbols.named(symbol.name)}
        assert named == {pair for pair in found if pair[1] == symbol.name}
        beginning = symbol.name[:-1].encode()
        longer = {(other.address, other.name) for other in image.symbols.matching([(beginning, (b"",))])}
        assert longer == {pair for pair in found if pair[1].startswith(symbol.name[:-1])}
        inner = {(other.address, other.name) for other in image.symbols.matching([(symbol.name[2:].encode(), (2,))])}
        assert inner == {pair for pair in found if pair[1][2:].startswith(symbol.name[2:]) and len(pair[1]) >= 2}
    return found


def pairs(symbols: Sequence[Symbol]) -> set[tuple[int, str]]:
    return {(symbol.address, symbol.name) for symbol in symbols}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("count", [20, 255, 256, 257, 2000])
def test_every_layout_is_read(layout: Layout, count: int) -> None:
    symbols = symbols_of(count)
    if layout.addresses in ("signed", "absolute"):
        symbols = [Symbol(0, "A", "fixed_percpu_data"), Symbol(0x1000, "A", "cpu_number"), *symbols]
    image = opened(built(symbols, layout))
    assert image.name_source.kind == "kallsyms"
    assert len(image.symbols) == len(symbols)
    assert listed(image, symbols) == pairs(symbols)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_section_headers_are_not_needed(layout: Layout) -> None:
    symbols = symbols_of(700)
    image = opened(built(symbols, layout, headers=False))
    assert (image.name_source.kind, image.sections) == ("kallsyms", ())
    assert listed(image, symbols) == pairs(symbols)


NAMES = st.text("abcxyz_019.$ABCTtDd", min_size=1, max_size=60)
LONG = st.integers(128, 500).map(lambda size: "".join(chr(65 + (size * n * n) % 26) for n in range(size)))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_little_evidence_never_gives_wrong_names(layout: Layout, count: int) -> None:
    symbols = symbols_of(count)
    image = opened(built(symbols, layout))
    assert listed(image, symbols) == (pairs(symbols) if image.name_source.kind == "kallsyms" else set())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    names=st.lists(NAMES | LONG, min_size=20, max_size=600),
    data=st.data(),
)
def test_any_names_are_read(layout: str, names: list[str], data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.integers(0, 5) | st.integers(1, 300), min_size=len(names), max_size=len(names)))
    letters = data.draw(st.lists(st.sampled_from("TtWDdRrBb"), min_size=len(names), max_size=len(names)))
    address, symbols = TEXT, [Symbol(TEXT, "T", "_text")]
    for name, letter, step in zip(names, letters, steps, strict=True):
        address += step
        symbols.append(Symbol(address, letter, name))
    image = opened(built(symbols, LAYOUTS[layout]))
    assert image.name_source.kind == "kallsyms"
    assert len(image.symbols) == len(symbols)
    assert listed(image, symbols) == pairs(symbols)


def test_a_symbol_reaches_to_the_next_one() -> None:
    symbols = [
        Symbol(TEXT, "T", "_stext"),
        Symbol(TEXT, "t", "first"),
        Symbol(TEXT + 0x10, "t", ".label"),
        Symbol(TEXT + 0x20, "W", "alias"),
        Symbol(TEXT + 0x20, "T", "second"),
        Symbol(TEXT + 0x40, "t", "third"),
        Symbol(RODATA, "D", "far_behind"),
    ]
    image = opened(built(symbols, LAYOUTS["6.4"]))
    inside = {0: "first", 0x1F: "first", 0x20: "second", 0x3F: "second", 0x40: "third", TEXT_SIZE - 1: "third"}
    for offset, name in inside.items():
        function = image.symbols.containing(TEXT + offset)
        assert function is not None, hex(offset)
        assert function.name == name
    # Behind its section no function reaches.
    assert image.symbols.containing(TEXT + TEXT_SIZE) is None
    assert image.symbols.names_at({TEXT, TEXT + 0x20}) == {TEXT: "first", TEXT + 0x20: "second"}


@pytest.mark.parametrize("layout", ["4.4", "4.20"])
def test_a_name_of_128_codes_has_one_byte_of_length_in_old_kernels(layout: str) -> None:
    """The longest that there was before 6.1: 127 characters and the letter, none of which share a text."""
    long = "".join(chr(65 + 7 * n % 26) for n in range(127))
    symbols = [*symbols_of(300), Symbol(TEXT + 48 * 300, "T", long), Symbol(TEXT + 48 * 301, "T", "last")]
    made = kallsyms.tables(symbols, LAYOUTS[layout])
    start, stop = made.at["names"], made.at["markers"]
    names = made.data[start:stop].replace(b"\x80\x01T", b"\x80T")
    names = names.ljust(stop - start, b"\0")  # one byte less: so the padding grows
    data = made.data[:start] + names + made.data[stop:]
    assert data != made.data
    padding = len(names) - len(names.rstrip(b"\0"))
    assert padding < 8
    image = opened(kallsyms.image(data))
    assert image.name_source.kind == "kallsyms"
    assert listed(image, symbols) == pairs(symbols)


# Damage


def _damaged(table: str, offset: int, layout: Layout = LAYOUTS["6.4"]) -> Image:
    """A kernel of which one byte is another one."""
    symbols = symbols_of(1000)
    made = kallsyms.tables(symbols, layout, RODATA + len(BEFORE))
    data = bytearray(made.data)
    data[made.at[table] + offset] ^= 0x55
    return opened(kallsyms.image(BEFORE + bytes(data) + BEHIND))


@pytest.mark.parametrize(
    ("table", "offset"),
    [
        *(("count", 0), ("count", 2), ("names", 0), ("markers", 0), ("markers", 4), ("markers", 13)),
        *(("index", 2), ("index", 510), ("addresses", 403), ("base", 7)),
    ],
)
def test_tables_that_disagree_name_nothing(table: str, offset: int) -> None:
    assert _damaged(table, offset).name_source.kind == "none"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_sets_of_tables_name_nothing(layout: Layout) -> None:
    one = kallsyms.tables(symbols_of(300), layout).data
    one += bytes(-len(one) % 16)
    two = kallsyms.tables(symbols_of(301), layout, RODATA + len(one)).data
    assert opened(kallsyms.image(one)).name_source.kind == "kallsyms"
    assert opened(kallsyms.image(one + two)).name_source.kind == "none"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(LAYOUTS)), st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1)), max_size=4)
)
def test_damage_never_does_more_than_change_names(layout: str, spoils: list[tuple[int, bytes]]) -> None:
    data = bytearray(kallsyms.tables(symbols_of(600), LAYOUTS[layout], RODATA).data)
    for place, piece in spoils:
        at = place % len(data)
        data[at : at + len(piece)] = piece[: len(data) - at]
    image = opened(kallsyms.image(bytes(data)))
    assert image.name_source.kind in ("kallsyms", "none")
    assert len(image.symbols) in (0, 600)


def test_names_that_would_fill_the_memory_are_not_spelt() -> None:
    symbols = symbols_of(5000)
    made = kallsyms.tables(symbols, LAYOUTS["4.20"])
    start, stop = made.at["names"], made.at["markers"]
    names = made.data[start:stop]
    # A text of nearly all that an index can reach, in place of one that many names use.
    texts = made.data[made.at["texts"] : made.at["index"]].split(b"\0")[:256]
    long = max((code for code in range(256) if len(texts[code]) > 1), key=names.count)
    assert 60000 * names.count(long) > 1 << 27
    texts[long] = b"x" * 60000
    table = b"".join(text + b"\0" for text in texts)
    places = [sum(len(text) + 1 for text in texts[:number]) for number in range(256)]
    index = b"".join(place.to_bytes(2, "little") for place in places)
    head = made.data[: made.at["texts"]] + table
    begin = time.monotonic()
    assert opened(kallsyms.image(head + bytes(-len(head) % 8) + index)).name_source.kind == "none"
    assert time.monotonic() - begin < 20


def test_all_names_at_once_are_no_more_than_a_kernel_has() -> None:
    spelling = Spelling(b"\1" * 4, [0] * 200_000, [3] * 200_000, [b"", b"T" + b"x" * 400, *[b""] * 254])
    assert spelling.starts([(b"xxx", (b"",))])
    with pytest.raises(MalformedError, match="more names than any kernel"):
        spelling.starts([(b"xxx", (2,))])


def test_many_alphabets_take_no_time() -> None:
    alphabet = b"".join(bytes([code, 0]) for code in range(1, 128))
    begin = time.monotonic()
    assert opened(kallsyms.image(alphabet * 20000)).name_source.kind == "none"
    assert time.monotonic() - begin < 20


def test_a_program_is_not_searched(tmp_path: Path) -> None:
    """The same tables in what is no kernel are nothing but its data."""
    data = bytearray(built(symbols_of(300), LAYOUTS["6.4"]))
    for place in range(64, 64 + 2 * 56, 56):
        data[place + 16 : place + 32] = (int.from_bytes(data[place + 16 : place + 24], "little") & 0xFFFFFFFF).to_bytes(
            8, "little"
        ) * 2
    path = tmp_path / "program"
    path.write_bytes(data)
    with open_image(path) as image:
        assert (image.kernel, image.name_source.kind) == (False, "none")
