"""Which generation a kernel is of, by what the original file says: its banner, constants, messages, trampolines.

The rules are told in `staticcall.abi.generations`; what they are applied to is read here, by the verifier's own means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from staticcall.abi import generations
from staticcall.abi import static_call as abi
from staticcall.abi.generations import Generation, Release, Signs
from staticcall.verify.layout import Layout
from staticcall.verify.names import Names, find_symbols
from staticcall.verify.source import Source

_RELEASE = re.compile(rb"Linux version (\d{1,9})\.(\d{1,9})")
_STRINGS = ".rodata"


def read_generation(
    source: Source, layout: Layout, names: Names, trampolines: Sequence[bytes], *, jcc: bool = False
) -> Generation | None:
    """The generation of a kernel, None for any other image; `trampolines` are the eight bytes of each.

    `jcc` says that conditional tails are known to be accepted.
    """
    if not layout.kernel:
        return None
    release = _release(source, layout, names)
    message = _has_message(source, layout) if generations.needs_message(release) else None
    places = {abi.XOR_SYMBOL: names.xors}
    wanted = generations.needs_symbols(release, message=message)
    if wanted:
        places.update(find_symbols(source, layout, wanted))
    signatures: Counter[bytes] = Counter()
    if generations.needs_signatures(release):
        signatures.update(code[abi.SIGNATURE_OFFSET :] for code in trampolines)
    return generations.generation_of(
        Signs(
            release,
            _constants(source, layout, places),
            tuple(signature for signature, _ in signatures.most_common()),
            message,
            frozenset(places.keys() & {generations.NOPS_BY_PROCESSOR, generations.NOPS_FOR_ALL}),
            jcc or bool(names.returns),
        )
    )


def _release(source: Source, layout: Layout, names: Names) -> Release | None:
    """What the banner says; where no symbol leads to it, it is looked for among the strings."""
    for address in sorted(names.banners):
        size = layout.room_at(address, abi.BANNER_SIZE)
        offset = layout.offset_of(address, size) if size else None
        found = None if offset is None else _RELEASE.match(source.read(offset, size))
        if found:
            return int(found[1]), int(found[2])
    found = None if names.banners else _RELEASE.search(_strings(source, layout))
    return (int(found[1]), int(found[2])) if found else None


def _constants(source: Source, layout: Layout, places: Mapping[str, frozenset[int]]) -> dict[str, bytes]:
    """The bytes of each constant that has one place and no other."""
    found = {}
    for name, size in generations.CONSTANTS.items():
        addresses = places.get(name, frozenset())
        offset = layout.offset_of(min(addresses), size) if len(addresses) == 1 else None
        if offset is not None:
            found[name] = source.read(offset, size)
    return found


def _has_message(source: Source, layout: Layout) -> bool | None:
    strings = _strings(source, layout)
    return generations.SIGNATURE_MESSAGE in strings if strings else None


def _strings(source: Source, layout: Layout) -> bytes:
    for section in layout.sections:
        if section.name == _STRINGS and section.body.size and section.body.end <= source.size:
            return source.read(*section.body)
    if not layout.sections:
        return b"\0".join(source.read(*segment.body) for segment in layout.segments)
    return b""
