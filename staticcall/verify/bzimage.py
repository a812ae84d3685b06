"""The proof of a boot image around its kernel: but for the payload, and what counts or sums it, nothing differs.

What may differ, and how it must then agree:

    payload                the room that the old one had: a stream, its size, and zeros
    payload_length         says where the size is, and input_len with it
    output_len             the size, as the decompressor knows it
    init_size              as much more as a shorter stream, or a larger kernel, needs to be unpacked in place
    SizeOfImage, .data     the same, where the image is unpacked in the memory that these give
    CRC-32                 holds where it held
    PE checksum            is right, or 0 for none
    certificate table      is gone, or another one; never that of the original

A reader of its own: it shares neither the parser nor the decompressors' calls with who wrote the image.

Sources: Documentation/arch/x86/boot.rst; arch/x86/boot/header.S, tools/build.c and compressed/mkpiggy.c, Linux 6.12;
Microsoft's PE Format.
"""

from __future__ import annotations

from array import array
from struct import Struct, error
from typing import Final, NamedTuple, NoReturn
from zlib import crc32

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.boot_streams import Content, unpack_stream
from staticcall.verify.source import Span

_WORD, _PAIR, _HALF = Struct("<I"), Struct("<II"), Struct("<H")
# Offsets of the setup header: sectors, paragraphs of code, the magic, the payload's place, the memory.
_SECTORS, _PARAGRAPHS, _MAGIC_AT, _PAYLOAD, _MEMORY = 497, 500, 514, 584, 608
_MAGIC: Final = b"HdrS"
_GZIP: Final = b"\x1f\x8b"
# From the start of the optional header: SizeOfImage, CheckSum; by its kind, the directory of the certificates.
_IMAGE_SIZE, _CHECKSUM = 56, 64
_CERTIFICATES: Final = {0x10B: 128, 0x20B: 144}
_MARGIN, _PAGE = 131072, 4096
_ALIGNED = 8


class _Pe(NamedTuple):
    """File offsets of the fields that may change; `sizes` are those of the sections in memory, by their end there."""

    image_size: int
    checksum: int
    certificates: int
    sizes: dict[int, int]


class _Boot(NamedTuple):
    """One boot image: its content without certificates, where its code ends, its payload, its own lengths."""

    body: bytes
    certificates: bytes
    start: int
    end: int
    payload: Span
    lengths: int | None
    memory: int
    pe: _Pe | None


