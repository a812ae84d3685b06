"""The rules and the ladders that the policies make of them.

lutomirski  opcode e8, and the whole instruction in one cache line (Andy Lutomirski, 2018)
rel32       opcode e8, and the four displacement bytes in one cache line (v3 of the patch set, 2019)
block8      opcode e8, and the displacement in one aligned 8-byte block (what AMD promises for a store)
torvalds    a call behind a prefix that does nothing; lines do not matter (Linus Torvalds, 2018)
kernel      every form that mainline patches since 5.10; lines do not matter
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from staticcall.abi import x86
from staticcall.model.sites import Answer, Dialect, Form, Policy, PolicyName, Site, TargetKind, Verdict

BLOCK = 8


class Question(NamedTuple):
    """One site, what its key leads to, and what the answer depends on besides."""

    site: Site
    by_trampoline: bool
    target: TargetKind
    line: int
    dialect: Dialect


Rule = Callable[[Question], Verdict | None]

_DIRECT, _TRAMPOLINE = Answer.DIRECT, Answer.TRAMPOLINE


def _not_recorded(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "not-recorded") if question.site.record is None else None


def _unknown_instruction(question: Question) -> Verdict | None:
    form = question.site.instruction.form
    return Verdict(_TRAMPOLINE, "unknown-instruction") if form is Form.UNKNOWN else None


def _warn_trap(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "warn-trap") if question.site.instruction.form is Form.WARN_TRAP else None


def _already_direct(question: Question) -> Verdict | None:
    instruction = question.site.instruction
    patched = instruction.form in (Form.NOP, Form.RET, Form.RET0) or (
        _has_rel32(question.site) and not question.by_trampoline
    )
    return Verdict(_DIRECT, "already-direct") if patched else None


def _has_rel32(site: Site) -> bool:
    form, length = site.instruction.form, site.instruction.length
    if form is Form.JCC:
        return length - site.instruction.opcode == x86.JCC_SIZE
    return form in (Form.CALL, Form.PREFIXED_CALL, Form.TAIL_JMP)


def _opcode_not_e8(question: Question) -> Verdict | None:
    # A prefix is no part of the opcode, and the displacement behind it is rewritten all the same.
    is_call = question.site.instruction.form in (Form.CALL, Form.PREFIXED_CALL)
    return None if is_call else Verdict(_TRAMPOLINE, "opcode-not-e8")


def _crosses_line(question: Question) -> Verdict | None:
    site = question.site
    crossing = x86.crosses(site.address, site.instruction.length, question.line)
    return Verdict(_TRAMPOLINE, "crosses-line") if crossing else None


def _rel32_crosses(site: Site, block: int) -> bool:
    return x86.crosses(site.address + site.instruction.length - x86.REL32_SIZE, x86.REL32_SIZE, block)


def _rel32_crosses_line(question: Question) -> Verdict | None:
    crossing = _rel32_crosses(question.site, question.line)
    return Verdict(_TRAMPOLINE, "rel32-crosses-line") if crossing else None


def _rel32_crosses_block(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "rel32-crosses-block") if _rel32_crosses(question.site, BLOCK) else None


def _no_prefix(question: Question) -> Verdict | None:
    prefixed = question.site.instruction.form is Form.PREFIXED_CALL
    return None if prefixed else Verdict(_TRAMPOLINE, "no-prefix")


def _not_a_kernel_form(question: Question) -> Verdict | None:
    site = question.site
    wanted = site.instruction.opcode == 0 and _has_rel32(site)
    return None if wanted else Verdict(_TRAMPOLINE, "not-a-kernel-form")


def _return_form_chosen_at_boot(question: Question) -> Verdict | None:
    # A kernel with return thunks writes `ret` or a jmp to the thunk that the processor needs.
    chosen = (
        question.site.tail
        and question.target is TargetKind.NULL
        and question.dialect.kernel
        and question.dialect.return_thunk is not None
    )
    return Verdict(_TRAMPOLINE, "return-form-chosen-at-boot") if chosen else None


def _otherwise(reason: str) -> Rule:
    def rule(_: Question) -> Verdict | None:
        return Verdict(_DIRECT, reason)

    return rule


_FIRST: Final[tuple[Rule, ...]] = (_not_recorded, _unknown_instruction, _warn_trap, _already_direct)

LADDERS: Final[Mapping[PolicyName, tuple[Rule, ...]]] = {
    PolicyName.LUTOMIRSKI: (*_FIRST, _opcode_not_e8, _crosses_line, _otherwise("fits-line")),
    PolicyName.REL32: (*_FIRST, _opcode_not_e8, _rel32_crosses_line, _otherwise("rel32-fits-line")),
    PolicyName.BLOCK8: (*_FIRST, _opcode_not_e8, _rel32_crosses_block, _otherwise("rel32-fits-block")),
    PolicyName.TORVALDS: (*_FIRST, _no_prefix, _otherwise("prefixed")),
    PolicyName.KERNEL: (*_FIRST, _not_a_kernel_form, _return_form_chosen_at_boot, _otherwise("kernel-form")),
}


def classify(site: Site, *, policy: Policy, target: TargetKind, by_trampoline: bool, dialect: Dialect) -> Verdict:
    """Judge one site.

    `target` is what the site's key leads to, or shall lead to; `by_trampoline` says whether the instruction
    leads to a trampoline at present.
    """
    question = Question(site, by_trampoline, target, policy.line, dialect)
    for rule in LADDERS[policy.name]:
        verdict = rule(question)
        if verdict is not None:
            return verdict
    raise AssertionError(f"the ladder of {policy.name} has an end without an answer")
