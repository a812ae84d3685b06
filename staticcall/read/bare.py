"""What is known of a linked file before it has names, and whether names that come from elsewhere are its own."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from staticcall.abi import elf64, static_call
from staticcall.errors import UnsupportedError
from staticcall.model.image import ByteSource, Section, Segment
from staticcall.model.symbols import Symbol, SymbolTable

_BANNER: Final = b"Linux version "
_RELEASE: Final = re.compile(rb"Linux version ([\w.+~-]{1,200}) ")
_RODATA: Final = ".rodata"
# jmp, ret and call, which a trampoline may begin with.
_FIRST_BYTES: Final = b"\xe9\xc3\xe8"
_TABLE_ENDS: Final = (static_call.TABLE_START, static_call.TABLE_STOP)
_ADVICE: Final = "give the names of this very build, with addresses that nothing has moved"


class Bare(NamedTuple):
    """A linked file without names."""

    source: ByteSource
    elf_type: int
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]
    build_id: str | None

    @property
    def loads(self) -> list[Segment]:
        """What is loaded."""
        return [segment for segment in self.segments if segment.type == elf64.PT_LOAD]

    @property
    def kernel(self) -> bool:
        """As `Image.kernel`."""
        return any(segment.address >> 63 for segment in self.loads if segment.file_size)

    def bytes_at(self, address: int, size: int) -> bytes | None:
        """What the file has at a linked address; None where it has less."""
        for segment in self.loads:
            if segment.address <= address and address + size <= segment.address + segment.file_size:
                return self.source.read(segment.offset + address - segment.address, size)
        return None

    def bounds(self) -> set[int]:
        """Addresses that no symbol reaches across: the ends of sections, or of segments where there are none."""
        alive = elf64.SHF_ALLOC
        ends = {s.address + s.size for s in self.sections if s.flags & alive and not s.flags & elf64.SHF_TLS}
        return ends or {segment.address + segment.memory_size for segment in self.loads}

    def release(self) -> str | None:
        """A kernel's release, such as 6.12.1-amd64, out of its banner."""
        section = next((s for s in self.sections if s.name == _RODATA and s.type == elf64.SHT_PROGBITS), None)
        if section is None or not self.kernel:
            return None
        found = _RELEASE.search(self.source.read(section.offset, section.size))
        return found[1].decode() if found else None


def check_names(bare: Bare, symbols: SymbolTable) -> None:
    """Raise `UnsupportedError` where names cannot be this file's: what they name looks otherwise."""
    named = symbols.matching(static_call.SYMBOL_STEMS)
    for symbol in named:
        if symbol.name == static_call.BANNER_SYMBOL and bare.kernel:
            text = bare.bytes_at(symbol.address, len(_BANNER))
            if text != _BANNER:
                raise _foreign(symbol, "is no banner of Linux")
        elif symbol.name.startswith(static_call.TRAMPOLINE_PREFIX):
            code = bare.bytes_at(symbol.address, static_call.TRAMPOLINE_SIZE)
            if code is None or not _may_be_trampoline(code):
                raise _foreign(symbol, "is no trampoline")
        elif symbol.name in _TABLE_ENDS and bare.bytes_at(symbol.address, 0) is None:
            raise _foreign(symbol, "is nothing that the file loads")
    ends = {symbol.name: symbol.address for symbol in named if symbol.name in _TABLE_ENDS}
    if len(ends) == len(_TABLE_ENDS):
        size = ends[static_call.TABLE_STOP] - ends[static_call.TABLE_START]
        if size < 0 or size % static_call.RECORD_SIZE:
            raise UnsupportedError(f"the names are not this file's: its table would have {size} bytes", advice=_ADVICE)


def _may_be_trampoline(code: bytes) -> bool:
    signature = code[static_call.SIGNATURE_OFFSET :]
    return code[0] in _FIRST_BYTES or signature in static_call.SIGNATURES or static_call.is_live_trampoline(code)


def _foreign(symbol: Symbol, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the names are not this file's: what is at {symbol.address:#x}, {symbol.name}, {what}", advice=_ADVICE
    )
