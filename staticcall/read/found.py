"""Files that nobody named, but that lie in a tree: which of them may have static calls, by what is in them.

A tree of modules has also tables of their names, configurations, scripts. An ELF file for x86-64, a compressed one, a
boot image and an archive of objects are read; the rest is passed over. Only what is named like a module has to be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.abi import containers, elf64
from staticcall.errors import InputError, about
from staticcall.model.container import Layer, Member, MemberOf
from staticcall.model.form import Word
from staticcall.model.image import ByteSource
from staticcall.read.inputs import InnerSource, open_outer, unpack
from staticcall.read.object import BytesSource, is_archive
from staticcall.read.source import FileSource

_MODULE = re.compile(r"\.ko(\.\w+)?$")
_TYPES = (elf64.ET_REL, elf64.ET_EXEC, elf64.ET_DYN)
# As far as the machine in the header.
_TELLING = 20


class Kind(Word):
    """What a file in a tree is: one to read, an archive whose members are to be read, or something else."""

    IMAGE = "image"
    ARCHIVE = "archive"
    OTHER = "other"


class Found(NamedTuple):
    """One file, open: its name, what it is, and of an image the bytes inside of the layers around it.

    `member` is a member of an archive as it stands there.
    """

    name: str
    kind: Kind
    source: ByteSource
    layers: tuple[Layer, ...]
    member: bytes | None = None


@contextmanager
def open_found(path: str, name: str) -> Iterator[Found]:
    """Open a file of a tree, which is called `name`. Raises as `staticcall.read.inputs.open_input` does."""
    with about(name), FileSource(path) as source:
        head = source.read(0, min(source.size, containers.HEAD_SIZE))
        kind = Kind.IMAGE if _MODULE.search(name) else _kind_of(head, source)
        if kind is not Kind.IMAGE or head.startswith(elf64.MAGIC):
            yield Found(name, kind, source, ())
        else:
            # All of it is read here, as it was at one moment.
            inner = unpack(source.whole())
            yield Found(name, kind, BytesSource(inner.data), inner.layers)
            return
        source.check_unchanged()


def holds_files(path: str) -> bool:
    """Whether this is a package or an initramfs, whose files are to be read one by one; not if it cannot be opened."""
    try:
        with open_outer(Path(path)) as (source, _):
            if source.read(0, min(source.size, len(elf64.MAGIC))) == elf64.MAGIC:
                return False
            from staticcall.read.containers.members import archive_in  # noqa: PLC0415 - not for plain ELF files

            archive = archive_in(source)
            return archive is not None and archive[0] is not MemberOf.ARCHIVE
    except InputError:
        return False


def open_members(path: str, name: str) -> Iterator[Found | InputError]:
    """Each file of an archive that may have static calls, called `name(member)`, or why it cannot be read.

    Raises as `staticcall.read.inputs.open_input` does where the archive itself is damaged.
    """
    from staticcall.read.containers.members import archive_in, each_candidate  # noqa: PLC0415 - as above

    with about(name), open_outer(Path(path)) as (source, _):
        archive = archive_in(source)
        for member, content in each_candidate(source):
            own = f"{name}({member})"
            try:
                with about(own):
                    layers = (Member(archive[0], member),) if archive else ()
                    inner = unpack(content, layers)
            except InputError as error:
                yield error
                continue
            kind = Kind.IMAGE if _MODULE.search(member) or _is_ours(inner.data[:_TELLING]) else Kind.OTHER
            yield Found(own, kind, InnerSource(inner.data, source), inner.layers, content)
        source.check_unchanged()


def _kind_of(head: bytes, source: ByteSource) -> Kind:
    if head.startswith(elf64.MAGIC):
        return Kind.IMAGE if _is_ours(head) else Kind.OTHER
    if containers.is_bzimage(head):
        return Kind.IMAGE
    if is_archive(head):
        return Kind.OTHER if containers.is_deb(head) else Kind.ARCHIVE
    from staticcall.read.containers.codecs import beginning, codec_of  # noqa: PLC0415 - not for trees of plain files

    codec = codec_of(head)
    if codec is None:
        return Kind.OTHER
    first = beginning(source, codec)
    return Kind.IMAGE if first.startswith(elf64.MAGIC) and _is_ours(first) else Kind.OTHER


def _is_ours(head: bytes) -> bool:
    """Whether an ELF file is for x86-64, and has code; one that ends in its header is damaged, which is to be said."""
    if len(head) < _TELLING:
        return True
    kind, machine = (int.from_bytes(head[at : at + 2], "little") for at in (16, 18))
    return head[4:6] == bytes((elf64.CLASS_64, elf64.DATA_LITTLE)) and machine == elf64.EM_X86_64 and kind in _TYPES
