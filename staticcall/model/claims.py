"""Who else knows the code where static calls are: other tables of a kernel, and the places that they name."""

from typing import NamedTuple

from staticcall.model.form import Word


class Owner(Word):
    """The table that names a place; the value is its section's name, where it has one of its own."""

    ALTERNATIVES = ".altinstructions"
    PARAVIRT = ".parainstructions"
    JUMP_LABELS = "__jump_table"
    RETPOLINES = ".retpoline_sites"
    RETURNS = ".return_sites"
    CALLS = ".call_sites"
    LOCKS = ".smp_locks"
    EXCEPTIONS = "__ex_table"
    KPROBE_BLACKLIST = "_kprobe_blacklist"


# Those that say something about a place, and write nothing there.
NAMING_ONLY = frozenset({Owner.EXCEPTIONS, Owner.KPROBE_BLACKLIST})


class Claim(NamedTuple):
    """`size` bytes at a linked address that a table names.

    Where a table gives no size it is that of the instruction that must be there, or 1 for a lock prefix and for an
    instruction that may fault.
    """

    owner: Owner
    address: int
    size: int


class Unreadable(NamedTuple):
    """A table that cannot be one, so nobody knows which places it names; `address` is where it starts."""

    owner: Owner
    address: int
    reason: str


class Claims(NamedTuple):
    """The claims that touch the places asked about, in order of address, and the tables that could not be read."""

    found: tuple[Claim, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
