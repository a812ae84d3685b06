"""What a file is that holds others by name: told by its first bytes."""

from __future__ import annotations

from staticcall.abi import containers as abi
from staticcall.model.container import MemberOf
from staticcall.read.object import is_archive


def archive_of(head: bytes) -> MemberOf | None:
    """The kind of archive that starts with these bytes (21 are enough), None for anything else.

    A compressed cpio archive, as an initramfs mostly is, does not show here.
    """
    if abi.is_deb(head):
        return MemberOf.DEB
    if is_archive(head):
        return MemberOf.ARCHIVE
    return MemberOf.CPIO if abi.is_cpio(head) else None
