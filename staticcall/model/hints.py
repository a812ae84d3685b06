"""What was found in an image that does not name it: hints for a proof, which checks each by itself."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Pairing(NamedTuple):
    """The linked addresses of a key, of its trampoline, and of the place that says that they belong together.

    That is two pointers, the key's first; a record of `.static_call_tramp_key`; the constants that code hands to an
    update, the lower one; or the trampoline itself, where it reads the key.
    """

    key: int
    trampoline: int
    place: int


class Hints(NamedTuple):
    """`table` is the linked start and end address of the records, `helpers` has addresses by the names of symbols.

    `names` are those of keys, by address, for messages alone.
    """

    table: tuple[int, int] | None = None
    helpers: Mapping[str, int] = MappingProxyType({})
    pairs: tuple[Pairing, ...] = ()
    names: Mapping[int, str] = MappingProxyType({})


NO_HINTS = Hints()
