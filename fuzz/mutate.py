"""Damage to a file that keeps most of it sound, so that it gets far before it is noticed.

    mutated(Random(1), Sample(content, regions_of(content)), others)

A mutation is one of a few kinds: a field set to a number that tells, or moved by a little, or taken from another
entry; entries copied, swapped, cleared; code replaced by other code; self-relative words led elsewhere; names
changed; regions put over others; tables grown by thousands of entries; the end cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, NamedTuple

from fuzz.regions import Map, Region

_TOKEN = re.compile(rb'"[^"\n]*"|[0-9]+|true|false|[a-z]+(?= *=)')
_TELLING: Final = tuple(
    sorted(
        {0, 1, 2, 3, 4, 7, 8, 24, 0xFF00, 0xFFF1, 0xFFFF, 1 << 20, 0x6FFFFFFF}
        | {(1 << bits) + by for bits in (7, 8, 15, 16, 31, 32, 47, 63, 64) for by in (-8, -1, 0, 1)}
    )
)
_STEPS: Final = (-4096, -64, -24, -16, -8, -5, -4, -2, -1, 1, 2, 4, 5, 8, 16, 24, 64, 4096)
# Beginnings of instructions and whole ones, as they stand at sites and in trampolines, and some that do not.
CODE: Final = tuple(
    bytes.fromhex(text)
    for text in (
        *(
            "e8",
            "e9",
            "eb",
            "0f80",
            "0f84",
            "0f8f",
            "74",
            "ff15",
            "ff25",
            "ffe0",
            "2ee8",
            "67e8",
            "66e8",
            "f2e9",
            "48e8",
        ),
        *("0f1f440000", "c3cccccccc", "c3cc909090", "2e2e2e31c0", "66664831c0", "0fb9cc", "534354", "67480fb93a"),
        *(
            "e800000000",
            "e9ffffff7f",
            "e900000080",
            "cc",
            "c3",
            "9090909090",
            "f30f1efa",
            "0f0b",
            "26",
            "2e",
            "64",
            "f0",
        ),
        *("c8ffffff", "62f17c48", "c5f877", "c4e27918", "0f38f0", "0f3a0f", "ea", "d6", "06", "8d05", "31c0c3", "6a"),
        *("48b8", "a1", "f7c0", "69c0", "8184", "678d8480", "0f01", "0fae", "8f", "c7f8", "e3fe", "e0fe"),
    )
)
NAMES: Final = (
    *(b"__SCT__", b"__SCK__", b"__SCT__a", b"__SCK__a", b"____static_call_tramp_", b"__static_call_tramp_"),
    *(b"__static_call_return0", b"__static_call_return", b"__x86_return_thunk", b"linux_banner", b"xor5rax", b".L0"),
    *(b"__start_static_call_sites", b"__stop_static_call_sites", b"static_call_sites", b".static_call_sites"),
    *(b"__start_static_call_tramp_key", b".rela.static_call_sites", b".symtab", b".strtab", b".BTF", b".debug_info"),
    *(b"__start___jump_table", b"__stop___jump_table", b"__start___ex_table", b".altinstructions", b"__kcfi_typeid_a"),
    *(
        b"\n",
        b"\x1b[2J",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"../../x",
        b"/",
        b"%s%n",
        b"=",
        b"RET0",
        b"NULL",
    ),
)
TEXTS: Final = (
    *(
        "-",
        "-1",
        "0",
        "1",
        "9" * 30,
        "9" * 5000,
        "1e999",
        "NaN",
        "Infinity",
        "null",
        "true",
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
    ),
    *(
        ":",
        ".",
        "\\",
        "\\u0000",
        "\\ud800",
        "\0",
        "\n",
        "\x1b",
        "\x85",
        "\u202e",
        "\ud800",
        "0x",
        "=",
        "#",
        "'''",
        '""',
        "é",
    ),
    *("[" * 3000, "{" * 3000, '{"a":' * 2000, "[set]", "[[a]]", "a.b.c = 1", '"file_offset": 18446744073709551616'),
    *(
        '"old": ""',
        '"new": "0"',
        '"edits": []',
        "schema_version",
        "policy",
        "bind = 1",
        "line = 0",
        "1979-05-27T07:32:00Z",
    ),
)


class Sample(NamedTuple):
    """A sound file and its map."""

    content: bytes
    map: Map


def mutated(random: Random, sample: Sample, others: Sequence[Sample] = (), *, big: bool = True) -> bytes:
    """A copy with one to eight mutations, mostly few; `others` are files whose parts may come in."""
    data = bytearray(sample.content)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4, 8))):
        mutate(random, data, sample.map, others, big=big)
    return bytes(data)


def mutate(random: Random, data: bytearray, known: Map, others: Sequence[Sample] = (), *, big: bool = True) -> None:
    """Do one mutation in place; `known` is the map of the file that `data` comes from."""
    regions = [region for region in known.regions if region.offset + region.step <= len(data)]
    if not regions:
        data += random.randbytes(random.randrange(1, 9))
        return
    region = random.choice(regions)
    if region.name == "text":
        _text(random, data)
        return
    if region.name.endswith("digits") and random.random() < 0.8:
        _digits(random, data, region)
        return
    draw = random.randrange(1000)
    for limit, one in _KINDS:
        if draw < limit:
            one(random, data, region, known)
            return
    if draw < 960 and others:
        _from_other(random, data, region, random.choice(others))
    elif draw < 970 and big:
        _grow(random, data, random.choice(regions), known)
    elif draw < 985:
        del data[max(1, _near(random, random.choice(known.numbers)) % (len(data) + 1)) :]
    else:
        data += random.choice((b"\0", b"\xff", random.randbytes(7))) * random.randrange(1, 99)


# ---- fields and entries ----


def _place(random: Random, data: bytearray, region: Region) -> tuple[int, int]:
    """Offset and size of one field of one entry."""
    count = max(1, min(region.size, len(data) - region.offset) // region.step)
    at, size = random.choice(region.fields)
    return region.offset + random.randrange(count) * region.step + at, size


def _put(data: bytearray, at: int, size: int, number: int) -> None:
    if at + size <= len(data):
        data[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")


def _number(data: bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _near(random: Random, number: int) -> int:
    return number + random.choice((0, 0, 0, -1, 1, -8, 8))


def _telling(random: Random, data: bytearray, region: Region, known: Map) -> None:
    at, size = _place(random, data, region)
    number = random.choice(_TELLING) if random.random() < 0.4 else _near(random, random.choice(known.numbers))
    _put(data, at, size, number)


def _digits(random: Random, data: bytearray, region: Region) -> None:
    """Another number or name in a header that is text, of the same width."""
    at, size = _place(random, data, region)
    form = random.choice(("0{}x", "0{}X", "0{}o", "<{}"))
    number = random.choice((*_TELLING, *range(24), len(data), len(data) - at))
    if random.random() < 0.3:
        text = random.choice((*NAMES, b"TRAILER!!!", b"boot/file.ko", b"", b"-1", b"\0", b"\x80\0\0\0\0\0\0\x01"))
        text = text[:size].ljust(size, random.choice((b"\0", b" ")))
    else:
        text = format(number, form.format(size)).encode()[:size].ljust(size, b" ")
    if at + size <= len(data):
        data[at : at + size] = text


def _small(random: Random, data: bytearray, region: Region, _: Map) -> None:
    at, size = _place(random, data, region)
    _put(data, at, size, random.randrange(48))


def _step(random: Random, data: bytearray, region: Region, _: Map) -> None:
    at, size = _place(random, data, region)
    _put(data, at, size, _number(data, at, size) + random.choice(_STEPS))


def _bit(random: Random, data: bytearray, region: Region, _: Map) -> None:
    at, size = _place(random, data, region)
    _put(data, at, size, _number(data, at, size) ^ 1 << random.randrange(8 * size))


def _borrow(random: Random, data: bytearray, region: Region, _: Map) -> None:
    """The same field of another entry."""
    at, size = _place(random, data, region)
    count = max(1, region.size // region.step)
    other = at + random.randrange(-count, count) * region.step
    if region.offset <= other <= region.offset + region.size - size:
        _put(data, at, size, _number(data, other, size))


def _entry(random: Random, data: bytearray, region: Region, _: Map) -> None:
    """Copy, swap or clear entries, or move the rest of them up by one."""
    count = max(1, min(region.size, len(data) - region.offset) // region.step)
    one, other = (region.offset + random.randrange(count) * region.step for _ in range(2))
    first, second = bytes(data[one : one + region.step]), bytes(data[other : other + region.step])
    kind = random.randrange(4)
    if kind == 0:
        data[one : one + len(second)] = second
    elif kind == 1 and len(first) == len(second):
        data[one : one + len(first)], data[other : other + len(second)] = second, first
    elif kind == 2:
        data[one : one + len(first)] = random.choice((b"\0", b"\xff")) * len(first)
    else:
        end = region.offset + count * region.step
        rest = bytes(data[one : end - region.step])
        data[one + region.step : one + region.step + len(rest)] = rest


def _overlay(random: Random, data: bytearray, region: Region, known: Map) -> None:
    """A piece of one region over another, or the whole table filled with one byte."""
    if random.random() < 0.2:
        data[region.offset : region.offset + region.size] = random.choice((b"\0", b"A", b"\xff", b"\x80")) * region.size
        return
    other = random.choice(known.regions)
    at = region.offset + random.randrange(max(1, region.size // region.step)) * region.step
    piece = data[other.offset : other.offset + min(other.size, random.choice((4, 8, 24, 64, 512)))]
    piece = piece[: max(0, len(data) - at)]
    data[at : at + len(piece)] = piece


def _code(random: Random, data: bytearray, region: Region, known: Map) -> None:
    """Other instructions where some are that mean something."""
    at = _near(random, random.choice(known.code or range(region.offset, region.offset + region.size)))
    piece = random.choice(CODE)
    if at >= 0 and at + len(piece) <= len(data):
        data[at : at + len(piece)] = piece


def _relative(random: Random, data: bytearray, region: Region, known: Map) -> None:
    """A self-relative word that leads to another place that means something, or gets other flags."""
    if not known.records:
        _telling(random, data, region, known)
        return
    at, address = random.choice(known.records)
    if random.random() < 0.3:
        _put(data, at, 4, _number(data, at, 4) ^ random.choice((1, 2, 3)))
    else:
        _put(data, at, 4, _near(random, random.choice(known.numbers)) - address)


def _name(random: Random, data: bytearray, region: Region, known: Map) -> None:
    """Another name in a table of strings, or one that runs on into the next."""
    tables = [one for one in known.regions if one.name.endswith(("strtab", "dynstr", ".debug_str"))] or [region]
    table = random.choice(tables)
    at = table.offset + random.randrange(table.size)
    if random.random() < 0.5:
        at = data.find(b"\0", at) + 1 or at
    name = random.choice(NAMES) + (b"\0" if random.random() < 0.3 else b"")
    if at + len(name) <= len(data):
        data[at : at + len(name)] = name
    elif at < len(data):
        data[at] = random.randrange(256)


_KINDS: Final[Sequence[tuple[int, Callable[[Random, bytearray, Region, Map], None]]]] = (
    (250, _telling),
    (330, _small),
    (450, _step),
    (550, _bit),
    (610, _borrow),
    (680, _entry),
    (730, _overlay),
    (830, _code),
    (890, _relative),
    (940, _name),
)


# ---- larger damage ----


def _from_other(random: Random, data: bytearray, region: Region, other: Sample) -> None:
    """A region of the same name, or any, out of another file."""
    named = [one for one in other.map.regions if one.name == region.name] or other.map.regions
    source = random.choice(named)
    piece = other.content[source.offset : source.offset + source.size][: region.size]
    piece = piece[: max(0, len(data) - region.offset)]
    data[region.offset : region.offset + len(piece)] = piece


def _grow(random: Random, data: bytearray, region: Region, known: Map) -> None:
    """A table with very many entries, at the end of the file; its section's header says so."""
    if data[:4] != b"\x7fELF" or region.name in ("header", "section headers"):
        return
    headers = [
        at
        for at in range(known.header, len(data) - 63, 64)
        if _number(data, at + 24, 8) == region.offset and _number(data, at + 32, 8) == region.size
    ]
    held = bytes(data[region.offset : region.offset + region.size])
    # A kernel has some 8,000 records; each site takes its time. What is read in bulk may be larger.
    bulk = region.name.endswith(("symtab", "strtab", "dynsym", "dynstr", "notes")) or region.name.startswith(
        (".debug", ".BTF")
    )
    sizes = (1 << 14, 1 << 16, 1 << 18) if bulk else (1 << 12, 1 << 14, 1 << 16)
    size = random.choice(sizes)
    entry = held[region.step * random.randrange(max(1, len(held) // region.step)) :][: region.step] or b"\0"
    more = random.choice((entry, held, bytes(region.step)))
    grown = held + more * (size // len(more))
    data += bytes(-len(data) % 16)
    for at in headers[:1]:
        _put(data, at + 24, 8, len(data))
        _put(data, at + 32, 8, len(grown))
    data += grown


def _text(random: Random, data: bytearray) -> None:
    """A few letters of a document gone, others there; or a whole value that became another one."""
    tokens = [match.span() for match in _TOKEN.finditer(data)]
    if tokens and random.random() < 0.5:
        start, end = random.choice(tokens)
        data[start:end] = _token(random, bytes(data[start:end]), bytes(data[slice(*random.choice(tokens))]))
        return
    at = random.randrange(len(data) + 1)
    kind = random.randrange(5)
    if kind == 0:
        data[at:at] = data[at : at + random.randrange(40)]
    elif kind == 1:
        del data[at : at + random.choice((1, 2, 8, 64, 1 << 20))]
    elif kind == 2 and at < len(data):
        data[at] = random.randrange(256)
    else:
        data[at : at + random.randrange(12)] = random.choice(TEXTS).encode("utf-8", "surrogatepass")


def _token(random: Random, old: bytes, other: bytes) -> bytes:
    """Another value of the same kind, or one from elsewhere in the document."""
    kind = random.randrange(3)
    if kind == 0:
        return other
    if old.isdigit():
        return b"%d" % (int(old[:99]) + random.choice((*_STEPS, 1 << 31, 1 << 63, -(1 << 40))))
    inner = bytearray(old.strip(b'"'))
    if inner and kind == 1:
        at = random.randrange(len(inner))
        inner[at : at + random.choice((0, 1, 1, 2))] = random.choice((b"", b"0", b"a", b"f", b"00", b"ff", b"g"))
    else:
        inner = bytearray(
            random.choice((b"", b"..", b"0", bytes(inner) * 2, b"e8" * 99, b"../../etc/passwd", b"/dev/null"))
        )
    return b'"%s"' % bytes(inner)
