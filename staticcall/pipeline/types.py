"""What says which types functions have, the best first; each is read when it is first asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path

from staticcall.model.image import Image
from staticcall.model.types import Prototype, TypeHash, TypeSource
from staticcall.read.btf_types import BtfTypes
from staticcall.read.dwarf_types import DwarfTypes
from staticcall.read.image import open_image
from staticcall.read.kcfi import HashedTypes


class _Late:
    """Type data that is read when somebody asks for a type."""

    def __init__(self, name: str, read: Callable[[], TypeSource]) -> None:
        self.name = name
        self._read = read

    @cached_property
    def _source(self) -> TypeSource:
        return self._read()

    @property
    def hint(self) -> str:
        return self._source.hint

    def type_of(self, name: str, address: int) -> Prototype | TypeHash | None:
        return self._source.type_of(name, address)


class _Compiled(_Late):
    """BTF without what it says of functions in assembly.

    It is made from DWARF, and assemblers write a DWARF entry without any types for each function: it then looks as if
    it took and returned nothing. Where DWARF is still there, it tells which functions these are.
    """

    def __init__(self, read: Callable[[], TypeSource], dwarf: Callable[[], DwarfTypes]) -> None:
        super().__init__("BTF", read)
        self._dwarf = dwarf

    def type_of(self, name: str, address: int) -> Prototype | TypeHash | None:
        found = super().type_of(name, address)
        if isinstance(found, Prototype) and found.bare and address and self._dwarf().assembled(address):
            return None
        return found


def sources_of(image: Image, vmlinux: Path | None) -> tuple[TypeSource, ...]:
    """The type data of an image: BTF, on top of that of its kernel if it is a module, then DWARF, then kCFI."""

    @cache
    def dwarf() -> DwarfTypes:
        return DwarfTypes(image)

    def btf() -> TypeSource:
        if vmlinux is None:
            return BtfTypes(image)
        with open_image(vmlinux) as kernel:
            return BtfTypes(image, kernel)

    return _Compiled(btf, dwarf), _Late("DWARF", dwarf), HashedTypes(image)
