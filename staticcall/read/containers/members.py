"""Archives: one member by its name, or all that could hold static calls, in one pass over the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice

from staticcall.abi import containers as abi
from staticcall.abi import elf64
from staticcall.errors import InputError, MalformedError, UnsupportedError
from staticcall.model.archive import MemberKind
from staticcall.model.container import Layer, Member, MemberOf, Unpacked
from staticcall.model.image import ByteSource
from staticcall.read.containers.codecs import PEEKED, PIECE, beginning, codec_of, limit_for, peek
from staticcall.read.containers.entry import Entry
from staticcall.read.containers.kind import archive_of
from staticcall.read.object import BytesSource

# A module that is compressed twice is still found.
_MOST_LAYERS = 3
_MOST_NAMES = 1 << 17
_MOST_LINKS = 8


def archive_in(source: ByteSource) -> tuple[MemberOf, Iterator[Entry]]:
    """The kind of an archive and its entries, in one pass; raises `InputError` where this is none.

    An initramfs that is compressed as a whole is an archive as well, since its parts may each be compressed.
    """
    kind = archive_of(source.read(0, min(source.size, abi.HEAD_SIZE)))
    if kind is None and is_packed_cpio(source):
        kind = MemberOf.CPIO
    if kind is None:
        raise InputError("is no archive, so that it has no members", advice="give the file itself")
    return kind, _ENTRIES[kind](source)


def is_packed_cpio(source: ByteSource) -> bool:
    """Whether this is a cpio archive that is compressed as a whole; it takes a little unpacking to see."""
    codec = codec_of(source.read(0, min(source.size, abi.HEAD_SIZE)))
    return codec is not None and abi.is_cpio(beginning(source, codec))


def all_entries(source: ByteSource) -> Iterator[Entry]:
    """All entries of an archive, in one pass; raises as `archive_in` does, and where it is damaged."""
    yield from archive_in(source)[1]


def find_member(source: ByteSource, wanted: str) -> Unpacked:
    """A member of an archive, or a member of a member where names follow each other as in `a)(b`.

    The name is taken with `./` in front or without. Raises `InputError` where there is no such file.
    """
    names = wanted.split(")(")
    # A name may have brackets of its own: as much of it as there is a member for is the first one.
    for count in range(len(names), 0, -1):
        name, rest = ")(".join(names[:count]), ")(".join(names[count:])
        found = _find(source, name, last=count == 1)
        if found is not None:
            if not rest:
                return found
            inner = find_member(_unwrapped(found), rest)
            return Unpacked(inner.data, (*found.layers, *inner.layers))
    raise AssertionError("the last one raises")


def _unwrapped(found: Unpacked) -> ByteSource:
    return BytesSource(found.data)


def _find(source: ByteSource, wanted: str, *, last: bool) -> Unpacked | None:
    """The member of this name, links followed; raises `InputError` if it is the `last` chance and there is none."""
    name, known = _plain(wanted), list[str]()
    for _ in range(_MOST_LINKS):
        known.clear()
        kind, entries = archive_in(source)
        found = _search(entries, name, known, limit_for(source.size))
        if found is None:
            if last:
                raise _unknown(wanted, known)
            return None
        if isinstance(found, bytes):
            layers: tuple[Layer, ...] = (Member(kind, name),)
            return Unpacked(found, layers)
        name = found
    raise InputError(f"its member {wanted} is a link to a link, and so on", advice="name a file")


def _search(entries: Iterator[Entry], name: str, known: list[str], most: int) -> bytes | str | None:
    """The content of a member, the name that it is a link to, or None; its hard links may hold the content."""
    same = None
    for entry in entries:
        plain = _plain(entry.name)
        if len(known) < _MOST_NAMES:
            known.append(plain)
        if plain != name and (same is None or entry.same != same):
            continue
        if entry.link is not None:
            return _target(plain, entry.link, hard=entry.hard)
        if not entry.regular:
            raise UnsupportedError(f"its member {name} is no regular file", advice="name a file")
        if entry.same is not None and not entry.size:
            same = entry.same
            continue
        return content_of(entry, most)
    return b"" if same is not None else None


def content_of(entry: Entry, most: int, head: bytes = b"") -> bytes:
    """All of a member; `head` is what was read of it already."""
    if entry.size > most:
        raise UnsupportedError(f"its member {entry.name} has {entry.size:,} bytes", advice="extract it yourself")
    # As in `unpack`: all at once, a reader would hold it two or three times.
    whole = BytesIO()
    whole.write(head)
    while piece := entry.read(min(PIECE, entry.size - whole.tell())):
        whole.write(piece)
    if whole.tell() != entry.size:
        raise MalformedError(f"ends inside of its member {entry.name}", advice="the file is truncated")
    return whole.getvalue()


def _target(name: str, link: str, *, hard: bool) -> str:
    """The member that a link leads to: a hard link names it, a symbolic one is relative to where it is."""
    parts = [] if hard or link.startswith("/") else name.split("/")[:-1]
    for part in link.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _plain(name: str) -> str:
    """A member's name as it is compared: from the root on, with single slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _unknown(wanted: str, known: list[str]) -> InputError:
    from difflib import get_close_matches  # noqa: PLC0415 - only for a name that is not there

    base = _plain(wanted).rsplit("/", 1)[-1]
    near = [name for name in known if base and base in name.rsplit("/", 1)[-1]][:3]
    near = near or get_close_matches(_plain(wanted), islice(known, 10_000), 3)
    there = f"the nearest are {', '.join(near)}" if near else f"it has {len(known)} others"
    return InputError(f"has no member {wanted}: {there}", advice="`staticcall extract --list` shows all")


