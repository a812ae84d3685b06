"""Hashes of functions' types, as kCFI keeps them in front of the code.

    __cfi_f:  mov $hash,%eax    b8 imm32, behind nops that make it end right before the function,
              nops              or in front of nops up to the function
    f:        ...

A caller compares the hash with that of the type it calls through, and traps where they differ. Whether anything is in
front of a function is said by the symbol `__cfi_` and its name. Sources: clang's documentation, ControlFlowIntegrity
(KCFI); arch/x86/kernel/cfi.c; X86AsmPrinter::emitKCFITypeId() of LLVM.
"""

from __future__ import annotations

from typing import Final

from staticcall.model.image import Image
from staticcall.model.types import TypeHash

_PREFIX: Final = "__cfi_"
_MOVE_SIZE: Final = 5
# mov $imm32,%eax
_MOVE: Final = 0xB8
# Padding for calls is 16 bytes in kernels; more than this is another function.
_LONGEST: Final = 64


class HashedTypes:
    """The functions of an image by their symbols."""

    name = "kCFI"
    hint = ""

    def __init__(self, image: Image) -> None:
        self._image = image

    def type_of(self, name: str, address: int) -> TypeHash | None:
        """The hash of the type of the function there, None where it has none."""
        for symbol in self._image.symbols.named(_PREFIX + name):
            size = address - symbol.address
            if _MOVE_SIZE <= size <= _LONGEST and self._image.offset_of(symbol.address, size) is not None:
                return _hash_in(self._image.read_at(symbol.address, size))
        return None


def _hash_in(preamble: bytes) -> TypeHash | None:
    for start in (len(preamble) - _MOVE_SIZE, 0):
        if preamble[start] == _MOVE:
            return TypeHash(int.from_bytes(preamble[start + 1 : start + _MOVE_SIZE], "little"))
    return None
