"""The way to an ELF file through what it is wrapped in: compression, a boot image, an archive whose member is named.

    kvm.ko.xz                                            the module
    vmlinuz-6.12                                         the kernel, with its list of relocations behind it
    linux-image.deb(./boot/vmlinuz-6.12)                 a member, named as reports name it: FILE(MEMBER)
    linux-image.deb(boot/initrd.img)(usr/lib/x.ko.zst)   a member of a member

What a file is, its content says and not its name. An ELF file stays on the disk and is read where it is needed;
anything else is unpacked in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from staticcall.abi import elf64
from staticcall.errors import StaticcallError, StrPath, UnsupportedError
from staticcall.model.image import ByteSource
from staticcall.read.object import BytesSource
from staticcall.read.source import FileSource, sha256_of, sha256_of_bytes

if TYPE_CHECKING:
    from staticcall.model.container import Layer, MemberOf, Unpacked
    from staticcall.read.containers.entry import Entry

# Enough to tell an archive.
_HEAD = 32
# Each layer is in memory when the next one is made of it.
_MOST_LAYERS = 8


class InnerSource(BytesSource):
    """What was unpacked, which stays as it is, out of a file that may change."""

    def __init__(self, data: bytes, outer: ByteSource) -> None:
        super().__init__(data)
        self._outer = outer

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file around it was changed since it was opened."""
        self._outer.check_unchanged()


@contextmanager
def open_input(path: Path) -> Iterator[tuple[ByteSource, tuple[Layer, ...]]]:
    """Open a file as it is, or what is inside of it in memory; gives also the layers around that, the outermost first.

    Raises `InputError` when it cannot be read, `MalformedError` for a damaged container, `UnsupportedError` for one
    that is not supported, whose members are not named, or that unpacks to too much.
    """
    with open_outer(path) as (source, layers):
        if source.read(0, min(source.size, len(elf64.MAGIC))) == elf64.MAGIC:
            yield source, layers
            return
        from staticcall.read.containers.layers import HEAD_SIZE, is_packed  # noqa: PLC0415 - not for plain ELF files

        # Whatever else it is stays on the disk, as large as it may be.
        if not is_packed(source.read(0, min(source.size, HEAD_SIZE))):
            yield source, layers
            return
        unpacked = unpack(source.whole(), layers)
        with _offsets_inside(unpacked.layers):
            yield InnerSource(unpacked.data, source), unpacked.layers


@contextmanager
def _offsets_inside(layers: tuple[Layer, ...]) -> Iterator[None]:
    """Say of every offset in an error that it is one in what was unpacked, which has no name of its own."""
    try:
        yield
    except StaticcallError as error:
        if layers and error.offset is not None and error.path is None:
            error.what += " in what is unpacked"
        raise


@contextmanager
def open_outer(path: Path) -> Iterator[tuple[ByteSource, tuple[Layer, ...]]]:
    """Open a file, or in memory the member that is named, as it stands in its archive.

    Raises as `open_input` does.
    """
    file, wanted = split_member(path)
    with FileSource(file) as source:
        if wanted is None:
            yield source, ()
            return
        found = _member(source, wanted)
        yield InnerSource(found.data, source), found.layers


def _member(source: FileSource, wanted: str) -> Unpacked:
    """The member of an archive; the last one is kept, since to get to it takes unpacking all that is before it."""
    from staticcall.read.containers.members import find_member  # noqa: PLC0415 - only where one is named

    known, key = source.identity, (source.identity, wanted)
    found = _last_member.get(key)  # one look: another thread may clear it at any time
    if known is None or found is None:
        _last_member.clear()  # first, so that no two of them are in memory
        found = find_member(source, wanted)
        if known is None:
            return found
        source.check_unchanged()
        _last_member[key] = found
    return found


# One at most: commands ask several times for the same one.
_last_member: dict[tuple[object, str], Unpacked] = {}


def split_member(path: StrPath) -> tuple[Path, str | None]:
    """The file and the member that FILE(MEMBER) names; no member where a file has this very name, or none has."""
    name = os.fspath(path)
    if name.endswith(")") and not os.path.lexists(name):
        at = name.rfind("(")
        while at > 0:
            if Path(name[:at]).is_file():
                return Path(name[:at]), name[at + 1 : -1]
            at = name.rfind("(", 0, at)
    return Path(path), None


def container_at(path: Path) -> MemberOf | None:
    """Whether a file holds files by name, of which none is named: then each of them is an input of its own.

    A compressed cpio archive, as an initramfs mostly is, does not count: it takes unpacking to see.
    """
    file, wanted = split_member(path)
    if wanted is not None:
        return None
    with FileSource(file) as source:
        head = source.read(0, min(source.size, _HEAD))
    if head.startswith(elf64.MAGIC):
        return None
    from staticcall.read.containers.kind import archive_of  # noqa: PLC0415 - not for plain ELF files

    return archive_of(head)


def each_member(path: Path) -> Iterator[tuple[str, bytes]]:
    """All members of an archive that could hold static calls, told by their content: name, and content as it stands.

    One pass over the archive, with one member in memory. Raises `InputError` where the file is no archive, or cannot
    be read; a damaged one gives the members before the damage first.
    """
    from staticcall.read.containers.members import each_candidate  # noqa: PLC0415 - only for archives

    with open_outer(path) as (source, _):
        yield from each_candidate(source)
        source.check_unchanged()


def members_of(path: Path) -> Iterator[Entry]:
    """All members of an archive, in one pass; folders and devices among them. Raises as `each_member` does."""
    from staticcall.read.containers.members import all_entries  # noqa: PLC0415 - only for archives

    with open_outer(path) as (source, _):
        yield from all_entries(source)
        source.check_unchanged()


def sha256_of_input(path: Path) -> str:
    """The SHA-256 of a file, or of the member that is named, as it stands in its archive; 64 hex digits."""
    if split_member(path)[1] is None:
        return sha256_of(path)
    with open_outer(path) as (source, _):
        return sha256_of_bytes(source.whole())


def unpack(data: bytes, layers: tuple[Layer, ...] = ()) -> Unpacked:
    """Take off one layer after the other until an ELF file is there, or something that is no container.

    `layers` are those that were taken off already. Raises as `open_input` does.
    """
    from staticcall.model.container import Unpacked  # noqa: PLC0415 - not for plain ELF files
    from staticcall.read.containers.layers import peel  # noqa: PLC0415 - not for plain ELF files

    outermost = len(data)
    for _ in range(_MOST_LAYERS + 1):
        if data.startswith(elf64.MAGIC):
            break
        peeled = peel(data, outermost)
        if peeled is None:
            break
        data = peeled.data
        layers = (*layers, *peeled.layers)
    else:
        raise UnsupportedError(f"is packed more than {_MOST_LAYERS} times", advice="unpack it")
    return Unpacked(data, layers)
