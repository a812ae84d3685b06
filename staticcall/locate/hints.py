"""What a proof has to be told of an image that does not name it; it checks each hint by itself."""

from __future__ import annotations

from staticcall.abi import static_call
from staticcall.model.hints import NO_HINTS, Hints
from staticcall.model.image import Image
from staticcall.model.sites import Located


def hints_of(image: Image, located: Located) -> Hints:
    """Where table, helpers and trampolines are in a linked image whose own symbols do not say so."""
    table = located.table
    if table is None or not needs_hints(image):
        return NO_HINTS
    from staticcall.locate.nameless import landmarks_of, pairings_of  # noqa: PLC0415 - imports numpy, 0.1 s

    helpers = landmarks_of(image, located.keys, located.trampolines, located.sites) if image.kernel else {}
    dialect = located.dialect
    named = {
        static_call.RETURN_THUNK: dialect.return_thunk,
        static_call.RETURN0: dialect.return0,
        static_call.PLAIN_RETURN: dialect.plain_return,
    }
    homes = {address: key.trampoline.address for address, key in located.keys.items() if key.trampoline}
    pairs = pairings_of(image, table, located.trampolines, located.keys.keys())
    return Hints(
        (table.start, table.stop),
        helpers | {name: address for name, address in named.items() if address is not None},
        tuple(pair for pair in pairs if homes.get(pair.key) == pair.trampoline),
        {address: key.name for address, key in located.keys.items()},
    )


def needs_hints(image: Image) -> bool:
    """Whether a linked image has no symbol table of its own, or a kernel one without the ends of the table."""
    if image.placement is not None:
        return False
    if image.name_source.kind != "symtab":
        return True
    return image.kernel and not image.symbols.named(static_call.TABLE_START)
