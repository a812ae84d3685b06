"""What would crash later, and is refused now with the reason.

Some dangers rest on something the file cannot show; those the user may override by their code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final

from staticcall.abi import elf64, static_call
from staticcall.errors import UnsafeError
from staticcall.model.change import Edit, EditKind
from staticcall.model.form import Form
from staticcall.model.image import Image
from staticcall.model.moves import Moves
from staticcall.model.sites import Key, Located, Site, Target, TargetKind, TrampolineForm
from staticcall.plan.slots import kernel_slot_danger, program_slot_danger

FORCEABLE: Final[dict[str, str]] = {
    "kaslr-slot": "the kernel is always loaded where it is linked (nokaslr), so a pointer needs no relocation",
    "null-returns-value": "no caller uses the result of a call that becomes a nop",
    "unversioned-import": "the kernel loads modules whose imports it has no version of",
    "unreadable-table": "no damaged table of the kernel names code that is patched",
    "target-in-init": "the key is never used after the kernel freed its init memory",
}

_CALLS: Final = frozenset({Form.CALL, Form.PREFIXED_CALL, Form.NOP, Form.RET0})
_TAILS: Final = frozenset({Form.TAIL_JMP, Form.JCC, Form.SHORT_JMP, Form.RET})

# What modpost writes: the version of every import.
_VERSIONS: Final = "__versions"
# Sections that a kernel frees after boot.
INIT_SECTIONS: Final = (".init.", ".exit.")


def check_change(
    image: Image,
    located: Located,
    key: Key,
    sites: Sequence[Site],
    present: Target,
    target: Target,
    moves: Callable[[], Moves],
    *,
    forced: frozenset[str],
) -> None:
    """Raise `UnsafeError` if leading a key to another target would crash later, whatever their types are."""
    checks = (
        _slot_cannot_be_written(image, key, present, target, moves),
        _null_would_be_called(image, key, sites, present, target),
        _target_is_freed(image, key, sites, target),
        _site_is_damaged(located, key, sites),
    )
    for danger in checks:
        if danger is not None and not (danger.code in FORCEABLE and danger.code in forced):
            raise danger


def refuse_freed(image: Image, key: Key, sites: Sequence[Site], target: Target, forced: frozenset[str]) -> None:
    """Raise `UnsafeError` where sites would go on calling a function after it is freed."""
    danger = _target_is_freed(image, key, sites, target)
    if danger is not None and danger.code not in forced:
        raise danger


def _slot_cannot_be_written(
    image: Image, key: Key, present: Target, target: Target, moves: Callable[[], Moves]
) -> UnsafeError | None:
    slot = key.slot
    if slot.elsewhere:
        return UnsafeError(
            f"key {key.name} is defined in another file, which would not agree with a change here",
            code="key-elsewhere",
            advice="patch the file that defines it, or the two linked together",
        )
    if replaceable(image, (key,)):
        return UnsafeError(
            f"key {key.name} or its trampoline is weak or in a section group, so a linker may take another object's",
            code="key-elsewhere",
            advice="patch the objects linked together",
        )
    if key.trampoline and key.trampoline.form is TrampolineForm.ELSEWHERE:
        return UnsafeError(
            f"the trampoline of key {key.name} is in another file and would not follow",
            code="trampoline-elsewhere",
            advice="patch the files linked together",
        )
    if slot.symbol:
        return UnsafeError(
            f"key {key.name} gets its target {slot.symbol} from the dynamic linker",
            code="slot-resolved-at-run-time",
            advice="patch the file that offers it"
            if slot.symbol.startswith(static_call.OFFER_PREFIX)
            else "give the target hidden visibility or -Bsymbolic and link again",
        )
    if present.address == target.address:
        return None
    if slot.file_offset is None:
        return UnsafeError(
            f"key {key.name} lies in memory that the file does not store",
            code="slot-not-in-file",
            advice="initialise the key and build again",
        )
    if image.placement is not None:
        return None  # its relocations are what is edited
    if image.kernel:
        return kernel_slot_danger(key, present, target, moves())
    return program_slot_danger(image, key, present, target)


def replaceable(image: Image, keys: Iterable[Key]) -> frozenset[int]:
    """The addresses of the keys whose pointer or trampoline a linker may take from another object instead."""
    if image.placement is None:
        return frozenset()
    symbols = image.placement.file.symbols
    weak = {
        image.placement.addresses[number]
        for prefix in (static_call.KEY_PREFIX, static_call.TRAMPOLINE_PREFIX)
        for number in symbols.endings(prefix.encode())
        if symbols.binding(number) not in (elf64.STB_LOCAL, elf64.STB_GLOBAL)
    }
    found = set()
    for key in keys:
        places = {key.address, key.trampoline.address if key.trampoline else key.address}
        homes = [section for section in map(image.section_at, places) if section is not None]
        if weak & places or any(home.flags & elf64.SHF_GROUP for home in homes):
            found.add(key.address)
    return frozenset(found)


def _null_would_be_called(
    image: Image, key: Key, sites: Sequence[Site], present: Target, target: Target
) -> UnsafeError | None:
    if target.kind is not TargetKind.NULL or target.address or present.kind is TargetKind.NULL:
        return None
    callers = [f"the {site.instruction.form} at {site.where}" for site in sites if _reads(site, key)]
    trampoline = key.trampoline
    if trampoline and (trampoline.slot == key.address or trampoline.form is TrampolineForm.CALL_RET):
        callers.append(f"the trampoline at {image.where(trampoline.address)}")
    if not callers:
        return None
    return UnsafeError(
        f"{callers[0]} calls whatever key {key.name} holds, and NULL cannot be called",
        code="null-is-called",
        advice="use RET0, or a function that does nothing",
    )


def _reads(site: Site, key: Key) -> bool:
    return site.instruction.slot == key.address


def _target_is_freed(image: Image, key: Key, sites: Sequence[Site], target: Target) -> UnsafeError | None:
    section = image.section_at(target.address) if image.kernel and target.address else None
    if section is None or not section.name.startswith(INIT_SECTIONS):
        return None
    # A key of a kernel that has no site here is there for modules.
    if sites and all(site.section.startswith(INIT_SECTIONS) for site in sites):
        return None
    return UnsafeError(
        f"{target.name} lies in {section.name}, which is gone when all is started, and key {key.name} is used later",
        code="target-in-init",
        advice="choose a target that stays",
    )


def _site_is_damaged(located: Located, key: Key, sites: Iterable[Site]) -> UnsafeError | None:
    for site in sites:
        if site.instruction.form is Form.UNKNOWN:
            return _damaged(site, key, f"is no static call{'' if site.alignment else f' ({site.code.hex()})'}")
        if located.by_another(key, site):
            return _damaged(site, key, "leads to another key's trampoline")
        if _contradicted(site):
            return _damaged(site, key, f"is a {site.instruction.form} and its record says the opposite of TAIL")
    return None


def _contradicted(site: Site) -> bool:
    """Whether the record's TAIL flag says something else than the instruction."""
    return site.instruction.form in (_CALLS if site.tail else _TAILS)


