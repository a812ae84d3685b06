"""A bzImage with another payload in the place of the old one; whatever else it has stays where it is.

Nothing can move: the decompressor is linked, and the PE sections are signed and mapped as they are. So the new payload
has the room of the old one. The lengths follow, the rest of the room is zeros that nobody reads any more:

    before    stream                             size  | decompressor
    after     stream           size  0 0 0 0 0 0 0 0 0 | decompressor

payload_length and the decompressor's input_len are then what the build would have written. That holds for every codec
and for all who look for the payload by the boot protocol: the kernel, Xen, extract-vmlinux; boot loaders and kexec load
the file as one piece.

Where the decompressor's two lengths are not found, side by side and once, they stay, and zeros go between the stream
and its size. What the decompressors of Linux make of bytes behind the stream:

    gzip    stops at the end of the deflate data; but whoever takes all of it for a .gz file would fail: not done
    xz      one call for one stream; nothing behind it is looked at
    zstd    cuts the input at the end of the first frame by itself
    bzip2   stops at the end of the stream
    lzma    stops at the size in the header, or at the end mark
    lzo     stops at the block of size 0
    lz4     a size of 0 ends it since 5.14; before, it goes on and fails: not done

Since the payload is unpacked in place, from the end of init_size bytes, a shorter one stands too low: init_size grows
by as much (see `abi.bzimage`). Where a loader of EFI applications gives that memory, its sizes grow too.

Sources: lib/decompress_*.c, arch/x86/boot/compressed/misc.c and head_64.S, drivers/firmware/efi/libstub/x86-stub.c,
Linux 5.10 to 6.12; kernel/kexec-bzimage64.c; Xen's xg_dom_bzimageloader.c.
"""

from __future__ import annotations

from typing import Final

from staticcall.abi import bzimage as abi
from staticcall.errors import UnsafeError, UnsupportedError
from staticcall.model.container import BzImage, Codec
from staticcall.write.pe import Pe, blank, grow_in_memory, pe_of, pe_signature, without_signature

__all__ = ["pe_signature", "rebuild", "refuse_signed", "strip_pe_signature"]

# Of these no zeros may follow the stream.
_ENDS_WITH_ROOM: Final = frozenset({Codec.GZIP, Codec.LZ4})
_SIGNED: Final = "image-signature"
_NO_ROOM: Final = "payload-room"
_NO_LENGTHS: Final = "payload-lengths"


def rebuild(bzimage: bytes, layer: BzImage, stream: bytes, unpacked_size: int, *, strip_signature: bool) -> bytes:
    """The boot image with another compressed payload, and everything that counts or sums it brought up to date.

    `layer` is where the old payload is, as `find_payload` gives it. A signed image is only rewritten with
    `strip_signature`, and then is not signed any more. With the payload that it has already and the signature kept,
    the result is `bzimage`.

    Raises `UnsafeError` for a payload that does not fit, and for a signature that nobody gave up.
    """
    signature = pe_signature(bzimage)
    if stream == _stream(bzimage, layer) and unpacked_size == layer.unpacked_size:
        return strip_pe_signature(bzimage) if strip_signature and signature else bzimage
    refuse_signed(bzimage, strip_signature=strip_signature)
    if int.from_bytes(bzimage[abi.VERSION : abi.VERSION + 2], "little") < abi.VERSION_WITH_INIT_SIZE:
        raise UnsupportedError("is a bzImage that does not tell how much memory it needs", offset=abi.VERSION)
    needed = _needed(layer, stream)
    if needed > layer.size:
        raise UnsafeError(
            f"the new payload has {needed:,} bytes and the boot image has room for {layer.size:,},"
            f" so {needed - layer.size:,} are missing",
            code=_NO_ROOM,
            advice="patch less, or extract the vmlinux and boot that",
        )
    growth = abi.room_in_front(unpacked_size, needed) - abi.room_in_front(layer.unpacked_size, layer.size)
    if max(unpacked_size, abi.WORD.unpack_from(bzimage, abi.INIT_SIZE)[0] + growth) >> 31:
        raise UnsafeError("the new payload needs more memory than boot loaders give", code=_NO_ROOM)
    pe = pe_of(bzimage)
    crc, crc_with_sum = _crc_holds(bzimage, pe)
    data = without_signature(bzimage, pe, signature) if pe and signature else bytearray(bzimage)
    _put_payload(data, layer, stream, unpacked_size)
    _give_memory(data, pe, growth)
    keep_checksum = not crc_with_sum and not (crc and signature)
    _sum(data, pe, crc=crc or crc_with_sum, checksum=keep_checksum)
    return bytes(data)