def each_candidate(source: ByteSource) -> Iterator[tuple[str, bytes]]:
    """All regular members that could hold static calls, by their content, in one pass; one is in memory at a time.

    Those are ELF files, boot images, and what is compressed and has one of these inside. Raises as reading the
    archive does, after the members before the damage.
    """
    most = limit_for(source.size)
    for entry in all_entries(source):
        if not entry.regular or not entry.size:
            continue
        head = entry.read(min(entry.size, PEEKED))
        answer = promising(head)
        if answer is not False:
            content = content_of(entry, most, head)
            if answer or promising(content):
                yield entry.name, content


def promising(head: bytes) -> bool | None:
    """Whether a file that starts with these bytes is an ELF file or a boot image, be it compressed.

    None where more bytes are needed to tell.
    """
    for _ in range(_MOST_LAYERS):
        if head.startswith(elf64.MAGIC) or abi.is_bzimage(head):
            return True
        codec = codec_of(head)
        if codec is None:
            return False
        inside = peek(head, codec)
        if inside is None:
            return None
        head = inside
    return False


def _objects(source: ByteSource) -> Iterator[Entry]:
    """The files in an archive (.a)."""
    from staticcall.read.archive import read_members  # noqa: PLC0415 - only for archives

    data = source.whole()
    for member in read_members(data):
        if member.kind is MemberKind.MEMBER:
            part = BytesSource(data[member.offset : member.offset + member.size])
            yield Entry(member.name, member.size, regular=True, read=_reading(part))


def _reading(part: BytesSource) -> Callable[[int], bytes]:
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        data = part.read(at, min(size, part.size - at))
        at += len(data)
        return data

    return read


def _installed(source: ByteSource) -> Iterator[Entry]:
    from staticcall.read.containers.deb import entries  # noqa: PLC0415 - tarfile

    return entries(source)


def _initramfs(source: ByteSource) -> Iterator[Entry]:
    from staticcall.read.containers.cpio import entries  # noqa: PLC0415 - only for these

    return entries(source)


_ENTRIES = {MemberOf.ARCHIVE: _objects, MemberOf.DEB: _installed, MemberOf.CPIO: _initramfs}
