"""Records of the table that were replaced: each has become a copy of another one, which stays.

A site whose last record is gone is led elsewhere by nobody, neither at boot nor later. So it has to lead by itself
where its static call does, and not by what follows the key.

Source: kernel/static_call_inline.c, Linux 6.12, for what a kernel makes of a record that is there twice: it patches the
site twice, and finds its bytes there already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from staticcall.abi import static_call as abi
from staticcall.errors import VerificationError
from staticcall.model.change import EditKind
from staticcall.verify import rules
from staticcall.verify.compare import Change
from staticcall.verify.decode import Decoded
from staticcall.verify.layout import Layout
from staticcall.verify.scene import Record, Scene
from staticcall.verify.source import Source, Span

# Sections that a kernel frees after boot.
_FREED = (".init", ".exit")


class Replaced(NamedTuple):
    """The records that differ as changes, and those of the sites that no record lists any more."""

    changes: tuple[Change, ...]
    lost: frozenset[Record]


class _Entry(NamedTuple):
    """A record as it is, resolved to linked addresses, the flags left in the key."""

    site: int
    key: int


def read_replaced(scene: Scene, original: Source, patched: Source) -> Replaced:
    """Compare the tables; raises `VerificationError` for a record that differs and is no copy of one that stays."""
    changes: list[Change] = []
    lost: set[Record] = set()
    for start, span in zip(scene.starts, scene.tables, strict=True):
        before, after = original.read(*span), patched.read(*span)
        if before != after:
            changes += _judge_table(scene, start, span, before, after, lost)
    return Replaced(tuple(changes), frozenset(lost))


def _judge_table(
    scene: Scene, start: int, span: Span, before: bytes, after: bytes, lost: set[Record]
) -> Iterator[Change]:
    old, new = list(_entries(before, start)), list(_entries(after, start))
    differing = [number for number, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
    changed = set(differing)
    staying = {was for number, was in enumerate(old) if number not in changed}
    for number in differing:
        was, now = old[number], new[number]
        at = number * abi.RECORD_SIZE
        offset, address = span.offset + at, start + at
        if now not in staying:
            raise VerificationError(
                f"record {number} at {address:#x} changed and is no copy of a record that stays: it lists"
                f" {now.site:#x} with the key {now.key & abi.NO_FLAGS:#x} and the flags {now.key & abi.FLAG_MASK}",
                offset=offset,
            )
        if scene.layout.kernel and _is_freed(scene.layout, now.site):
            raise VerificationError(
                f"record {number} at {address:#x} became a copy of one whose site {now.site:#x} is freed after boot",
                offset=offset,
            )
        key = was.key & abi.NO_FLAGS
        record = Record(was.site, scene.owners.get(key, key), bool(was.key & abi.TAIL_FLAG))
        if was not in staying:
            lost.add(record)
        ends = slice(at, at + abi.RECORD_SIZE)
        yield Change(offset, before[ends], after[ends], EditKind.RECORD, scene.keys[record.key], address)


def _entries(table: bytes, start: int) -> Iterator[_Entry]:
    for number, (to_site, to_key) in enumerate(abi.RECORD.iter_unpack(table)):
        here = start + number * abi.RECORD_SIZE
        yield _Entry(here + to_site, here + 4 + to_key)


def _is_freed(layout: Layout, address: int) -> bool:
    return any(
        section.allocated and section.name.startswith(_FREED) and section.extent.start <= address < section.extent.stop
        for section in layout.sections
    )


def check_lost(place: rules.Place, call: rules.Call, now: Decoded) -> None:
    """Accept a site without a record that goes past the trampoline; `rules.check_site` has accepted all else."""
    if call.func is None:
        place.refuse(f"has lost its record, and only run time knows where {call.name} leads")
    if now.destination is not None and now.destination == call.trampoline:
        place.refuse(f"has lost its record, and goes by the trampoline of {call.name}")
