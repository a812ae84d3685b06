"""The whole file's plan: wishes in, every key's transaction, one sorted list of disjoint edits out."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from staticcall.errors import UnsafeError, UsageError
from staticcall.model.change import Edit, EditKind, KeyChange, Plan
from staticcall.model.evidence import Evidence
from staticcall.model.image import Image
from staticcall.model.select import select_keys
from staticcall.model.sites import Answer, Judge, Key, Located, Site, Target, TargetKind
from staticcall.plan.collisions import refuse_rewritten
from staticcall.plan.pin import Pin, count, pin_edits, pins_of, places, refuse_unpinnable
from staticcall.plan.safety import (
    check_change,
    refuse_contested,
    refuse_damaged,
    refuse_freed,
    refuse_unversioned,
    replaceable,
)
from staticcall.plan.slots import list_edits
from staticcall.plan.transaction import key_edits, refuse_orphans, site_edits, summarize
from staticcall.plan.types import check_types
from staticcall.plan.wishes import Wishes, resolve_pins, resolve_sets


class _Step(NamedTuple):
    """What is done to one key: its transaction, the edits, and the sites that are pinned."""

    change: KeyChange
    edits: Sequence[Edit]
    pins: Sequence[Pin] = ()


class _Planner(NamedTuple):
    """What every step is planned with; `forced` are dangers that somebody answers for."""

    image: Image
    located: Located
    judge: Judge
    evidence: Evidence
    forced: frozenset[str]

    def set(self, key: Key, sites: Sequence[Site], present: Target, target: Target, *, pinned: bool) -> _Step:
        """Lead a key elsewhere, and its sites with it, for good if they are to be pinned."""
        image, located = self.image, self.located
        check_change(image, located, key, sites, present, target, self.evidence.moves, forced=self.forced)
        # Last, because type data takes longest to read.
        types = check_types(image, key, sites, present, target, self.evidence, self.forced, lasting=pinned)
        judged = list(zip(sites, self.judge(sites, target.kind), strict=True))
        refuse_orphans(key, judged, present, target)
        offset = image.offset_of(key.trampoline.address) if key.trampoline else None
        edits = [*site_edits(located, key, judged, target), *key_edits(located, key, target, offset)]
        change = summarize(key, present, target, judged)._replace(types=types)
        if not pinned:
            return _Step(change, edits)
        pins = pins_of(located, key, judged, target)
        return _Step(change._replace(pinned=count(pins)), edits, pins)

    def pin(self, key: Key, sites: Sequence[Site], target: Target) -> _Step:
        """Send a key's sites straight to where the key leads already, for good."""
        image, located = self.image, self.located
        judged = list(zip(sites, self.judge(sites), strict=True))
        refuse_unpinnable(image, located, key, judged)
        pins = pins_of(located, key, judged, target)
        change = summarize(key, target, target, judged)._replace(pinned=count(pins))
        if not pins:
            return _Step(change, ())
        own = [pin.site for pin in pins]
        refuse_freed(image, key, own, target, self.forced)
        types = check_types(image, key, own, target, target, self.evidence, self.forced, lasting=True)
        fixed = {site.address for site in own}
        edits = site_edits(located, key, (pair for pair in judged if pair[0].address in fixed), target)
        return _Step(change._replace(types=types), edits, pins)


def make_plan(
    image: Image,
    located: Located,
    wishes: Wishes,
    judge: Judge,
    evidence: Evidence,
) -> Plan:
    """Plan all that is wished for; the edits are sorted by file offset, disjoint, and change something.

    Raises `UnsafeError` for the first thing that is not safe: a plan is made whole or not at all.
    """
    by_key: dict[int, list[Site]] = defaultdict(list)
    for site in located.sites:
        # Whatever has no record goes by its trampoline: straight to its target, nothing would lead it elsewhere again.
        if site.key is not None and site.record is not None:
            by_key[site.key].append(site)
    targets, unknown = resolve_sets(image, located, wishes)
    pinned = {key.address: key for key in resolve_pins(image, located, wishes)}
    refuse_unversioned(image, unknown, wishes.forced)
    chosen = {address: located.keys[address] for address in (*targets, *pinned)}
    names = image.names_at(key.slot.value for key in chosen.values())
    planner = _Planner(image, located, judge, evidence, wishes.forced)
    steps: list[_Step] = []
    for address, key in chosen.items():
        sites, present = by_key[address], located.target_of(key, names)
        if address in targets:
            steps.append(planner.set(key, sites, present, targets[address], pinned=address in pinned))
        else:
            steps.append(planner.pin(key, sites, present))
    if wishes.bind:
        others = [key for key in select_keys(located.keys.values(), wishes.keys) if key.address not in chosen]
        steps += _bindings(image, located, others, by_key, judge)
    pins = [pin for step in steps for pin in step.pins]
    edits = [edit for step in steps for edit in step.edits]
    code = [*(edit for edit in edits if edit.kind in (EditKind.SITE, EditKind.TRAMPOLINE)), *places(pins)]
    refuse_contested(located.sites, code)
    edits += pin_edits(image, located, pins)
    if image.kernel and image.placement is None and any(edit.kind is EditKind.KEY for edit in edits):
        edits += list_edits(evidence.moves(), edits)
    if image.kernel and code:
        refuse_rewritten(image, code, evidence.claims, wishes.forced)
    return Plan(disjoint(edits), tuple(step.change for step in steps), unknown)


def _bindings(
    image: Image, located: Located, keys: Sequence[Key], by_key: Mapping[int, Sequence[Site]], judge: Judge
) -> Iterator[_Step]:
    """Send each key's sites straight to where the key leads already; its slot and trampoline stay."""
    incoherent = {finding.address for finding in located.findings if finding.code == "incoherent-key"}
    # Only the dynamic linker knows where a RUNTIME target is; the trampoline reads or jumps there.
    elsewhere = replaceable(image, keys)
    bound = [key for key in keys if located.kind_of(key) is not TargetKind.RUNTIME and key.address not in elsewhere]
    sites = [site for key in bound for site in by_key.get(key.address, ())]
    verdicts = iter(judge(sites))
    for key in bound:
        judged = list(zip(by_key.get(key.address, ()), verdicts, strict=False))
        refuse_damaged(located, key, (site for site, verdict in judged if verdict.answer is Answer.DIRECT))
        target = located.target_of(key)
        edits = site_edits(located, key, judged, target)
        if not edits:
            continue
        if key.address in incoherent:
            raise UnsafeError(
                f"key {key.name} leads to {target.name} and its trampoline elsewhere, so it is unclear what to bind to",
                code="incoherent-key",
                advice=f"say which with --set {key.name}=...",
            )
        yield _Step(summarize(key, target, target, judged), edits)


def disjoint(edits: Iterable[Edit]) -> tuple[Edit, ...]:
    """Sort the edits by file offset and drop repeated ones; raises `UnsafeError` where two overlap."""
    ordered = sorted(set(edits), key=lambda edit: edit.file_offset)
    for before, after in pairwise(ordered):
        if before.file_offset + len(before.new) > after.file_offset:
            raise UnsafeError(
                f"two edits of keys {before.key} and {after.key} overlap at offset {after.file_offset:#x}",
                code="overlapping-edits",
                advice="see the findings of staticcall report",
            )
    return tuple(ordered)


def require_wish(wishes: Wishes) -> None:
    """Raise `UsageError` where nothing was asked for."""
    if not wishes.sets and not wishes.bind and not wishes.pins:
        raise UsageError("nothing to patch", advice="give --set KEY=TARGET, --bind or --pin KEY")
