"""Whether a kernel may run elsewhere than it is linked, by what its file carries.

Only one thing proves that it never does: the configuration in its .rodata, between IKCFG_ST and IKCFG_ED, without
CONFIG_RANDOMIZE_BASE. Relocations that the linker kept, a list of them behind the ELF file, and some functions are
made for moving.

Source: kernel/configs.c, arch/x86/Kconfig, arch/x86/lib/Makefile, arch/x86/mm/kaslr.c, Linux 5.10 to 6.12.
"""

from __future__ import annotations

import gzip
import io
import zlib

from elftools.elf.constants import SH_FLAGS

from staticcall.verify.layout import Layout
from staticcall.verify.slot_list import end_of
from staticcall.verify.source import Source, Span

_START, _END = b"IKCFG_ST", b"IKCFG_ED"
_MOST_CONFIG = 1 << 23
_KASLR_FUNCTIONS = (b"kaslr_get_random_long", b"kernel_randomize_memory")


def may_move(source: Source, layout: Layout) -> bool:
    """Whether nothing in the kernel's file proves that it stays where it is linked."""
    if layout.movable or _keeps_relocations(layout) or _goes_on(source, layout):
        return True
    if _has_kaslr(source, layout):
        return True
    found = [(name, packed) for name, body in _data(layout) for packed in _packed(source.read(*body))]
    return [name for name, _ in found] != [".rodata"] or _randomizes(_unpacked(found[0][1]))


def _keeps_relocations(layout: Layout) -> bool:
    return any(section.type == "SHT_RELA" and not section.allocated for section in layout.sections)


def _goes_on(source: Source, layout: Layout) -> bool:
    """Whether something stands behind all that the headers know of."""
    return end_of(layout) < source.size


def _has_kaslr(source: Source, layout: Layout) -> bool:
    """Whether a function has a name that only kernels with CONFIG_RANDOMIZE_BASE have."""
    strings = [source.read(*section.body) for section in layout.sections if section.type == "SHT_STRTAB"]
    return any(b"\0" + name + b"\0" in names for name in _KASLR_FUNCTIONS for names in strings)


def _data(layout: Layout) -> list[tuple[str, Span]]:
    return [
        (section.name, section.body)
        for section in layout.sections
        if section.type == "SHT_PROGBITS" and section.allocated and not section.flags & SH_FLAGS.SHF_EXECINSTR
    ]


def _packed(content: bytes) -> list[bytes]:
    """The first configuration in a section's content, compressed, and whatever else claims to be one."""
    _, start, rest = content.partition(_START)
    body, end, others = rest.partition(_END)
    return ([body] if start and end else []) + ([b""] if _START in others else [])


def _unpacked(packed: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            text = file.read(_MOST_CONFIG)
            return text if not file.read(1) else b""
    except (OSError, EOFError, zlib.error):
        return b""


def _randomizes(configuration: bytes) -> bool:
    """Whether this is not the configuration of a 64-bit kernel without KASLR."""
    lines = configuration.splitlines()
    return b"CONFIG_X86_64=y" not in lines or b"CONFIG_RANDOMIZE_BASE=y" in lines
