"""Images with any number of sites, made in memory: for growth, not for truth."""

import struct
import sys
from array import array
from pathlib import Path

BASE = 0x400000
CODE_OFFSET = 0x1000
SITE_SIZE = 7
SITES_PER_KEY = 2
TRAMPOLINE_SIZE = 8
KEY_SIZE = 16
SYMBOL = struct.Struct("<IBBHQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")


def write_image(path: Path, sites: int) -> None:
    """Write an executable with this many calls of half as many static calls, with table and symbols.

    Every call is followed by a nop of two bytes, so some cross a 64-byte line; nothing in it can run.
    """
    keys = max(1, sites // SITES_PER_KEY)
    code = BASE + CODE_OFFSET
    trampolines = (code + sites * SITE_SIZE + 7) & ~7
    function = trampolines + keys * TRAMPOLINE_SIZE
    data = (function + 16 + 0xFFF) & ~0xFFF
    table = data + keys * KEY_SIZE
    calls = b"".join(
        struct.pack("<Bi", 0xE8, trampolines + n % keys * TRAMPOLINE_SIZE - (code + n * SITE_SIZE + 5)) + b"\x66\x90"
        for n in range(sites)
    )
    jumps = b"".join(
        struct.pack("<Bi", 0xE9, function - (trampolines + n * TRAMPOLINE_SIZE + 5)) + b"\x0f\xb9\xcc"
        for n in range(keys)
    )
    text = (calls.ljust(trampolines - code, b"\xcc") + jumps + b"\xc3" * 16).ljust(data - code, b"\xcc")
    slots = struct.pack("<QQ", function, 0) * keys
    fields = array("i", bytes(8 * sites))
    if sys.byteorder != "little":
        raise SystemExit("the synthetic images are made on little-endian machines")
    for n in range(sites):
        fields[2 * n] = code + n * SITE_SIZE - (table + 8 * n)
        fields[2 * n + 1] = data + n % keys * KEY_SIZE - (table + 8 * n + 4)
    names, symbols = _symbols(keys, trampolines, data)
    contents = [
        (".text", 1, 0x6, code, text, 0),
        (".data", 1, 0x3, data, slots, 0),
        ("static_call_sites", 1, 0x2, table, fields.tobytes(), 0),
        (".symtab", 2, 0, 0, symbols, SYMBOL.size),
        (".strtab", 3, 0, 0, names, 0),
    ]
    _write(path, contents)


def _symbols(keys: int, trampolines: int, data: int) -> tuple[bytes, bytes]:
    names = bytearray(b"\0")
    symbols = bytearray(SYMBOL.size)
    for n in range(keys):
        for prefix, kind, section, address, size in (
            ("__SCT__", 2, 1, trampolines + n * TRAMPOLINE_SIZE, TRAMPOLINE_SIZE),
            ("__SCK__", 1, 2, data + n * KEY_SIZE, KEY_SIZE),
        ):
            symbols += SYMBOL.pack(len(names), 0x10 | kind, 0, section, address, size)
            names += f"{prefix}call{n}\0".encode()
    return bytes(names), bytes(symbols)


def _write(path: Path, contents: list[tuple[str, int, int, int, bytes, int]]) -> None:
    """Lay the sections out one behind the other; the loaded ones keep their distance from the base."""
    section_names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in contents) + b".shstrtab\0"
    body = bytearray(CODE_OFFSET)
    headers = [SECTION.pack(*[0] * 10)]
    loaded = 0
    for number, (name, kind, flags, address, content, entry_size) in enumerate(contents, 1):
        offset = len(body)
        body += content
        loaded = len(body) if flags else loaded
        link = number + 1 if name == ".symtab" else 0
        name_offset = section_names.index(name.encode() + b"\0")
        headers.append(
            SECTION.pack(name_offset, kind, flags, address, offset, len(content), link, int(kind == 2), 8, entry_size)
        )
    name_offset = section_names.index(b".shstrtab\0")
    headers.append(SECTION.pack(name_offset, 3, 0, 0, len(body), len(section_names), 0, 0, 1, 0))
    body += section_names
    sections_at = len(body)
    body += b"".join(headers)
    body[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1",
        2,
        62,
        1,
        0,
        64,
        sections_at,
        0,
        64,
        56,
        1,
        64,
        len(headers),
        len(headers) - 1,
    )
    body[64:120] = struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, loaded, loaded, 0x1000)
    path.write_bytes(body)


def write_object(path: Path, sites: int) -> None:
    """Write a relocatable object with this many calls of half as many static calls, without a table.

    As compilers leave it: displacements of zeros, a relocation for each, symbols that are defined elsewhere.
    """
    keys = max(1, sites // SITES_PER_KEY)
    text = (b"\xe8\0\0\0\0\x66\x90") * sites
    names = bytearray(b"\0")
    symbols = bytearray(SYMBOL.size) + SYMBOL.pack(0, 3, 0, 1, 0, 0)
    for n in range(keys):
        for prefix in ("__SCT__", "__SCK__"):
            symbols += SYMBOL.pack(len(names), 0x10, 0, 0, 0, 0)
            names += f"{prefix}call{n}\0".encode()
    # R_X86_64_PLT32 to the trampoline, the first symbol of each pair behind the section's.
    relocations = b"".join(
        struct.pack("<QQq", n * SITE_SIZE + 1, (2 + 2 * (n % keys)) << 32 | 4, -4) for n in range(sites)
    )
    contents = [
        (".text", 1, 0x6, text, 0, 0, 0),
        (".rela.text", 4, 0x40, relocations, 3, 1, 24),
        (".symtab", 2, 0, bytes(symbols), 4, 2, SYMBOL.size),
        (".strtab", 3, 0, bytes(names), 0, 0, 0),
    ]
    section_names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in contents) + b".shstrtab\0"
    contents.append((".shstrtab", 3, 0, section_names, 0, 0, 0))
    body = bytearray(64)
    headers = [SECTION.pack(*[0] * 10)]
    for name, kind, flags, content, link, info, entry_size in contents:
        body += bytes(-len(body) % 8)
        name_offset = section_names.index(name.encode() + b"\0")
        headers.append(SECTION.pack(name_offset, kind, flags, 0, len(body), len(content), link, info, 8, entry_size))
        body += content
    body += bytes(-len(body) % 8)
    header = (b"\x7fELF\2\1\1", 1, 62, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(headers), len(headers) - 1)
    body[:64] = struct.pack("<16sHHIQQQIHHHHHH", *header)
    path.write_bytes(body + b"".join(headers))
