"""Signatures of modules, as far as they can be judged without the key: their form, and what stands before them.

Sources: include/linux/module_signature.h for the layout; kernel/module_signature.c, mod_check_sig(), for what a kernel
wants to see in it; X.690 section 8.1 for the length of what PKCS#7 begins with.
"""

from __future__ import annotations

import struct
from typing import Final

from staticcall.errors import MalformedError, VerificationError
from staticcall.verify.objects.grown import is_signed, without_signature

_MARK_SIZE: Final = 28
# Algorithm, hash, kind of id, sizes of the signer's name and key id, padding; the signature's size. Big-endian.
_INFO: Final = struct.Struct(">5B3sI")
_PKCS7: Final = 2
_SEQUENCE: Final = 0x30


def check_signed(unsigned: bytes, signed: bytes) -> None:
    """See that a signed module is an unsigned one with a well-formed signature behind it, and nothing else.

    Raises `VerificationError`. Whether the signature holds is for who has the certificate to say.
    """
    if not is_signed(signed):
        raise VerificationError("is not signed after the signing command", advice="nothing was published")
    try:
        core = without_signature(signed)
    except MalformedError as error:
        raise VerificationError(error.what, offset=error.offset, advice="nothing was published") from error
    if core != unsigned:
        raise VerificationError("was changed otherwise by the signing command", advice="nothing was published")
    check_form(signed)


def check_form(signed: bytes) -> None:
    """See that the signature of a module is one that a kernel would look at; raises `VerificationError`."""
    end = len(signed) - _MARK_SIZE
    *zeros, padding, size = _INFO.unpack_from(signed, end - _INFO.size)
    kind = zeros.pop(2)
    start = end - _INFO.size - size
    if kind != _PKCS7 or any((*zeros, *padding)):
        raise VerificationError("has a signature that is no PKCS#7", offset=end - _INFO.size)
    if not size or _der_size(signed[start : start + size]) != size:
        raise VerificationError("has a signature whose size is not what it says", offset=start)


def _der_size(data: bytes) -> int | None:
    """The size of the sequence that this begins with, its header included; None where it begins with none."""
    if len(data) < 2 or data[0] != _SEQUENCE:
        return None
    if not data[1] & 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")
