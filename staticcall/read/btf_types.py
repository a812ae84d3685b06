"""The types of functions by name, out of BTF."""

from __future__ import annotations

from typing import Final

from staticcall.errors import about
from staticcall.model.image import Image
from staticcall.model.types import (
    DEEPEST,
    MOST_NODES,
    NAME_PER_NODE,
    Array,
    Basic,
    BasicKind,
    CType,
    Enumeration,
    Function,
    Pointer,
    Prototype,
    Qualified,
    Tagged,
    Typedef,
    Void,
)
from staticcall.read import btf
from staticcall.read.btf import Btf
from staticcall.read.names import plain_name

_SECTION: Final = ".BTF"
_OWN_BASE: Final = ".BTF.base"
_QUALIFIERS: Final = {btf.CONST: "const", btf.VOLATILE: "volatile", btf.RESTRICT: "restrict"}
_KIND_FLAG: Final = 1 << 16
_HINT: Final = "a module's type data goes on from its kernel's: give --vmlinux"
# Functions of one name have one type, or a few.
_MOST_NAMESAKES: Final = 8
# So many names of members take as long as one type.
_NAMES_PER_NODE: Final = 8
# The byte of an INT that says what it holds.
_BOOLEAN: Final = 4


class BtfTypes:
    """The functions of an image by their names in BTF.

    A module's own data is only of use with its base: `kernel` is the image of the kernel that the user named for it.
    BTF knows no addresses, so a name that several functions of the image share says nothing.
    """

    name = "BTF"

    def __init__(self, image: Image, kernel: Image | None = None) -> None:
        self._image = image
        self._kernel = kernel
        self.hint = _HINT if kernel is None and _needs_kernel(image) else ""
        self._kernel_data = _read(kernel, None) if kernel is not None else None
        self._data = _read(image, self._kernel_data)
        if kernel is not None and self._data is not None:
            with about(kernel.path):
                self._data.check_base()

    def type_of(self, name: str, address: int) -> Prototype | None:
        """The type of the function of this name, None where BTF has none or several."""
        image, data = self._image, self._data
        if image.placement is not None and self._kernel is not None and not image.load_at(address):
            image, data = self._kernel, self._kernel_data
        if data is None or plain_name(name) != name:
            return None
        if len({symbol.address for symbol in image.symbols.named(name)} - _places(image)) > 1:
            return None
        numbers = set(data.functions(name))
        if len(numbers) > _MOST_NAMESAKES:
            return None
        found = [_prototype(data, number) for number in sorted(numbers)]
        return found[0] if found and all(found[0].agrees(other) for other in found) else None


def _places(image: Image) -> frozenset[int]:
    """The pretended addresses of what an object does not define."""
    return frozenset() if image.placement is None else frozenset(image.placement.undefined.values())


def _needs_kernel(image: Image) -> bool:
    """Whether the image has BTF that means nothing without another file's."""
    return (
        image.placement is not None
        and image.section_named((_SECTION,)) is not None
        and image.section_named((_OWN_BASE,)) is None
    )


def _read(image: Image, kernel: Btf | None) -> Btf | None:
    base = _section(image, _OWN_BASE, None)
    if base is None and image.placement is not None:
        base = kernel
        if base is None:
            return None
    return _section(image, _SECTION, base)


def _section(image: Image, name: str, base: Btf | None) -> Btf | None:
    section = image.section_named((name,))
    if section is None:
        return None
    with about(image.path):
        return Btf(image.source.read(section.offset, section.size), section.offset, base)


def _prototype(data: Btf, number: int) -> Prototype:
    type_ = _Builder(data).build(number, 0)
    if not isinstance(type_, Function):
        raise data.damaged(f"BTF type {number} is not that of a function")
    return Prototype(type_)


class _Builder:
    """Builds one type; raises `MalformedError` where it is nested deeper or is larger than any that people write."""

    def __init__(self, data: Btf) -> None:
        self._data = data
        self._left = MOST_NODES

    def _take(self, nodes: int, number: int) -> None:
        self._left -= nodes
        if self._left < 0:
            raise self._data.damaged(f"BTF type {number} leads in circles or has no end")

    def build(self, number: int, depth: int, alias: str = "") -> CType:
        self._take(1 if depth <= DEEPEST else MOST_NODES + 1, number)
        if not number:
            return Void()
        kind, name, value, _ = self._data.record(number)
        self._take(len(name) // NAME_PER_NODE, number)
        if kind in _QUALIFIERS:
            return Qualified(_QUALIFIERS[kind], self.build(value, depth + 1, alias))
        match kind:
            case btf.PTR:
                return Pointer(self.build(value, depth + 1))
            case btf.TYPEDEF:
                return Typedef(name, self.build(value, depth + 1, name))
            case btf.TYPE_TAG:
                return self.build(value, depth + 1, alias)
            case btf.ARRAY:
                element, _, length = self._data.more(number)
                # A pointer to an array of unknown size looks like one to an array of none.
                return Array(self.build(element, depth + 1), length or None)
            case btf.FUNC_PROTO:
                return self._function(number, value, depth + 1)
        return self._leaf(number, alias)

    def _leaf(self, number: int, alias: str) -> CType:
        kind, name, value, members = self._data.record(number)
        match kind:
            case btf.INT:
                return self._integer(number, name, value)
            case btf.FLOAT:
                return Basic(name, value, BasicKind.FLOAT)
            case btf.STRUCT | btf.UNION:
                word = "struct" if kind == btf.STRUCT else "union"
                return Tagged(word, name, value) if name else Tagged(word, "", value, alias, self._names_in(number, 3))
            case btf.FWD:
                return Tagged("union" if members & _KIND_FLAG else "struct", name, None)
            case btf.ENUM | btf.ENUM64:
                return self._enumeration(number, alias)
        raise self._data.damaged(f"BTF type {number} is no type of a value")

    def _integer(self, number: int, name: str, size: int) -> Basic:
        (word,) = self._data.more(number)
        if word >> 24 & _BOOLEAN:
            name = "_Bool"
        return Basic(name, size, BasicKind.INTEGER)

    def _names_in(self, number: int, step: int) -> tuple[str, ...]:
        names = self._data.more(number)[::step]
        self._take(1 + len(names) // _NAMES_PER_NODE, number)
        return tuple(map(self._data.name, names))

    def _enumeration(self, number: int, alias: str) -> Enumeration:
        kind, name, size, members = self._data.record(number)
        step = 3 if kind == btf.ENUM64 else 2
        signed: bool | None = bool(members & _KIND_FLAG)
        words = self._data.more(number)
        if not signed and any(word >> 31 for word in words[step - 1 :: step]):
            # Negative, or large: encoders before Linux 6.0 had no flag for it.
            signed = None
        if name:
            return Enumeration(name, size, signed)
        return Enumeration("", size, signed, alias, self._names_in(number, step))

    def _function(self, number: int, result: int, depth: int) -> Function:
        words = self._data.more(number)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        variadic = bool(pairs) and pairs[-1] == (0, 0)
        if variadic:
            pairs.pop()
        parameters = tuple(self.build(type_, depth) for _, type_ in pairs)
        return Function(self.build(result, depth), parameters, variadic)
