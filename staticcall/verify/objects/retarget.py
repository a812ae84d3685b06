"""The proof of a retargeted object: its original, with calls, trampolines and keys led elsewhere, coherently.

In an object the truth is in the relocations. Those at sites, at the jumps of trampolines and at the slots of keys
may name another function, or go, with the bytes there, for NULL and RET0; and come back. A function that had no
symbol gets one at the end of the table. A record may become a copy of another one, where its site leads by itself to
where its call does. The build id may be another one. Everything else is as it was.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from staticcall.errors import InputError, MalformedError, VerificationError
from staticcall.model.change import Edit, Proof
from staticcall.verify.notes import remarks
from staticcall.verify.objects import elf
from staticcall.verify.objects.build_id import read_new_ids
from staticcall.verify.objects.coherence import Call, Pair, check_call
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.entries import ChangedEntry, changed_entries, entries_at
from staticcall.verify.objects.generation import check_accepted
from staticcall.verify.objects.grown import check_grown, is_signed, without_signature
from staticcall.verify.objects.places import Place, Places, Site, find_places
from staticcall.verify.objects.records import read_replaced
from staticcall.verify.objects.states import MOST_BYTES, site_state, slot_state, trampoline_state
from staticcall.verify.objects.structure import shown

_NOT_ZERO = re.compile(rb"[^\0]+")


def prove_retarget(
    original: bytes, patched: bytes, edits: Sequence[Edit] | None = None, *, stripped_signature: bool = False
) -> Proof:
    """Prove that a patched object is its original with static calls retargeted, and nothing else.

    Both are whole files. With `edits`, applying them to the original must give exactly the patched file; they are
    sorted by offset in the original, disjoint, and may change lengths. With `stripped_signature` the original has
    a module's signature at its end, and the patched file none. Raises `VerificationError` with the offset in
    `patched`, `MalformedError` or `UnsupportedError` where the original is broken or is no object of x86-64.
    """
    if edits is not None:
        _check_edits(original, patched, edits)
    core = without_signature(original)
    before = elf.read(core)
    places = find_places(before)
    if original == patched and not stripped_signature:
        check_accepted(before, before, places)
        return Proof(len(patched), {}, 0, 0, ())
    if stripped_signature is (core is original) or is_signed(patched):
        raise VerificationError("a module's signature does not hold for what was changed, or is there none")
    try:
        after = elf.read(patched)
        return _prove(before, after, _joined(places, find_places(after)))
    except InputError as error:
        raise VerificationError(error.what, offset=error.offset) from error


def _joined(places: Places, now: Places) -> Places:
    """All places; without a table a site that left its trampoline is known by the file where it still goes there."""
    return places._replace(sites={**now.sites, **places.sites})


def _check_edits(original: bytes, patched: bytes, edits: Sequence[Edit]) -> None:
    pieces, at = [], 0
    for edit in edits:
        start, end = edit.file_offset, edit.file_offset + len(edit.old)
        if start < at or end > len(original) or edit.old == edit.new:
            raise VerificationError(f"an edit ({edit.kind}) out of order, or of nothing", offset=start)
        if original[start:end] != edit.old:
            raise VerificationError(f"an edit ({edit.kind}) expects other bytes in the original", offset=start)
        pieces += [original[at:start], edit.new]
        at = end
    if b"".join([*pieces, original[at:]]) != patched:
        raise VerificationError("the edits do not lead to the patched file")


def _prove(before: Elf, after: Elf, places: Places) -> Proof:
    check_accepted(before, after, places)
    grown = check_grown(before, after)
    entries = changed_entries(before, after)
    replaced = read_replaced(before, after)
    lost = replaced.lost
    names = _affected(before, after, places, entries) | {places.sites[place].name for place in lost}
    calls = _calls(before, after, places, names)
    covered = {
        (section, offset)
        for call in calls
        for (section, at), pair in call.places()
        for offset in range(at, at + max(len(pair.before.code), len(pair.after.code)))
    }
    judged = covered | replaced.fields
    ids, new_ids = read_new_ids(before, after)
    for changed in entries:
        if any((changed.section, offset) not in judged for offset in changed.places()) or changed.emptied_wrongly:
            raise VerificationError("a relocation changed that belongs to no static call", offset=changed.offset)
    for section, offset in _differing_bytes(before, after):
        if (section, offset) not in covered and (section, offset) not in ids:
            raise VerificationError(
                f"{shown(before, section)} changed where no static call is", offset=after.offsets[section] + offset
            )
    used = {changed.after[2] for changed in entries}
    for number in grown.symbols:
        if number not in used:
            raise VerificationError(f"symbol {number} is new, and nothing uses it")
    for call in calls:
        check_call(after, call, lost)
    return _proof(after, calls, lost)._replace(records=replaced.records, remarks=remarks(new_ids))


def _proof(after: Elf, calls: Iterable[Call], lost: frozenset[Place]) -> Proof:
    changed = [call for call in calls if call.changed or call.has_site_in(lost)]
    sites = Counter(pair.after.form.value for call in changed for _, _, pair in call.sites if pair.changed)
    trampolines = sum(call.trampoline is not None and call.trampoline[1].changed for call in changed)
    keys = sum(call.slot is not None and call.slot[1].changed for call in changed)
    names = sorted({call.name.decode(errors="replace") for call in changed})
    return Proof(len(after.data), dict(sites), trampolines, keys, tuple(names))


def _differing_bytes(before: Elf, after: Elf) -> Iterator[Place]:
    """Section and offset of every byte that differs, in sections that hold neither relocations nor symbols."""
    own = before.symbols
    judged = {own.section, own.extended_section} if own else set()
    for section, kind in enumerate(before.types):
        if kind in (elf.SHT_RELA, elf.SHT_NOBITS, elf.SHT_NULL) or section in judged:
            continue
        old = before.content(section)
        if after.data.startswith(old, after.offsets[section]):
            continue
        old_bytes, new_bytes = bytes(old), bytes(after.content(section)[: len(old)])
        other = int.from_bytes(old_bytes, "little") ^ int.from_bytes(new_bytes, "little")
        for run in _NOT_ZERO.finditer(other.to_bytes(len(old), "little")):
            yield from ((section, offset) for offset in range(*run.span()))


def _affected(before: Elf, after: Elf, places: Places, entries: Iterable[ChangedEntry]) -> set[bytes]:
    """The names of all static calls that have a place near a change."""
    everywhere = sorted(
        [
            *((place, site.name) for place, site in places.sites.items()),
            *((place, name) for name, place in places.trampolines.items()),
            *((place, name) for name, place in places.slots.items()),
        ]
    )
    starts = [place for place, _ in everywhere]
    changes = {(changed.section, offset) for changed in entries for offset in changed.places()}
    changes.update(_differing_bytes(before, after))
    return {
        name
        for section, offset in changes
        for _, name in everywhere[
            bisect_left(starts, (section, offset - MOST_BYTES)) : bisect_right(starts, (section, offset))
        ]
    }


def _calls(before: Elf, after: Elf, places: Places, names: set[bytes]) -> list[Call]:
    """The affected calls, with what stands at each of their places in both files."""
    sites: dict[bytes, list[tuple[Place, Site]]] = {name: [] for name in names}
    for place, site in sorted(places.sites.items()):
        if site.name in names:
            sites[site.name].append((place, site))
    wanted: dict[int, set[int]] = {}
    for name in names:
        homes = [place for place, _ in sites[name]]
        homes += [table[name] for table in (places.trampolines, places.slots) if name in table]
        for section, at in homes:
            if not 0 < section < before.section_count or not 0 <= at < before.sizes[section]:
                raise MalformedError(f"a place of {name.decode(errors='replace')} in no section")
            wanted.setdefault(section, set()).update(range(at, at + MOST_BYTES))
    old, new = entries_at(before, wanted), entries_at(after, wanted)
    calls = []
    for name in sorted(names):
        trampoline, slot = places.trampolines.get(name), places.slots.get(name)
        calls.append(
            Call(
                name,
                (slot, Pair(slot_state(before, slot, old), slot_state(after, slot, new))) if slot else None,
                (trampoline, Pair(trampoline_state(before, trampoline, old), trampoline_state(after, trampoline, new)))
                if trampoline
                else None,
                [
                    (place, site.tail, Pair(site_state(before, place, old), site_state(after, place, new)))
                    for place, site in sites[name]
                ],
            )
        )
    return calls
