"""Another build id for a patched file, since it is another build: who collects debug data by it tells them apart.

The id stands in notes of type NT_GNU_BUILD_ID in a section that is loaded, which for a kernel is `.notes`. Measured: no
other place of Debian's vmlinux holds its id, and a kernel reads its own from there. Notes that say another id, as those
of an image inside of the image, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from staticcall.abi import elf64
from staticcall.errors import UnsafeError, UsageError
from staticcall.model.change import Edit, EditKind
from staticcall.model.image import ByteSource, Image

_SEED = "seed:"
_CHUNK = 1 << 20
_MOST_NOTES = 1 << 16
_MOST_SIZE = 20
_NAME = b"GNU\0"


class NewId(StrEnum):
    """Where the build id of a patched file comes from."""

    KEEP = "keep"
    RECOMPUTE = "recompute"
    SEED = "seed"


class BuildIdWish(NamedTuple):
    """What is to become of the build id; `seed` is what a seeded one is made of, beside the old one."""

    source: NewId = NewId.KEEP
    seed: str = ""


def parse_wish(text: str) -> BuildIdWish:
    """Read `keep`, `recompute` or `seed:TEXT`; raises `UsageError`."""
    if text.startswith(_SEED) and text != _SEED:
        return BuildIdWish(NewId.SEED, text.removeprefix(_SEED))
    if text in (NewId.KEEP, NewId.RECOMPUTE):
        return BuildIdWish(NewId(text))
    raise UsageError(f"--build-id {text} is unknown", advice="give keep, recompute or seed:TEXT")


def new_build_id(image: Image, wish: BuildIdWish, digest: Callable[[Sequence[Edit]], bytes]) -> tuple[Edit, ...]:
    """The edits that give every note with the image's build id the new one, sorted by their place in the file.

    `digest` gives the SHA-1 of the patched file with some more edits applied. The id keeps its size, up to the 20
    bytes of a SHA-1. Raises `UnsafeError` where there is no id, or none that can be replaced.
    """
    if wish.source is NewId.KEEP:
        return ()
    notes = sorted(_notes(image))
    if not notes or image.build_id is None:
        raise _refusal("has no build id in a section of notes")
    from hashlib import sha1  # noqa: PLC0415 - only where a build id is asked for

    old = bytes.fromhex(image.build_id)
    if not 0 < len(old) <= _MOST_SIZE:
        raise _refusal(f"has a build id of {len(old)} bytes, and a new one has up to {_MOST_SIZE}")
    places = [(offset, address) for offset, address, found in notes if found == old]
    if wish.source is NewId.SEED:
        new = sha1(old + wish.seed.encode(), usedforsecurity=False).digest()
    else:
        zeroed = [Edit(offset, old, bytes(len(old)), EditKind.BUILD_ID, "", None) for offset, _ in places]
        new = digest([edit for edit in zeroed if edit.old != edit.new])
    new = new[: len(old)]
    return tuple(Edit(offset, old, new, EditKind.BUILD_ID, "", address) for offset, address in places if new != old)


def sha1_of(source: ByteSource, edits: Iterable[Edit]) -> bytes:
    """The SHA-1 of a file with edits of bytes in their places, which do not overlap."""
    from hashlib import sha1  # noqa: PLC0415 - only where a build id is asked for

    pending = sorted(edits, key=lambda edit: edit.file_offset)
    digest = sha1(usedforsecurity=False)
    for start in range(0, source.size, _CHUNK):
        chunk = bytearray(source.read(start, min(_CHUNK, source.size - start)))
        for edit in pending:
            if edit.file_offset >= start + len(chunk):
                break
            _lay_over(chunk, start, edit)
        pending = [edit for edit in pending if edit.file_offset + len(edit.new) > start + len(chunk)]
        digest.update(chunk)
    return digest.digest()


def sha1_of_bytes(data: bytes | bytearray, edits: Iterable[Edit]) -> bytes:
    """The same of what is in memory."""
    from hashlib import sha1  # noqa: PLC0415 - only where a build id is asked for

    copy = bytearray(data)
    for edit in edits:
        copy[edit.file_offset : edit.file_offset + len(edit.new)] = edit.new
    return sha1(copy, usedforsecurity=False).digest()


def _lay_over(chunk: bytearray, start: int, edit: Edit) -> None:
    cut = max(start - edit.file_offset, 0)
    piece = edit.new[cut : start + len(chunk) - edit.file_offset]
    at = edit.file_offset + cut - start
    chunk[at : at + len(piece)] = piece


def _refusal(what: str) -> UnsafeError:
    return UnsafeError(what, code="build-id", advice="--build-id keep")


def _notes(image: Image) -> set[tuple[int, int | None, bytes]]:
    """File offset, linked address and bytes of the id of every note that has one."""
    found: set[tuple[int, int | None, bytes]] = set()
    relocated = {section.info for section in image.sections if section.type == elf64.SHT_RELA}
    for section in image.sections:
        if section.type != elf64.SHT_NOTE or not section.flags & elf64.SHF_ALLOC or section.size > _MOST_NOTES:
            continue
        for at, content in _ids_in(image.source.read(section.offset, section.size)):
            if image.placement is not None and section.number in relocated:
                raise _refusal("has a build id among relocated notes")
            address = None if image.placement is not None else section.address + at
            found.add((section.offset + at, address, content))
    return found


def _ids_in(notes: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each build id in a run of notes: sizes of name and description, type, both padded to four."""
    position = 0
    while position + elf64.NOTE.size <= len(notes):
        name_size, size, kind = elf64.NOTE.unpack_from(notes, position)
        name_at = position + elf64.NOTE.size
        at = name_at + (name_size + 3 & ~3)
        if at + size > len(notes):
            return
        if kind == elf64.NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == _NAME:
            yield at, notes[at : at + size]
        position = at + (size + 3 & ~3)
