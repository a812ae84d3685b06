"""Modules of an image package, unpacked by name, and what they say of themselves."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from pathlib import Path

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

CODE = SH_FLAGS.SHF_ALLOC | SH_FLAGS.SHF_EXECINSTR


def unpacked(archive: Path, folder: Path) -> Path:
    """A module as a file of its own, whether it was compressed or not."""
    if archive.suffix == ".ko":
        return archive
    out = folder / archive.stem
    out.write_bytes(lzma.decompress(archive.read_bytes()))
    return out


def module_information(module: Path, tag: str) -> str:
    """What a module's `.modinfo` has behind `tag=`, empty where it has nothing."""
    with module.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".modinfo")
        entries = section.data().split(b"\0") if section else []
    start = tag.encode() + b"="
    return next((entry[len(start) :].decode() for entry in entries if entry.startswith(start)), "")


def with_dependencies(root: Path, names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Unpack modules and all that they need, in an order in which they can be loaded; by their loaded names."""
    archives = {path.name.partition(".")[0].replace("-", "_"): path for path in sorted(root.rglob("*.ko*"))}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in found:
            return
        module = unpacked(archives[name], folder)
        for needed in filter(None, module_information(module, "depends").split(",")):
            add(needed.replace("-", "_"))
        found[name] = module

    for name in names:
        add(name.replace("-", "_"))
    return found


def code_sections(module: Path) -> list[tuple[int, str, int, int, int]]:
    """Number, name, flags, size and alignment of every section that is loaded as code, in order of the headers."""
    with module.open("rb") as file:
        return [
            (number, section.name, section["sh_flags"], section["sh_size"], section["sh_addralign"])
            for number, section in enumerate(ELFFile(file).iter_sections())
            if section["sh_flags"] & CODE == CODE
        ]


def code_places(module: Path) -> dict[str, int]:
    """Where each section of code begins in the memory that a kernel gives it, if the kernel can unload modules.

    Code for init has a memory of its own; in each the sections follow each other as their headers do.
    """
    places: dict[str, int] = {}
    for init in (False, True):
        end = 0
        for _, name, _, size, alignment in code_sections(module):
            if name.startswith(".init") is init:
                places[name] = -(-end // max(alignment, 1)) * max(alignment, 1)
                end = places[name] + size
    return places
