"""Kernels whose names have been taken away: no symbol table, no kallsyms, and if wished no section headers either."""

from __future__ import annotations

from pathlib import Path

from tests.support.elf_edit import Elf, without_sections
from tests.support.vmlinux import Vmlinux

# The tables of kernel/kallsyms.c, which stand side by side.
_TABLES = (
    "kallsyms_num_syms",
    "kallsyms_names",
    "kallsyms_markers",
    "kallsyms_token_table",
    "kallsyms_token_index",
    "kallsyms_offsets",
    "kallsyms_relative_base",
    "kallsyms_seqs_of_names",
)


def take_names(kernel: Vmlinux, stripped: Path, out: Path) -> Path:
    """Write a stripped image of the kernel with zeros for its kallsyms; `kernel` tells where those are."""
    elf = Elf(stripped.read_bytes())
    rodata = elf.section(".rodata")
    (named,) = [section for section in kernel.sections if section.name == ".rodata"]
    assert rodata["addr"] == named.address, "the image belongs to another build"
    places = [address for name in _TABLES for address in kernel.symbols.get(name, ())]
    start = min(places)
    stop = min(address for group in kernel.symbols.values() for address in group if address > max(places))
    at = rodata["offset"] + start - named.address
    elf.data[at : at + stop - start] = bytes(stop - start)
    out.write_bytes(elf.data)
    return out


def take_sections(image: Path, out: Path) -> Path:
    """Write an image without its section headers."""
    elf = Elf(image.read_bytes())
    without_sections(elf)
    out.write_bytes(elf.data)
    return out
