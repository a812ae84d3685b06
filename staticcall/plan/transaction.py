"""One key's change as one transaction: its direct sites, its trampoline and its slot agree or nothing is written."""

from __future__ import annotations

from collections.abc import Iterable

from staticcall.abi import elf64
from staticcall.errors import UnsafeError
from staticcall.model.change import Edit, EditKind, KeyChange
from staticcall.model.sites import Answer, Key, Located, Site, Target, Verdict
from staticcall.plan.code import site_code, trampoline_code

Judged = tuple[Site, Verdict]


def site_edits(located: Located, key: Key, judged: Iterable[Judged], target: Target) -> list[Edit]:
    """Edits that send every direct site straight to the target; a site that has its bytes already needs none."""
    edits: list[Edit] = []
    for site, verdict in judged:
        if verdict.answer is not Answer.DIRECT:
            continue
        code = site_code(located, site, key, target)
        if code.data != site.code and site.address in located.trampolines:
            raise UnsafeError(
                f"the {site.instruction.form} at {site.where} of key {key.name} is a trampoline itself",
                code="site-is-trampoline",
                advice="give a policy that leaves it alone",
            )
        if code.data != site.code:
            edits.append(
                Edit(
                    site.file_offset,
                    site.code,
                    code.data,
                    EditKind.SITE,
                    key.name,
                    site.address,
                    code.form,
                    code.destination,
                )
            )
    return edits


def key_edits(located: Located, key: Key, target: Target, offset_of_trampoline: int | None) -> list[Edit]:
    """Edits of the trampoline and the slot."""
    edits: list[Edit] = []
    trampoline = key.trampoline
    if trampoline is not None:
        code = trampoline_code(located.dialect, key, trampoline, target)
        old = trampoline.code[: len(code.data)] if code else b""
        if code is not None and code.data != old:
            assert offset_of_trampoline is not None, "its bytes were read from the file"
            edits.append(
                Edit(
                    offset_of_trampoline,
                    old,
                    code.data,
                    EditKind.TRAMPOLINE,
                    key.name,
                    trampoline.address,
                    code.form,
                    code.destination,
                )
            )
    slot = key.slot
    if slot.value != target.address:
        assert slot.file_offset is not None, "a slot that the file does not store was refused before"
        pack = elf64.POINTER.pack
        kind = EditKind.RELOCATION if slot.by_addend else EditKind.KEY
        edits.append(Edit(slot.file_offset, pack(slot.value), pack(target.address), kind, key.name, key.address))
    return edits


def summarize(key: Key, before: Target, after: Target, judged: Iterable[Judged]) -> KeyChange:
    """Count a transaction."""
    # A record may be there more than once, where other sites were pinned.
    answers = list({site.address: verdict.answer for site, verdict in judged}.values())
    direct = answers.count(Answer.DIRECT)
    return KeyChange(key, before, after, direct, len(answers) - direct)


def refuse_orphans(key: Key, judged: Iterable[Judged], before: Target, after: Target) -> None:
    """Raise `UnsafeError` for a site that the policy leaves alone and that would not follow its key."""
    if before.address == after.address:
        return
    trampoline = key.trampoline.address if key.trampoline else None
    for site, verdict in judged:
        instruction = site.instruction
        by_trampoline = trampoline is not None and instruction.destination == trampoline
        # What an indirect site reads is for the verifier to find out: the key, or a pointer to the trampoline.
        if verdict.answer is not Answer.DIRECT and not by_trampoline and instruction.slot is None:
            raise UnsafeError(
                f"the {instruction.form} at {site.where} would not follow key {key.name} to {after.name}: it"
                f" {'has no trampoline' if trampoline is None else 'does not go by its trampoline'}"
                f" and stays as it is ({verdict.reason})",
                code="site-left-behind",
                advice="give a policy that patches the site",
            )
