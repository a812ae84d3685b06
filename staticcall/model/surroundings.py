"""What is around a module: the static calls of its kernel, and of the modules that it needs."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from staticcall.model.sites import Definition


class Definer(NamedTuple):
    """The static calls of a kernel, or of a module, that others may use.

    `release` is the kernel's, as in `uname -r`, empty where the file does not say it. `keys` has every key by its name
    without the prefix. `exported` are the symbols of keys and trampolines that modules may use, None where that is not
    known. `by_trampoline` gives the key's name for that of a trampoline: a kernel has a table for modules that may
    call and not update; None where the table was not found.
    """

    owner: str
    release: str
    keys: Mapping[str, Definition]
    exported: frozenset[str] | None
    by_trampoline: Mapping[str, str] | None

    def offers(self, symbol: str) -> bool:
        """Whether a module may use this symbol, as far as is known."""
        return self.exported is None or symbol in self.exported


class Surroundings(NamedTuple):
    """The kernel, and whoever finds a module by its name; either is None where the user did not name it.

    `module` gives None for a module that is not there.
    """

    kernel: Definer | None = None
    module: Callable[[str], Definer | None] | None = None
