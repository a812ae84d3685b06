"""Which bytes the code in this image uses for NULL and RET0, and where its return helpers are.

A kernel is asked itself first: it keeps its own xor in a constant, `xor5rax`, and its version in its
banner. Only where both are missing the present form is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from staticcall.abi import static_call
from staticcall.model.image import Image
from staticcall.model.sites import Dialect
from staticcall.model.symbols import Symbol

# A kernel says so in its banner, a module in its `.modinfo`.
_VERSION = re.compile(r"(?:Linux version |vermagic=)(\d+)\.(\d+)")


def read_dialect(image: Image, symbols: Mapping[str, Symbol]) -> Dialect:
    """Collect the evidence; `symbols` are those of the image that have one of the names concerned."""
    addresses = {name: symbol.address for name, symbol in symbols.items()}
    banner = _banner(image, addresses.get(static_call.BANNER_SYMBOL)) or _vermagic(image)
    match = _VERSION.match(banner)
    release = (int(match[1]), int(match[2])) if match else None
    return Dialect(
        kernel=image.kernel,
        release=release,
        banner=banner,
        nop=static_call.NOP5,
        ret0=_ret0(image, addresses.get(static_call.XOR_SYMBOL), release),
        return_thunk=addresses.get(static_call.RETURN_THUNK),
        return0=addresses.get(static_call.RETURN0),
        plain_return=addresses.get(static_call.PLAIN_RETURN),
        nop_function=addresses.get(static_call.NOP_FUNCTION),
    )


def _banner(image: Image, address: int | None) -> str:
    offset = None if address is None else image.offset_of(address)
    if offset is None:
        return ""
    size = min(static_call.BANNER_SIZE, image.source.size - offset)
    return image.source.read(offset, size).partition(b"\0")[0].decode("ascii", "replace").strip()


def _vermagic(image: Image) -> str:
    """What a module says of the kernel that it was built for."""
    section = image.section_named((static_call.MODULE_INFO_SECTION,)) if image.placement is not None else None
    if section is None:
        return ""
    entries = image.source.read(section.offset, section.size).split(b"\0")
    found = next((entry for entry in entries if entry.startswith(b"vermagic=")), b"")
    return found.decode("ascii", "replace")


def _ret0(image: Image, constant: int | None, release: tuple[int, int] | None) -> bytes:
    if constant is not None and image.offset_of(constant, static_call.XOR_SIZE) is not None:
        code = image.read_at(constant, static_call.XOR_SIZE)
        if code in static_call.RET0_FORMS:
            return code
    if release and static_call.RET0_FIRST_RELEASE <= release < static_call.RET0_CS_FIRST_RELEASE:
        return static_call.RET0_DATA16
    return static_call.RET0_CS
