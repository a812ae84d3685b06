"""The proof: a patched file is its original plus legal, coherent edits of static calls, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from staticcall.abi.static_call import SIGNATURE_OFFSET, is_live_trampoline
from staticcall.errors import VerificationError, about
from staticcall.model.change import Edit, EditKind, Proof
from staticcall.model.form import Form
from staticcall.model.hints import NO_HINTS, Hints
from staticcall.verify import rules
from staticcall.verify.build_id import changes_of, read_new_ids
from staticcall.verify.compare import Change, check_disjoint, compare
from staticcall.verify.decode import Code, Decoded, Decoder, make_decoder
from staticcall.verify.edits import check_edits
from staticcall.verify.generation import check_accepted
from staticcall.verify.layout import read_layout
from staticcall.verify.moves import may_move
from staticcall.verify.notes import remarks
from staticcall.verify.records import check_lost, read_replaced
from staticcall.verify.relocations import Carrier
from staticcall.verify.scene import (
    POINTER_SIZE,
    Record,
    Scene,
    Site,
    Slot,
    Trampoline,
    read_scene,
    read_values,
)
from staticcall.verify.slot_list import Followed, check_followed, read_followed
from staticcall.verify.source import Source, opened

_OFFSET = attrgetter("offset")


class _Case(NamedTuple):
    """What all judgements share.

    `sites` are by key. `was` has the original instruction of every changed site, `now` the present one of
    every site whose static call has changed anywhere, `homes` the present code of their trampolines, by key.
    `moves` tells whether the image may run elsewhere than it is linked, `lost` are the records of sites that have none
    any more, `followed` is how the list of what is relocated followed the slots.
    """

    scene: Scene
    sites: dict[int, list[Site]]
    was: dict[Record, Decoded]
    now: dict[Record, Decoded]
    homes: dict[int, Decoded]
    patched: Source
    moves: bool = True
    lost: frozenset[Record] = frozenset()
    followed: Followed = Followed()


def prove(
    original: Path,
    patched: Path,
    edits: Sequence[Edit] | None = None,
    *,
    table: tuple[int, int] | None = None,
    hints: Hints = NO_HINTS,
    allowed: frozenset[str] = frozenset(),
) -> Proof:
    """Prove that a patched linked image is its original plus legal edits of static calls.

    With `edits` the differences must also be exactly what they say. `table` gives the linked start and end
    address of the records where neither section nor symbols do, `hints` what else no symbol tells, and each is checked.
    `allowed` are dangers that somebody answers
    for; `kaslr-slot` lets a kernel's NULL become a function and back. Raises `VerificationError` where something is
    not proved, `InputError` and its kin where a file cannot be read. Reads both files in pieces; memory does
    not grow with them.
    """
    with opened(original) as before, opened(patched) as after, about(patched):
        if before.size > after.size:
            raise VerificationError(f"the size changed from {before.size} to {after.size} bytes")
        with about(original):
            layout = read_layout(before)
            decode = make_decoder()
            scene = read_scene(before, after, layout, decode, table, hints)
        check_accepted(scene)
        moves = layout.movable or (layout.kernel and "kaslr-slot" not in allowed and may_move(before, layout))
        return _judge(scene, before, after, decode, edits, moves=moves)


def _judge(
    scene: Scene, before: Source, after: Source, decode: Decoder, edits: Sequence[Edit] | None, *, moves: bool
) -> Proof:
    sites: dict[int, list[Site]] = {}
    for site in scene.sites:
        sites.setdefault(site.record.key, []).append(site)
    was = _changed_sites(scene.sites, decode)
    slots = {key for key, slot in scene.slots.items() if slot.before != slot.after}
    trampolines = {key for key, home in scene.trampolines.items() if home.before != home.after}
    replaced = read_replaced(scene, before, after)
    affected = sorted(slots | trampolines | {record.key for record in (*was, *replaced.lost)})
    followed = read_followed(before, after, scene.layout)
    check_followed(followed, [scene.slots[key] for key in slots])
    case = _decode_all(scene, sites, was, affected, decode, after)
    case = case._replace(moves=moves, lost=replaced.lost, followed=followed)
    changes = sorted((change for key in affected for change in _check_call(case, key)), key=_OFFSET)
    # Nothing but whole records, each a copy of another one, may differ in the tables.
    check_disjoint(changes, scene.tables)
    ids = read_new_ids(before, after, scene.layout)
    others = (*replaced.changes, *changes_of(ids, scene.layout), *filter(None, [followed.change]))
    changes = sorted((*changes, *others), key=_OFFSET)
    check_disjoint(changes, scene.layout.headers)
    compared = compare(before, after, changes)
    if edits is not None:
        check_edits(before, after, scene.layout, changes, edits)
    return Proof(
        compared=compared,
        sites=dict(Counter(case.now[record].form.value for record in was)),
        trampolines=len(trampolines),
        keys=len(slots),
        changed_keys=tuple(sorted(scene.keys[key] for key in affected)),
        records=len(replaced.changes),
        remarks=remarks(ids),
    )


def _changed_sites(sites: Sequence[Site], decode: Decoder) -> dict[Record, Decoded]:
    """Find the sites whose instruction differs, with what it was."""
    suspects = [site for site in sites if site.before != site.after]
    decoded = decode([Code(site.record.address, site.before) for site in suspects])
    # The bytes at hand may reach into the next instruction, so the instruction's length decides.
    return {
        site.record: was
        for site, was in zip(suspects, decoded, strict=True)
        if site.before[: was.length] != site.after[: was.length]
    }


def _decode_all(
    scene: Scene,
    sites: dict[int, list[Site]],
    was: dict[Record, Decoded],
    affected: Sequence[int],
    decode: Decoder,
    patched: Source,
) -> _Case:
    concerned = [site for key in affected for site in sites.get(key, [])]
    now = decode([Code(site.record.address, site.after) for site in concerned])
    homes = [(key, scene.trampolines[key]) for key in affected if key in scene.trampolines]
    code = decode([Code(home.address, home.after) for _, home in homes])
    return _Case(
        scene,
        sites,
        was,
        {site.record: decoded for site, decoded in zip(concerned, now, strict=True)},
        {key: decoded for (key, _), decoded in zip(homes, code, strict=True)},
        patched,
    )


def _check_call(case: _Case, key: int) -> Iterator[Change]:
    """Judge one static call that has changed anywhere.

    Its slot and trampoline must agree, and every site with them; where both are what they were, an untouched
    site does what it did.
    """
    scene = case.scene
    slot, home = scene.slots.get(key), scene.trampolines.get(key)
    live = bool(home and is_live_trampoline(home.before))
    call = rules.Call(scene.keys[key], key, slot.after if slot else None, home.address if home else None, live)
    moved = any(place is not None and place.before != place.after for place in (slot, home))
    if slot and slot.before != slot.after:
        yield _check_slot(scene, call, slot, moves=case.moves and slot.address not in case.followed.slots)
    if home:
        yield from _check_trampoline(case, call, home)
    indirect = []
    for site in case.sites.get(key, []):
        was, now = case.was.get(site.record), case.now[site.record]
        lost = site.record in case.lost
        if was is None and not moved and not lost:
            continue
        place = rules.Place("the site", site.record.address, site.offset)
        if was is not None:
            rules.check_change(place, was, now)
            _check_code(scene, place, now)
            if now.form is Form.RET0 and scene.ret0 and site.after[len(now.prefix) : now.length] != scene.ret0:
                place.refuse(f"clears eax otherwise than this kernel does, by {scene.ret0.hex()}")
        elif now.form in rules.INDIRECT and not lost:
            indirect.append((place, now))
            continue
        rules.check_site(place, call, scene.names, tail=site.record.tail, now=now)
        if lost:
            check_lost(place, call, now)
        if was is not None:
            before, after = site.before[: now.length], site.after[: now.length]
            yield Change(site.offset, before, after, EditKind.SITE, call.name, site.record.address, now)
    _check_indirect(case, call, indirect)


def _check_slot(scene: Scene, call: rules.Call, slot: Slot, *, moves: bool) -> Change:
    carrier, offset = slot.pointer.carrier, slot.pointer.offset
    assert offset is not None  # values that only run time knows do not differ
    place = rules.Place(f"the key of {call.name}", slot.address, offset)
    before, after = slot.before or 0, slot.after or 0
    fixed = scene.layout.movable and carrier is Carrier.PLAIN
    rules.check_target(place, call, scene.layout, was=before, fixed=fixed, moves=moves)
    kind = EditKind.RELOCATION if carrier is Carrier.ADDEND else EditKind.KEY
    return Change(
        offset,
        before.to_bytes(POINTER_SIZE, "little"),
        after.to_bytes(POINTER_SIZE, "little"),
        kind,
        call.name,
        slot.address,
    )


def _check_trampoline(case: _Case, call: rules.Call, home: Trampoline) -> Iterator[Change]:
    changed = home.before != home.after
    if call.func is None and not changed:
        return  # it leads where run time says, or through the slot; nothing here says otherwise
    place = rules.Place("the trampoline", home.address, home.offset)
    now = case.homes[call.address]
    if changed:
        rules.check_trampoline_change(place, home.before, home.after)
    rules.check_trampoline(place, call, case.scene.names, home.after, now)
    if changed:
        before, after = home.before[:SIGNATURE_OFFSET], home.after[:SIGNATURE_OFFSET]
        yield Change(home.offset, before, after, EditKind.TRAMPOLINE, call.name, home.address, now)


def _check_code(scene: Scene, place: rules.Place, now: Decoded) -> None:
    if not scene.layout.is_code(place.address, now.length):
        place.refuse("does not lie in executable code")
    if now.destination is not None and not scene.layout.is_code(now.destination):
        place.refuse(f"leads to {now.destination:#x}, where there is no code")


def _check_indirect(case: _Case, call: rules.Call, sites: list[tuple[rules.Place, Decoded]]) -> None:
    pointers = {now.pointer for _, now in sites if now.pointer is not None}
    values = read_values(case.patched, case.scene.layout, pointers) if pointers else {}
    for place, now in sites:
        destination = None if now.pointer is None else values.get(now.pointer)
        rules.check_indirect_site(place, call, now.pointer, destination)