def _damaged(site: Site, key: Key, what: str) -> UnsafeError:
    return UnsafeError(
        f"{'the site' if site.record is None else f'record {site.record}'} of key {key.name} at {site.where} {what}",
        code="damaged-site",
        advice="see the findings of staticcall report",
    )


def refuse_damaged(located: Located, key: Key, sites: Iterable[Site]) -> None:
    """Raise `UnsafeError` for a site that contradicts its record: whose it is, or whether it returns."""
    damage = _site_is_damaged(located, key, sites)
    if damage is not None:
        raise damage


def refuse_unversioned(image: Image, imports: Sequence[str], forced: frozenset[str]) -> None:
    """Raise `UnsafeError` for a new import of a linked module that has versions of all others.

    A kernel with CONFIG_MODVERSIONS may reject it (check_version() in kernel/module/version.c; Debian's does).
    """
    if imports and "unversioned-import" not in forced and image.section_named((_VERSIONS,)) is not None:
        raise UnsafeError(
            f"{imports[0]} would be an import without an entry in {_VERSIONS}, which kernels reject",
            code="unversioned-import",
            advice="patch the object before modpost, or --force unversioned-import",
        )


def contested_records(sites: Iterable[Site]) -> dict[int, tuple[Site, Site]]:
    """The addresses of instructions that two different records overlap at, each with the sites of these records."""
    contested: dict[int, tuple[Site, Site]] = {}
    for before, after in pairwise(site for site in sites if site.record is not None):
        same = (before.address, before.key, before.flags) == (after.address, after.key, after.flags)
        if before.address + before.instruction.length > after.address and not same:
            contested |= dict.fromkeys((before.address, after.address), (before, after))
    return contested


def refuse_contested(sites: Iterable[Site], edits: Iterable[Edit]) -> None:
    """Raise `UnsafeError` for an edit where two different records overlap: what suits one breaks the other."""
    contested = contested_records(sites)
    for edit in edits:
        if edit.kind is EditKind.SITE and edit.address in contested:
            first, second = contested[edit.address]
            raise UnsafeError(
                f"records {first.record} and {second.record} both claim the instruction at {first.where}",
                code="overlapping-records",
                advice="see the findings of staticcall report",
            )
