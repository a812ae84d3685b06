"""The whole file's plan: wishes in, every key's transaction, one sorted list of disjoint edits out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from staticcall.errors import UnsafeError, UsageError
from staticcall.model.change import Edit, KeyChange, Plan
from staticcall.model.image import Image
from staticcall.model.select import select_keys
from staticcall.model.sites import Answer, Judge, Key, Located, Site, Target, TargetKind
from staticcall.plan.safety import check_change, refuse_contested, refuse_damaged, refuse_unversioned, replaceable
from staticcall.plan.transaction import Judged, key_edits, refuse_orphans, site_edits, summarize
from staticcall.plan.wishes import Wishes, resolve_sets


def make_plan(
    image: Image,
    located: Located,
    wishes: Wishes,
    judge: Judge,
    returns_value: Callable[[str], bool | None],
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
    refuse_unversioned(image, unknown, wishes.forced)
    names = image.names_at(located.keys[address].slot.value for address in targets)
    edits: list[Edit] = []
    changes: list[KeyChange] = []
    for address, target in targets.items():
        key = located.keys[address]
        sites = by_key[address]
        present = located.target_of(key, names)
        check_change(image, located, key, sites, present, target, returns_value=returns_value, forced=wishes.forced)
        judged = list(zip(sites, judge(sites, target.kind), strict=True))
        refuse_orphans(key, judged, present, target)
        own = _set_edits(image, located, key, judged, target)
        edits += own
        changes.append(summarize(key, present, target, judged))
    if wishes.bind:
        selected = select_keys(located.keys.values(), wishes.keys)
        for change, own in _bindings(
            image, located, [key for key in selected if key.address not in targets], by_key, judge
        ):
            edits += own
            changes.append(change)
    refuse_contested(located.sites, edits)
    return Plan(disjoint(edits), tuple(changes), unknown)


def _set_edits(image: Image, located: Located, key: Key, judged: Sequence[Judged], target: Target) -> list[Edit]:
    offset = image.offset_of(key.trampoline.address) if key.trampoline else None
    return [*site_edits(located, key, judged, target), *key_edits(located, key, target, offset)]


def _bindings(
    image: Image, located: Located, keys: Sequence[Key], by_key: Mapping[int, Sequence[Site]], judge: Judge
) -> Iterator[tuple[KeyChange, list[Edit]]]:
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
        yield summarize(key, target, target, judged), edits


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
    if not wishes.sets and not wishes.bind:
        raise UsageError("nothing to patch", advice="give --set KEY=TARGET or --bind")
