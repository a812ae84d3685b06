"""Small kernels with the tables that scripts/kallsyms.c makes, in the layouts of many versions; for reading them back.

Each layout is put down here as that program prints it: the order of the tables, how wide their fields are, and how they
are aligned. The compression is one of its own: any choice of texts will do, as long as single characters stand for
themselves.

    image(symbols, LAYOUTS["5.10"])    an ELF file with nothing but such tables and some code
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

TEXT, RODATA = 0xFFFFFFFF81000000, 0xFFFFFFFF81200000
TEXT_SIZE: Final = 0x30000
_PAGE: Final = 0x1000
_DIGITS_AND_LETTERS: Final = b"0123456789TtDd_abcdefghijklmnopqrstuvwxyz"


class Symbol(NamedTuple):
    address: int
    letter: str
    name: str


class Layout(NamedTuple):
    """What differs between versions.

    `addresses` is "absolute", "signed" (absolute ones are not negative), "plain" or "place"; `first` tells whether they
    stand before all else. `count_size` and `marker_size` are in bytes, `by_name` that of an entry by name, which stands
    behind the markers or behind the addresses.
    """

    addresses: str
    first: bool
    count_size: int
    marker_size: int
    by_name: int = 0
    align: int = 8


LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType(
    {
        "4.4": Layout("absolute", True, 8, 8),
        "4.6": Layout("signed", True, 8, 8),
        "4.6, no absolute per-CPU symbols": Layout("plain", True, 8, 8),
        "4.20": Layout("signed", True, 4, 4),
        "4.20, not relative": Layout("absolute", True, 4, 4),
        "6.2": Layout("signed", True, 4, 4, by_name=3),
        "6.4": Layout("signed", False, 4, 4, by_name=3),
        "6.4, not relative": Layout("absolute", False, 4, 4, by_name=3),
        "6.15": Layout("plain", False, 4, 4, by_name=3),
        "7.2": Layout("place", False, 4, 4, by_name=3, align=4),
    }
)


class Tables(NamedTuple):
    """The bytes from some address on, and the offset of each table in them."""

    data: bytes
    at: Mapping[str, int]


def tables(symbols: Sequence[Symbol], layout: Layout, address: int = RODATA) -> Tables:
    """All tables, as they would lie at an address; the symbols come in ascending order of theirs."""
    texts = _texts(symbol.letter + symbol.name for symbol in symbols)
    names, markers = _names(symbols, texts, layout.marker_size)
    middle = [("count", len(symbols).to_bytes(layout.count_size, "little")), ("names", names), ("markers", markers)]
    ends = [("texts", b"".join(text + b"\0" for text in texts)), ("index", _index(texts))]
    order = sorted(range(len(symbols)), key=lambda number: symbols[number].name)
    by_name = [("by_name", b"".join(number.to_bytes(3, "big") for number in order))] if layout.by_name else []
    if layout.first:
        return _put([*_addresses(symbols, layout, 0), *middle, *by_name, *ends], layout.align)
    # Where the addresses are does not depend on what they are.
    at = _put([*middle, *ends, ("here", b"")], layout.align).at["here"]
    return _put([*middle, *ends, *_addresses(symbols, layout, address + at), *by_name], layout.align)


def _put(pieces: Iterable[tuple[str, bytes]], align: int) -> Tables:
    data, at = b"", {}
    for name, piece in pieces:
        data += bytes(-len(data) % align)
        at[name] = len(data)
        data += piece
    return Tables(data, at)


def _texts(lines: Iterable[str]) -> list[bytes]:
    """What each of the 256 codes stands for: every character that occurs for itself, all others for frequent pieces."""
    lines = list(lines)
    used = {ord(character) for character in set("".join(lines))} | set(_DIGITS_AND_LETTERS)
    del lines[200:]  # enough to see what is frequent
    pieces = Counter(line[at : at + size] for line in lines for size in (2, 3, 7) for at in range(len(line) - size + 1))
    frequent = [piece.encode() for piece, _ in sorted(pieces.items(), key=lambda pair: (-pair[1], pair[0]))]
    free = [code for code in range(256) if code not in used]
    texts = [bytes([code]) for code in range(256)]
    for code, text in zip(free, [*frequent, *[b""] * 256], strict=False):
        texts[code] = text
    return texts


def _names(symbols: Sequence[Symbol], texts: Sequence[bytes], width: int) -> tuple[bytes, bytes]:
    codes = {text: code for code, text in enumerate(texts) if text}
    names, markers = bytearray(), bytearray()
    for number, symbol in enumerate(symbols):
        if number % 256 == 0:
            markers += len(names).to_bytes(width, "little")
        line = (symbol.letter + symbol.name).encode()
        coded = bytearray()
        while line:
            size = next(size for size in (7, 3, 2, 1) if line[:size] in codes)
            coded.append(codes[line[:size]])
            line = line[size:]
        # One byte, or seven bits and then the rest.
        names += bytes([len(coded)] if len(coded) < 128 else [len(coded) & 127 | 128, len(coded) >> 7])
        names += coded
    return bytes(names), bytes(markers)


def _index(texts: Sequence[bytes]) -> bytes:
    places, place = [], 0
    for text in texts:
        places.append(place)
        place += len(text) + 1
    return struct.pack("<256H", *places)


def _addresses(symbols: Sequence[Symbol], layout: Layout, at: int) -> list[tuple[str, bytes]]:
    values = [symbol.address for symbol in symbols]
    if layout.addresses == "absolute":
        return [("addresses", struct.pack(f"<{len(values)}Q", *values))]
    if layout.addresses == "place":
        offsets = [value - (at + 4 * number) for number, value in enumerate(values)]
        return [("addresses", struct.pack(f"<{len(values)}i", *offsets))]
    base = min((value for value in values if value >> 32), default=0)
    if layout.addresses == "plain":
        packed = struct.pack(f"<{len(values)}I", *(value - base for value in values))
    else:
        packed = struct.pack(f"<{len(values)}i", *(base - value - 1 if value >> 32 else value for value in values))
    return [("addresses", packed), ("base", struct.pack("<Q", base))]


def image(rodata: bytes, *, headers: bool = True) -> bytes:
    """A kernel of some empty code, at `TEXT`, and of this read-only data at `RODATA`."""
    names = b"\0.text\0.rodata\0.shstrtab\0"
    text_at, rodata_at = _PAGE, _PAGE + TEXT_SIZE
    names_at = rodata_at + len(rodata)
    sections_at = names_at + len(names) + -(names_at + len(names)) % 8
    segments = [(5, text_at, TEXT, TEXT_SIZE), (4, rodata_at, RODATA, len(rodata))]
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, 1, 6, TEXT, text_at, TEXT_SIZE),
        (7, 1, 2, RODATA, rodata_at, len(rodata)),
        (15, 3, 0, 0, names_at, len(names)),
    ]
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    count = len(sections) if headers else 0
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, TEXT, 64, sections_at if headers else 0, 0, 64, 56, 2, 64, count, count and 3
    )
    header += b"".join(
        struct.pack("<IIQQQQQQ", 1, flags, at, address, address, size, size, _PAGE)
        for flags, at, address, size in segments
    )
    data = header + bytes(text_at - len(header)) + b"\xcc" * TEXT_SIZE + rodata + names
    data += bytes(sections_at - len(data))
    return data + b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, flags, address, at, size, 0, 0, 1, 0)
        for name, kind, flags, address, at, size in sections
    )