def prove_envelope(before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """Prove that two boot images differ in their payloads only, and in what has to follow; gives what is in both.

    Raises `VerificationError` where they differ in anything else or the second would not boot, `MalformedError` where
    the first is no sound boot image.
    """
    try:
        old = _read(before)
        original = _unpack(old, old.payload)
    except (VerificationError, error, IndexError) as failure:
        raise MalformedError(f"is no sound boot image: {failure}") from failure
    try:
        new = _read(after, lengths=old.lengths)
    except (error, IndexError) as failure:
        raise VerificationError(f"is no sound boot image: {failure}") from failure
    if (new.start, new.end) != (old.start, old.end) or new.payload.offset != old.payload.offset:
        _refuse("its code or its payload is in another place", _SECTORS)
    if new.payload.size > old.payload.size:
        _refuse(f"the payload of {new.payload.size} bytes has room for {old.payload.size}", _PAYLOAD)
    content = _unpack(new, old.payload)
    if old.certificates and old.certificates == new.certificates and before != after:
        _refuse("it has the signature of the original, which cannot be right", len(new.body))
    _check_lengths(old, new, len(content.data))
    _check_memory(old, new, original, content)
    _check_sums(old, new, after)
    _check_rest(old, new)
    return original.data, content.data


def _refuse(what: str, offset: int) -> NoReturn:
    raise VerificationError(what, offset=offset)


def _read(data: bytes, lengths: int | None = None) -> _Boot:
    """Take a boot image apart; `lengths` says where the decompressor's are, if the original told."""
    if data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        raise VerificationError("there is no setup header", offset=_MAGIC_AT)
    pe = _read_pe(data)
    at, size = _PAIR.unpack_from(data, pe.certificates) if pe else (0, 0)
    if size and at + size != len(data):
        _refuse("the certificate table does not end the file", pe.certificates if pe else 0)
    body = data[:at] if size else data
    start = ((data[_SECTORS] or 4) + 1) * 512
    end = start + _WORD.unpack_from(data, _PARAGRAPHS)[0] * 16
    offset, length = _PAIR.unpack_from(data, _PAYLOAD)
    payload = Span(start + offset, length)
    if length <= 4 or not start < payload.end <= end <= len(body):
        _refuse("the payload is outside of the code", _PAYLOAD)
    if lengths is None:
        lengths = _find_lengths(body, start, end, payload)
    (memory,) = _WORD.unpack_from(data, _MEMORY)
    return _Boot(body, data[at:] if size else b"", start, end, payload, lengths, memory, pe)


def _read_pe(data: bytes) -> _Pe | None:
    if data[:2] != b"MZ":
        return None
    (header,) = _WORD.unpack_from(data, 60)
    if data[header : header + 4] != b"PE\0\0":
        return None
    optional = header + 24
    kind, count = _HALF.unpack_from(data, optional)[0], _HALF.unpack_from(data, header + 6)[0]
    certificates = optional + _CERTIFICATES.get(kind, 0)
    if kind not in _CERTIFICATES:
        _refuse("the PE header is of no known kind", optional)
    first = optional + _HALF.unpack_from(data, header + 20)[0]
    if max(certificates + _PAIR.size, first + 40 * count) > _SECTORS:
        _refuse("the PE headers are not in front of the setup header", header)
    if first < certificates + _PAIR.size:
        return None  # too short an optional header for any certificates
    sizes = {}
    for section in range(first, first + 40 * count, 40):
        size, address = _PAIR.unpack_from(data, section + 8)
        sizes[address + size] = section + 8
    return _Pe(optional + _IMAGE_SIZE, optional + _CHECKSUM, certificates, sizes)


def _find_lengths(body: bytes, start: int, end: int, payload: Span) -> int | None:
    """The one place outside of the payload with its two lengths side by side."""
    (size,) = _WORD.unpack_from(body, payload.end - 4)
    words = _PAIR.pack(payload.size, size)
    rest = body[start : payload.offset] + bytes(payload.size) + body[payload.end : end]
    return start + rest.index(words) if rest.count(words) == 1 else None


def _unpack(boot: _Boot, room: Span) -> Content:
    """What is in the payload, its size counted as packed; all of the room that nobody reads has to be zeros."""
    end = boot.payload.end
    (size,) = _WORD.unpack_from(boot.body, end - 4)
    packed = boot.body[boot.payload.offset : end]
    zipped = packed.startswith(_GZIP)
    content: Content = unpack_stream(packed if zipped else packed[:-4], size)
    # A .gz stream ends with the size of its content, so that none has to follow.
    gap = b"" if zipped and content.packed == len(packed) else packed[content.packed : -4]
    if any(gap) or any(boot.body[end : room.end]):
        _refuse("something else stands behind the payload", boot.payload.offset + content.packed)
    return content if zipped else content._replace(packed=content.packed + _WORD.size)


def _check_lengths(old: _Boot, new: _Boot, size: int) -> None:
    if old.lengths is None:
        if (
            new.payload != old.payload
            or new.body[new.payload.end - 4 : new.payload.end] != (old.body[old.payload.end - 4 : old.payload.end])
        ):
            _refuse("the payload has another length, and the decompressor was not told", _PAYLOAD)
    elif _PAIR.unpack_from(new.body, old.lengths) != (new.payload.size, size):
        _refuse("the decompressor has other lengths than the payload", old.lengths)


def _check_memory(old: _Boot, new: _Boot, original: Content, content: Content) -> None:
    """The new payload must not stand lower than it may, seen from the start of what it becomes.

    It counts where the stream ends, not the zeros behind it. More memory does no harm, as long as it is there: it
    may become more by all that is unpacked.
    """
    needed = _in_front(content)
    least = old.memory + max(needed - _in_front(original), 0)
    if not least <= new.memory <= old.memory + _in_front(content._replace(packed=0)):
        _refuse(f"init_size is {new.memory} and has to be {least}", _MEMORY)


def _in_front(content: Content) -> int:
    size = len(content.data)
    extra = size // 256 + _MARGIN + max(size - content.packed, 0)
    return (extra + _PAGE - 1) // _PAGE * _PAGE


def _check_sums(old: _Boot, new: _Boot, after: bytes) -> None:
    if _crc(old) and not _crc(new):
        _refuse("the CRC at the end of the code does not hold any more", new.end - 4)
    checksum = _WORD.unpack_from(after, new.pe.checksum)[0] if new.pe else 0
    if new.pe and checksum and checksum != _pe_sum(after, new.pe.checksum):
        _refuse("the PE checksum is wrong", new.pe.checksum)


def _crc(boot: _Boot) -> bool:
    """Whether the build's CRC holds, over the image as it is or as it was before somebody signed it."""
    code = bytearray(boot.body[: boot.end])
    if crc32(code) == 0xFFFFFFFF:
        return True
    if boot.pe is None:
        return False
    code[boot.pe.checksum : boot.pe.checksum + 4] = bytes(4)
    code[boot.pe.certificates : boot.pe.certificates + 8] = bytes(8)
    return crc32(code) == 0xFFFFFFFF


def _pe_sum(data: bytes, checksum: int) -> int:
    words = array("H", data[:checksum] + bytes(4) + data[checksum + 4 :] + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(data)


def _check_rest(old: _Boot, new: _Boot) -> None:
    """Everything that is not named above is the same, to the byte."""
    spans = [old.payload, Span(_PAYLOAD + 4, 4), Span(_MEMORY, 4)]
    if old.lengths is not None:
        spans.append(Span(old.lengths, _PAIR.size))
    if _crc(old):
        spans.append(Span(old.end - 4, 4))
    if old.pe:
        spans += [Span(old.pe.checksum, 4), Span(old.pe.certificates, 8)]
        spans += _mapped(old, new, old.pe)
    before, after = bytearray(old.body), bytearray(new.body)
    for span in spans:
        before[span.offset : span.end] = after[span.offset : span.end] = bytes(span.size)
    # Signing tools fill the file up, so that the certificates are aligned.
    shorter, longer = sorted((before, after), key=len)
    if len(longer) - len(shorter) >= _ALIGNED or any(longer[len(shorter) :]):
        _refuse("the image has another size", len(shorter))
    if longer[: len(shorter)] != shorter:
        what = "a byte differs that is no part of the payload, and of nothing that has to follow it"
        _refuse(what, _first_difference(before, after))


def _first_difference(before: bytearray, after: bytearray) -> int:
    one, other = memoryview(before), memoryview(after)
    low, high = 0, min(len(before), len(after))
    while low < high:
        middle = (low + high) // 2 + 1
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _mapped(old: _Boot, new: _Boot, pe: _Pe) -> list[Span]:
    """The sizes of the image in memory, where they may have grown with init_size, and did."""
    (image,) = _WORD.unpack_from(old.body, pe.image_size)
    last = pe.sizes[max(pe.sizes)] if pe.sizes else None
    growth = new.memory - old.memory
    if image < old.memory or not growth:
        return []
    fields = [pe.image_size] if last is None else [pe.image_size, last]
    for field in fields:
        if _WORD.unpack_from(new.body, field)[0] - _WORD.unpack_from(old.body, field)[0] != growth:
            _refuse("the memory of the EFI application did not grow with init_size", field)
    return [Span(field, 4) for field in fields]
