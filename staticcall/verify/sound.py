"""Headers that contradict themselves or their file, found before anything is made of them."""

from __future__ import annotations

from typing import Any

from staticcall.errors import MalformedError
from staticcall.verify.source import Source

_ADDRESSES = 1 << 64
_SYMBOL_SIZE = 24


def check_headers(source: Source, header: Any, sections: list[Any], segments: list[Any]) -> None:
    """Raise `MalformedError` for headers that no linker writes; all are pyelftools' structures."""
    if not header["e_ident"]["EI_VERSION"] == header["e_version"] == "EV_CURRENT":
        raise MalformedError("an unknown ELF version", path=source.path, offset=20)
    for s in sections[1:]:
        if s["sh_type"] != "SHT_NOBITS":
            _check_inside(source, "a section", s["sh_offset"], s["sh_size"])
    for p in segments:
        _check_inside(source, "a segment", p["p_offset"], p["p_filesz"])
        past = p["p_vaddr"] + p["p_memsz"] > _ADDRESSES
        if p["p_type"] == "PT_LOAD" and (past or p["p_filesz"] > p["p_memsz"]):
            raise MalformedError(
                f"a segment at {p['p_vaddr']:#x} that does not fit in memory", path=source.path, offset=p["p_offset"]
            )
    _check_symbols(source, sections)


def _check_inside(source: Source, what: str, offset: int, size: int) -> None:
    if offset + size > source.size:
        raise MalformedError(f"{what} runs past the end of the file", path=source.path, offset=offset)


def _check_symbols(source: Source, sections: list[Any]) -> None:
    tables = [s for kind in ("SHT_SYMTAB", "SHT_DYNSYM") for s in sections if s["sh_type"] == kind and s["sh_size"]]
    for table in tables[:1]:  # the one that is read
        link = table["sh_link"]
        strings = sections[link]["sh_type"] if link < len(sections) else None
        if strings != "SHT_STRTAB" or table["sh_entsize"] != _SYMBOL_SIZE or table["sh_size"] % _SYMBOL_SIZE:
            raise MalformedError("a broken symbol table", path=source.path, offset=table["sh_offset"])
