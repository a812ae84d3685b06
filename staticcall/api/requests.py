"""What a caller asks for, checked, and as the pipeline takes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeVar

from staticcall.errors import StrPath, UsageError
from staticcall.model.aids import Aids, NameAids
from staticcall.model.sites import Policy, PolicyName
from staticcall.pipeline.forms import Format
from staticcall.pipeline.look import NO_LINE, is_line

# A type checker sees a misspelt word; the words themselves are those of the enumerations, which a test compares.
PolicyWord = Literal["lutomirski", "rel32", "block8", "torvalds", "kernel"]
FormatWord = Literal["text", "json", "jsonl", "html", "sarif", "csv", "markdown"]
Danger = Literal["kaslr-slot", "null-returns-value", "target-in-init", "type", "unreadable-table", "unversioned-import"]

_Word = TypeVar("_Word", bound=StrEnum)


def path_of(path: StrPath, member: str | None = None) -> Path:
    """A path as the pipeline has it; a member is named as reports name it, FILE(MEMBER)."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"a path is a str or an os.PathLike[str], not {type(path).__name__}")
    if not name:
        raise UsageError("a path without a name")
    return Path(name if member is None else f"{name}({member})")


def optional_path(path: StrPath | None) -> Path | None:
    """The same of a path that need not be given."""
    return None if path is None else path_of(path)


def aids_of(
    vmlinux: StrPath | None,
    modules: StrPath | None,
    system_map: StrPath | None,
    debug_file: StrPath | None,
    debug_dir: StrPath | None,
) -> Aids:
    """What is around a file."""
    names = NameAids(optional_path(system_map), optional_path(debug_file), optional_path(debug_dir))
    return Aids(names, optional_path(vmlinux), optional_path(modules))


def policy_of(name: str, line: int) -> Policy:
    """A policy by its name; raises `UsageError` for one that there is not, or a line that cannot be."""
    if not is_line(line):
        raise UsageError(f"a cache line of {line} bytes is {NO_LINE}")
    return Policy(_word(PolicyName, "policy", name), line)


def format_of(name: str) -> Format:
    """A format by its name; raises `UsageError` for one that there is not."""
    return _word(Format, "format", name)


def _word(words: type[_Word], what: str, name: str) -> _Word:
    try:
        return words(name)
    except ValueError:
        raise UsageError(f"there is no {what} {name!r}", advice=f"known are {', '.join(words)}") from None


def wanted_targets(sets: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Keys and targets by their names; raises `TypeError` for anything else."""
    if sets is not None and not isinstance(sets, Mapping):
        raise TypeError(f"sets is a mapping from names to names, not {type(sets).__name__}: {{'KEY': 'TARGET'}}")
    pairs = tuple((sets or {}).items())
    for pair in pairs:
        if not all(isinstance(name, str) for name in pair):
            raise TypeError(f"sets leads from names to names, not {pair[0]!r} to {pair[1]!r}; NULL and RET0 are names")
    return pairs


def several(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """Names given as any collection of them; raises `TypeError` for one name, which is a collection of letters."""
    if isinstance(names, str):
        raise TypeError(f"{what} takes several: give [{names!r}]")
    return tuple(names)
