"""Records of an object's table that were replaced: each has become a copy of another one, which stays.

A record is two relocations, and what they say is in their symbols and addends: the fields are relative to themselves.
"""

from typing import NamedTuple

from staticcall.abi.static_call import RECORD_SIZE
from staticcall.errors import VerificationError
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.entries import entries_at
from staticcall.verify.objects.places import KEY_FIELD, Place, tables_of

# Type, symbol and addend of the two relocations.
_Half = tuple[int, int, int]
_Record = tuple[_Half | None, _Half | None]


class Replaced(NamedTuple):
    """How many records differ, the fields of theirs, and the sites that no record lists any more."""

    records: int
    fields: frozenset[Place]
    lost: frozenset[Place]


def read_replaced(before: Elf, after: Elf) -> Replaced:
    """Compare the tables; raises `VerificationError` for a record that differs and is no copy of one that stays."""
    count = 0
    fields: set[Place] = set()
    lost: set[Place] = set()
    for table in tables_of(before):
        old, new = _records(before, table), _records(after, table)
        differing = [number for number, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
        staying = {was for was, now in zip(old, new, strict=True) if was == now}
        count += len(differing)
        for number in differing:
            at = number * RECORD_SIZE
            if new[number] not in staying or None in new[number]:
                raise VerificationError(
                    f"record {number} changed and is no copy of a record that stays", offset=after.offsets[table] + at
                )
            fields |= {(table, at), (table, at + KEY_FIELD)}
            site, _ = old[number]
            if old[number] not in staying and site is not None:
                base = before.symbol(site[1])
                lost.add((base.section, base.value + site[2]))
    return Replaced(count, frozenset(fields), frozenset(lost))


def _records(file: Elf, table: int) -> list[_Record]:
    found = entries_at(file, {table: range(file.sizes[table])})
    halves = {at: (kind, symbol, addend) for (_, at), (_, kind, symbol, addend) in found.items()}
    return [(halves.get(at), halves.get(at + KEY_FIELD)) for at in range(0, file.sizes[table], RECORD_SIZE)]
