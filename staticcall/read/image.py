"""From an open file to an `Image`: header, sections, segments, symbols, dynamic relocations, build id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from staticcall.abi import elf64
from staticcall.errors import MalformedError, UnsupportedError, about
from staticcall.model.aids import NO_NAME_AIDS, NameAids
from staticcall.model.container import Layer
from staticcall.model.image import ByteSource, Image
from staticcall.read.bare import Bare
from staticcall.read.headers import read_header, read_sections, read_segments
from staticcall.read.inputs import open_input
from staticcall.read.notes import build_id_of
from staticcall.read.object import parse_object
from staticcall.read.relocations import read_relocations
from staticcall.read.symbols import read_symbols


@contextmanager
def open_image(path: Path, name: Path | None = None, aids: NameAids = NO_NAME_AIDS) -> Iterator[Image]:
    """Open an ELF64 x86-64 file, linked or relocatable; it stays open for reading inside the `with` block.

    It may be inside of a container, see `staticcall.read.inputs`. `name` is what it is called instead of its path, in
    reports as well as in errors; `aids` say where else there may be names for what is in it.
    Raises `InputError` when it cannot be read or was changed meanwhile, `MalformedError` when it breaks the format,
    and `UnsupportedError` when it is another kind of file.
    """
    with open_original(path, name, aids) as (image, check_unchanged):
        yield image
        check_unchanged()


@contextmanager
def open_original(
    path: Path, name: Path | None = None, aids: NameAids = NO_NAME_AIDS
) -> Iterator[tuple[Image, Callable[[], None]]]:
    """The same for who knows the moment until which the file must not change: gives also what checks that."""
    with about(name or path), open_input(path) as (source, layers):
        yield read_image(name or path, source, layers, aids), source.check_unchanged


def read_image(path: Path, source: ByteSource, layers: tuple[Layer, ...] = (), aids: NameAids = NO_NAME_AIDS) -> Image:
    """The image in bytes that somebody else has opened; `path` is its name. Raises as `open_image` does."""
    header = read_header(source)
    if header.type == elf64.ET_REL:
        from staticcall.read.placed import place_object  # noqa: PLC0415 - 2 ms that a kernel does not need

        return place_object(path, parse_object(source.whole()), layers)
    if header.type not in (elf64.ET_EXEC, elf64.ET_DYN):
        raise UnsupportedError(f"has ELF type {header.type}", advice="give an executable, a shared object or an object")
    sections = read_sections(source, header)
    segments = read_segments(source, header)
    if not any(segment.type == elf64.PT_LOAD for segment in segments):
        raise MalformedError("loads nothing", advice="give a linked file, not one of separate debug data")
    build_id = build_id_of(source, sections, segments)
    symbols, named_by = read_symbols(path, Bare(source, header.type, sections, segments, build_id), aids)
    return Image(
        path=path,
        source=source,
        elf_type=header.type,
        sections=sections,
        segments=segments,
        symbols=symbols,
        relocations=read_relocations(source, segments),
        build_id=build_id,
        layers=layers,
        name_source=named_by,
    )
