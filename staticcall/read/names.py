"""What compilers put behind the name of a function."""

from __future__ import annotations

import re
from typing import Final

# Renamed, and still what the source says. A copy made for some callers (isra, constprop, part) may take other
# arguments.
_HARMLESS: Final = re.compile(r"(\.llvm\.\d+|\.lto_priv\.\d+|\.localalias(\.\d+)?)$", re.ASCII)


def plain_name(name: str) -> str | None:
    """The name in the source of the function with this symbol, None where its type may not be the source's."""
    plain = _HARMLESS.sub("", name)
    return None if "." in plain else plain