def refuse_signed(bzimage: bytes, *, strip_signature: bool) -> None:
    """Raise `UnsafeError` for a signed boot image whose signature nobody gave up."""
    if not strip_signature and pe_signature(bzimage) is not None:
        raise UnsafeError(
            "is signed, and its signature would not hold for a patched kernel",
            code=_SIGNED,
            advice="--strip-signature to drop it, or --sign-with CMD to sign the result",
        )


def strip_pe_signature(data: bytes) -> bytes:
    """A signed boot image without its signature, as it was before if it came from a build with a CRC.

    Raises `MalformedError` for a certificate table outside of the file, `UnsupportedError` for one in the middle.
    """
    signature, pe = pe_signature(data), pe_of(data)
    if signature is None or pe is None:
        return data
    crc, crc_with_sum = _crc_holds(data, pe)
    result = without_signature(data, pe, signature)
    # Whoever signed also wrote the checksum; the CRC is older and knows of none.
    _sum(result, pe, crc=False, checksum=not crc and not crc_with_sum)
    return bytes(result)


def _stream(data: bytes, layer: BzImage) -> bytes:
    return data[layer.offset : layer.offset + layer.stream_size]


def _needed(layer: BzImage, stream: bytes) -> int:
    """The size of a payload: a .gz stream has the size of its content already."""
    return len(stream) if layer.payload.codec is Codec.GZIP else len(stream) + abi.SIZE_OF_SIZE


def _put_payload(data: bytearray, layer: BzImage, stream: bytes, unpacked_size: int) -> None:
    size = abi.WORD.pack(unpacked_size)
    content = stream if layer.payload.codec is Codec.GZIP else stream + size
    room = slice(layer.offset, layer.offset + layer.size)
    place = _own_lengths(data, layer)
    if place is not None:
        data[room] = content.ljust(layer.size, b"\0")
        abi.WORD.pack_into(data, abi.PAYLOAD_LENGTH, len(content))
        abi.LENGTHS.pack_into(data, place, len(content), unpacked_size)
        return
    left = layer.size - len(stream)
    exact = len(content) == layer.size
    if unpacked_size != layer.unpacked_size or (
        not exact and (layer.payload.codec in _ENDS_WITH_ROOM or left < abi.SIZE_OF_SIZE)
    ):
        raise UnsafeError(
            f"the decompressor of the boot image has its lengths, {layer.size} and {layer.unpacked_size}, in no place"
            " where they could be changed for certain",
            code=_NO_LENGTHS,
            advice="extract the vmlinux and boot that",
        )
    data[room] = content if exact else stream.ljust(layer.size - abi.SIZE_OF_SIZE, b"\0") + size


def _own_lengths(data: bytearray, layer: BzImage) -> int | None:
    """The offset of the decompressor's input_len and output_len, None unless they are there just once."""
    start, end = abi.code_of(data)
    words = abi.LENGTHS.pack(layer.size, layer.unpacked_size)
    behind = layer.offset + layer.size
    # It cannot be across the payload's borders: the code in front of it and behind it is aligned.
    found = [at for low, high in ((start, layer.offset), (behind, end)) if (at := data.find(words, low, high)) >= 0]
    if len(found) != 1 or data.find(words, found[0] + 1, layer.offset if found[0] < layer.offset else end) >= 0:
        return None
    return found[0]


def _give_memory(data: bytearray, pe: Pe | None, growth: int) -> None:
    """Raise init_size by what the new payload stands lower at its start, in whole pages."""
    if growth <= 0:
        return
    (present,) = abi.WORD.unpack_from(data, abi.INIT_SIZE)
    abi.WORD.pack_into(data, abi.INIT_SIZE, present + growth)
    if pe is not None and abi.WORD.unpack_from(data, pe.image_size)[0] >= present:
        # This kernel unpacks itself where the firmware loaded it.
        grow_in_memory(data, pe, growth)


def _crc_holds(data: bytes, pe: Pe | None) -> tuple[bool, bool]:
    """Whether the build's CRC is there: over the image before it was summed and signed, over it as it is only."""
    _, end = abi.code_of(data)
    if abi.crc_of(blank(data[:end], pe)) == 0:
        return True, False
    return False, abi.crc_of(memoryview(data)[:end]) == 0


def _sum(data: bytearray, pe: Pe | None, *, crc: bool, checksum: bool) -> None:
    """Bring the CRC and the checksum up to date; a checksum that is not wanted any more becomes 0, which means none."""
    had_sum = pe is not None and any(data[pe.checksum : pe.checksum + abi.WORD.size])
    if pe is not None:
        abi.WORD.pack_into(data, pe.checksum, 0)
    if crc:
        _, end = abi.code_of(data)
        at = end - abi.SIZE_OF_CRC
        abi.WORD.pack_into(data, at, abi.crc_of(memoryview(data)[:at]))
    if pe is not None and had_sum and checksum:
        abi.WORD.pack_into(data, pe.checksum, abi.pe_checksum(data, pe.checksum))
