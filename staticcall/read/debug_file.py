"""Names from separate debug data: a file that the user names, or one that lies where debuggers look for it.

Which file belongs to which is told by the build id in both. A file of debug data has the sections of its image, without
what is in them, and the symbol table that was stripped from it; nothing else is read here. An unstripped twin will do
as well. Sources: "Debugging Information in Separate Files" in gdb's documentation; the build id's in Fedora's wiki.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from staticcall.abi import elf64
from staticcall.errors import StaticcallError, UnsupportedError, about
from staticcall.model.image import ByteSource
from staticcall.model.symbols import SymbolTable
from staticcall.read.bare import Bare, check_names
from staticcall.read.elf_symbols import read_table
from staticcall.read.headers import read_header, read_sections
from staticcall.read.inputs import open_input
from staticcall.read.notes import build_id_of

SYSTEM_DEBUG_DIR: Final = Path("/usr/lib/debug")
_LINK_SECTION: Final = ".gnu_debuglink"
_LARGEST_LINK: Final = 4096
_CHUNK: Final = 1 << 20


def read_debug_file(path: Path, bare: Bare) -> SymbolTable:
    """The symbol table of a file that the user says belongs to an image.

    Raises `UnsupportedError` where the build ids differ or it has no symbol table, and otherwise as `open_image` does.
    """
    with about(path), open_input(path) as (source, _):
        return _read(source, bare)


def find_debug_file(folder: Path, bare: Bare) -> tuple[SymbolTable, Path] | None:
    """The symbol table of the file that a folder of debug data has for an image, and that file; None if it has none."""
    for path in _candidates(folder, bare):
        found = _tried(path, bare)
        if found is not None:
            return found, path
    return None


def follow_debug_link(image: Path, bare: Bare) -> tuple[SymbolTable, Path] | None:
    """The same for the file that the image itself names, beside it or in the folder `.debug` there."""
    section = next((s for s in bare.sections if s.name == _LINK_SECTION and s.size <= _LARGEST_LINK), None)
    if section is None or section.type != elf64.SHT_PROGBITS or not image.is_file():
        return None
    # The name, a zero byte, up to three more, and a CRC-32 of the whole other file.
    data = bare.source.read(section.offset, section.size)
    name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if not name or "/" in name or name in (".", "..") or len(data) < elf64.WORD.size:
        return None
    (crc,) = elf64.WORD.unpack(data[-elf64.WORD.size :])
    for path in (image.parent / name, image.parent / ".debug" / name):
        if path.is_file() and not path.samefile(image):
            found = _tried(path, bare, crc)
            if found is not None:
                return found, path
    return None


def _candidates(folder: Path, bare: Bare) -> Iterator[Path]:
    """Where a file may be: by its build id, and a kernel also where Debian and Fedora put it."""
    if not bare.build_id:
        return
    yield folder / ".build-id" / bare.build_id[:2] / f"{bare.build_id[2:]}.debug"
    release = bare.release()
    if release is not None:
        yield folder / "boot" / f"vmlinux-{release}"
        yield folder / "lib" / "modules" / release / "vmlinux"


def _tried(path: Path, bare: Bare, crc: int | None = None) -> SymbolTable | None:
    """The table of a file that nobody named: one that does not fit, or cannot be read, is passed over."""
    try:
        if not path.is_file():
            return None
        with about(path), open_input(path) as (source, _):
            if crc is not None and _crc_of(source) != crc:
                return None
            return _read(source, bare, linked=crc is not None)
    except (StaticcallError, OSError):
        return None


def _crc_of(source: ByteSource) -> int:
    crc = 0
    for offset in range(0, source.size, _CHUNK):
        crc = zlib.crc32(source.read(offset, min(_CHUNK, source.size - offset)), crc)
    return crc


def _read(source: ByteSource, bare: Bare, *, linked: bool = False) -> SymbolTable:
    header = read_header(source)
    sections = read_sections(source, header)
    build_id = build_id_of(source, sections, ())
    if build_id != bare.build_id or (build_id is None and not linked):
        raise UnsupportedError(
            f"has {_said(build_id)}, the file that it shall name has {_said(bare.build_id)}",
            advice="give the debug file of this very build",
        )
    symbols = next((s for s in sections if s.type == elf64.SHT_SYMTAB and s.size), None)
    if symbols is None:
        raise UnsupportedError("has no symbol table", advice="give a debug file that was not stripped itself")
    table = read_table(source, sections, symbols)
    source.check_unchanged()
    check_names(bare, table)
    return table


def _said(build_id: str | None) -> str:
    return f"build id {build_id}" if build_id else "no build id"
