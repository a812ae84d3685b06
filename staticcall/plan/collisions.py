"""Refuses edits of code that somebody else in the kernel rewrites too, by what that one does there.

    .altinstructions     apply_alternatives(): on a processor with the feature other bytes take the place of whatever
                         is there, a part of a patched instruction perhaps: refused
    .parainstructions    apply_paravirt(): as above, always: refused
    __jump_table         __jump_label_patch(): BUG() unless the bytes are the label's own jmp or nop: refused
    .smp_locks           alternatives_smp_unlock(): on one processor a byte f0 becomes 3e, and 3e becomes f0 again with
                         the second one; any other byte stays: refused where an edit puts one of the two there, or may
    .return_sites        apply_returns(): a branch to the return thunk becomes what the processor needs, which is
                         what NULL means there; a trampoline, known by its signature, only gets its return back if
                         it has one, see __static_call_fixup(); at anything else it warns and goes on
    .retpoline_sites     apply_retpolines(): a branch to a retpoline is replaced; at anything else it warns and goes on
    .call_sites          callthunks: a call is led to the accounting of wherever it leads; anything else stays

The last three take the bytes for an instruction, so the place must be the first byte of one: refused elsewhere.
`__ex_table` and the blacklist of kprobes only name code, and are not asked.

Sources: arch/x86/kernel/alternative.c, jump_label.c, static_call.c and callthunks.c, Linux 6.1 and 6.12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from staticcall.errors import UnsafeError
from staticcall.model.change import Edit
from staticcall.model.claims import Claim, Claims, Owner
from staticcall.model.image import Image

# Whoever reads an instruction before it writes one: a static call's new bytes are as good to it as its old ones.
_READERS: Final = frozenset({Owner.RETPOLINES, Owner.RETURNS, Owner.CALLS})
# The prefix of a locked instruction, and what stands for it on a single processor.
_LOCK_BYTES: Final = bytes.fromhex("f03e")

_REASONS: Final = {
    Owner.ALTERNATIVES: "the kernel may put other code for this processor there",
    Owner.PARAVIRT: "the kernel puts other code for this hypervisor there",
    Owner.JUMP_LABELS: "the kernel stops with BUG() where it does not find its own jump or nop",
    Owner.LOCKS: "the kernel would take the new byte there for a lock prefix and rewrite it",
}


def refuse_rewritten(
    image: Image,
    edits: Sequence[Edit],
    claims_on: Callable[[Iterable[tuple[int, int]]], Claims],
    forced: frozenset[str],
) -> None:
    """Raise `UnsafeError` for an edit of code that another table's owner would spoil, or that would make it stop.

    The edits are of code, with addresses. `claims_on` finds what the tables of those who write
    say of ranges of addresses.
    """
    ranges = [(edit.address, edit.address + len(edit.new)) for edit in edits if edit.address is not None]
    claims = claims_on(ranges)
    for owner, address, reason in claims.unreadable:
        if "unreadable-table" not in forced:
            raise UnsafeError(
                f"the table {owner} at {image.where(address)} cannot be read ({reason}) and may name an edited place",
                code="unreadable-table",
                advice="--force unreadable-table if it names none",
            )
    # Where an object's call leads is not known yet, so neither are its bytes but the first.
    final = image.placement is None
    for claim in claims.found:
        for edit in edits:
            if edit.address is not None and _collides(claim, edit, edit.address, final=final):
                reason = _REASONS.get(claim.owner, "the kernel takes it for an instruction")
                raise UnsafeError(
                    f"{claim.owner} names {image.where(claim.address)}, a part of the {edit.kind} of key {edit.key} at"
                    f" {image.where(edit.address)}, and {reason}",
                    code="contested-code",
                    advice="see the findings of staticcall report",
                )


def _collides(claim: Claim, edit: Edit, start: int, *, final: bool) -> bool:
    if claim.address >= start + len(edit.new) or start >= claim.address + claim.size:
        return False
    if claim.owner is Owner.LOCKS:
        return edit.new[claim.address - start] in _LOCK_BYTES or not (final or claim.address == start)
    return claim.owner not in _READERS or claim.address != start
