"""Which keys a request is about."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from staticcall.model.sites import Key


def select_keys(keys: Iterable[Key], pattern: str | None) -> tuple[Key, ...]:
    """The keys whose name matches the glob, all without one."""
    return tuple(key for key in keys if pattern is None or fnmatchcase(key.name, pattern))
