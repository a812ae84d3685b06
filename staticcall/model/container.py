"""What stands around an ELF file: layers of compression, archives and boot images, the outermost first."""

from __future__ import annotations

from typing import NamedTuple

from staticcall.model.form import Word

_SIZE_OF_SIZE = 4


class Codec(Word):
    """The compressions that kernels, modules and packages come in."""

    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"
    LZ4 = "lz4"
    BZIP2 = "bzip2"
    LZMA = "lzma"
    LZO = "lzo"


class MemberOf(Word):
    """The archives that hold files by name."""

    ARCHIVE = "archive"
    DEB = "deb"
    CPIO = "cpio"


class Compressed(NamedTuple):
    """A compressed file, and what is needed to compress in the same way again.

    `settings` are pairs of a name and a value, in an order of the codec's own: what its header says.
    """

    codec: Codec
    settings: tuple[tuple[str, int | bytes | str], ...] = ()

    @property
    def label(self) -> str:
        """The layer's name in reports."""
        return self.codec.value


class Member(NamedTuple):
    """One file of an archive; who names it has the file alone, and not what is around it."""

    archive: MemberOf
    name: str

    @property
    def label(self) -> str:
        """The layer's name in reports."""
        return self.archive.value


class BzImage(NamedTuple):
    """The boot image of a kernel, whose payload is compressed inside of it.

    `offset` and `size` are the payload's in the file, the four bytes of its `unpacked_size` included.
    """

    offset: int
    size: int
    payload: Compressed
    unpacked_size: int

    @property
    def stream_size(self) -> int:
        """The size of what is compressed: a .gz stream ends with the four bytes itself, no other one does."""
        return self.size if self.payload.codec is Codec.GZIP else self.size - _SIZE_OF_SIZE

    @property
    def label(self) -> str:
        """The layer's name in reports."""
        return f"bzImage:{self.payload.label}"


Layer = Compressed | Member | BzImage


class Unpacked(NamedTuple):
    """The innermost file, and the layers around it from the outermost on."""

    data: bytes
    layers: tuple[Layer, ...]
