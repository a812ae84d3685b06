"""What the compiler checks in static_call_update(), for a target that is changed without one.

The new target has to be a function of the key's type. That is the type of the function that the key leads to, or of the
trampoline, which is declared as such a function. NULL leaves callers without a result, so it is for keys whose type
returns void; RET0 clears %eax, so it is for those that return an integer or a pointer in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from staticcall.abi.static_call import TRAMPOLINE_PREFIX
from staticcall.errors import InputError, UnsafeError
from staticcall.model.evidence import Evidence
from staticcall.model.image import Image
from staticcall.model.sites import Key, Site, Target, TargetKind
from staticcall.model.types import Prototype, ResultKind, TypeHash, TypeSource

# What --force-type stands for.
FORCE_TYPE: Final = "type"
NULL_RETURNS_VALUE: Final = "null-returns-value"
_ADVICE: Final = "name a function of that type, or --force-type"


class _Known(NamedTuple):
    """A function with its type, and which type data says so."""

    name: str
    type: Prototype
    source: str

    def __str__(self) -> str:
        return self.type.declared(self.name)


def check_types(
    image: Image,
    key: Key,
    sites: Sequence[Site],
    present: Target,
    target: Target,
    evidence: Evidence,
    forced: frozenset[str],
    *,
    lasting: bool = False,
) -> str:
    """What was found out about the types, in words; raises `UnsafeError` where the target is none for this key.

    A type that is not known is no danger, except for NULL. Empty where there is nothing to compare. A `lasting` target
    is one that sites are pinned to: a kernel's key may be NULL until it is first used, but not for ever. In a user
    program only keys whose type returns void are NULL at all.
    """
    stays = lasting and target.kind is TargetKind.NULL and not key.live
    if present.kind is target.kind and present.address == target.address and not stays:
        return ""
    try:
        if target.kind is TargetKind.NULL:
            return _null(image, key, sites, present, evidence.types(), lasting=lasting)
        if target.kind is TargetKind.RET0:
            return _ret0(key, present, evidence.types())
        return _function(key, present, target, evidence.types())
    except UnsafeError as danger:
        if FORCE_TYPE not in forced and danger.code not in forced:
            raise
        return f"forced although {danger.what}"
    except InputError as error:
        if FORCE_TYPE not in forced:
            raise
        return f"types not compared: {error.what}"


def _null(
    image: Image, key: Key, sites: Sequence[Site], present: Target, sources: Sequence[TypeSource], *, lasting: bool
) -> str:
    was_null = present.kind is TargetKind.NULL
    if (was_null and not lasting) or not (sites or image.kernel):
        return ""
    own = _type_of_key(key, present, sources)
    if own is not None and own.type.result is ResultKind.VOID:
        return f"returns nothing by {own.source}: {own}"
    reason = f"returns a value by {own.source} ({own})" if own else "may return a value, no type data says otherwise"
    what = f"key {key.name}" if was_null else f"{present.name}, the target of key {key.name},"
    raise UnsafeError(
        f"{what} {reason}, and NULL would leave its callers with none",
        code=NULL_RETURNS_VALUE,
        advice=f"name a function that does nothing, or --force {NULL_RETURNS_VALUE}",
    )


def _ret0(key: Key, present: Target, sources: Sequence[TypeSource]) -> str:
    own = _type_of_key(key, present, sources)
    if own is None:
        return _not_compared(f"of key {key.name}", sources)
    result = own.type.result
    if result in (ResultKind.INTEGER, ResultKind.POINTER):
        return f"returns {'an' if result is ResultKind.INTEGER else 'a'} {result} by {own.source}: {own}"
    raise UnsafeError(
        f"key {key.name} is for functions that return neither an integer nor a pointer by {own.source} ({own}),"
        " and RET0 clears a register for one",
        code="ret0-returns-no-integer",
        advice=_ADVICE,
    )


def _function(key: Key, present: Target, target: Target, sources: Sequence[TypeSource]) -> str:
    own = _type_of_key(key, present, sources)
    new = _type_of(target.name, target.address, sources)
    if own is None or new is None:
        return _hashes(present, target, sources) or _not_compared(
            f"of {target.name}" if own else f"of key {key.name}", sources
        )
    source = own.source if own.source == new.source else f"{own.source} and {new.source}"
    if own.type.agrees(new.type):
        return f"types agree by {source}: {new}"
    raise UnsafeError(
        f"{target.name} is no function of key {key.name}'s type by {source}: {new} instead of {own}",
        code="type-mismatch",
        advice=_ADVICE,
    )


def _hashes(present: Target, target: Target, sources: Sequence[TypeSource]) -> str:
    """What the hashes of types say, empty where there are none; raises `UnsafeError` where they differ."""
    for source in sources:
        own, new = (source.type_of(place.name, place.address) for place in (present, target))
        if not (isinstance(own, TypeHash) and isinstance(new, TypeHash)):
            continue
        if own == new:
            return f"types agree by {source.name}: {new.value:#010x}"
        raise UnsafeError(
            f"{target.name} is of another type than {present.name} by {source.name}:"
            f" {new.value:#010x} instead of {own.value:#010x}",
            code="type-mismatch",
            advice=_ADVICE,
        )
    return ""


def _type_of_key(key: Key, present: Target, sources: Sequence[TypeSource]) -> _Known | None:
    """The type of what the key leads to now, else that as which its trampoline is declared."""
    own = _type_of(present.name, present.address, sources) if present.kind is TargetKind.FUNCTION else None
    return own or _type_of(TRAMPOLINE_PREFIX + key.name, 0, sources)


def _type_of(name: str, address: int, sources: Sequence[TypeSource]) -> _Known | None:
    for source in sources:
        found = source.type_of(name, address)
        if isinstance(found, Prototype):
            return _Known(name.removeprefix(TRAMPOLINE_PREFIX), found, source.name)
    return None


def _not_compared(what: str, sources: Sequence[TypeSource]) -> str:
    hints = "".join(f"; {source.hint}" for source in sources if source.hint)
    return f"types not compared: no type data {what}{hints}"
