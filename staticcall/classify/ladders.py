"""The rules and the ladders that the policies make of them.

lutomirski  opcode e8, and the whole instruction in one cache line (Andy Lutomirski, 2018)
rel32       opcode e8, and the four displacement bytes in one cache line (v3 of the patch set, 2019)
block8      opcode e8, and the displacement in one aligned 8-byte block (what AMD promises for a store)
torvalds    a call behind a prefix that does nothing; lines do not matter (Linus Torvalds, 2018)
kernel      every form that mainline patches since 5.10; lines do not matter
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final, NamedTuple

from staticcall.abi import x86
from staticcall.abi.static_call import TAIL_FLAG
from staticcall.model.form import Form
from staticcall.model.sites import Answer, Dialect, Policy, PolicyName, Site, Source, TargetKind, Verdict

BLOCK = 8


class Question(NamedTuple):
    """All that an answer depends on, and nothing else: sites that agree in this share their verdict.

    `place` is the address of the instruction modulo the larger of line and block; an object's site asks once for
    each that its section's alignment allows.
    """

    form: Form
    length: int
    opcode: int
    place: int
    line: int
    recorded: bool  # in the table or, in an object, shown by its relocation
    tail: bool
    by_trampoline: bool
    target: TargetKind
    return_thunks: bool
    nops_vary: bool

    @property
    def has_rel32(self) -> bool:
        """Whether the instruction is a direct branch with a displacement of four bytes."""
        if self.form is Form.JCC:
            return self.length - self.opcode == x86.JCC_SIZE
        return self.form in (Form.CALL, Form.PREFIXED_CALL, Form.TAIL_JMP)

    def rel32_crosses(self, block: int) -> bool:
        """Whether the displacement, the instruction's last four bytes, touches more than one block."""
        return x86.crosses(self.place + self.length - x86.REL32_SIZE, x86.REL32_SIZE, block)


Rule = Callable[[Question], Verdict | None]

_DIRECT, _TRAMPOLINE = Answer.DIRECT, Answer.TRAMPOLINE


def _not_recorded(question: Question) -> Verdict | None:
    return None if question.recorded else Verdict(_TRAMPOLINE, "not-recorded")


def _unknown_instruction(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "unknown-instruction") if question.form is Form.UNKNOWN else None


def _warn_trap(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "warn-trap") if question.form is Form.WARN_TRAP else None


def _already_direct(question: Question) -> Verdict | None:
    replaced = question.form in (Form.NOP, Form.RET, Form.RET0)
    patched = replaced or (question.has_rel32 and not question.by_trampoline)
    return Verdict(_DIRECT, "already-direct") if patched else None


def _opcode_not_e8(question: Question) -> Verdict | None:
    # A prefix is no part of the opcode, and the displacement behind it is rewritten all the same.
    is_call = question.form in (Form.CALL, Form.PREFIXED_CALL)
    return None if is_call else Verdict(_TRAMPOLINE, "opcode-not-e8")


def _crosses_line(question: Question) -> Verdict | None:
    crossing = x86.crosses(question.place, question.length, question.line)
    return Verdict(_TRAMPOLINE, "crosses-line") if crossing else None


def _rel32_crosses_line(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "rel32-crosses-line") if question.rel32_crosses(question.line) else None


def _rel32_crosses_block(question: Question) -> Verdict | None:
    return Verdict(_TRAMPOLINE, "rel32-crosses-block") if question.rel32_crosses(BLOCK) else None


def _no_prefix(question: Question) -> Verdict | None:
    return None if question.form is Form.PREFIXED_CALL else Verdict(_TRAMPOLINE, "no-prefix")


def _not_a_kernel_form(question: Question) -> Verdict | None:
    wanted = question.opcode == 0 and question.has_rel32
    return None if wanted else Verdict(_TRAMPOLINE, "not-a-kernel-form")


def _return_form_chosen_at_boot(question: Question) -> Verdict | None:
    # A kernel with return thunks writes `ret` or a jmp to the thunk that the processor needs.
    chosen = question.tail and question.target is TargetKind.NULL and question.return_thunks
    return Verdict(_TRAMPOLINE, "return-form-chosen-at-boot") if chosen else None


def _nop_chosen_at_boot(question: Question) -> Verdict | None:
    chosen = question.nops_vary and question.target is TargetKind.NULL and not question.tail
    return Verdict(_TRAMPOLINE, "nop-chosen-at-boot") if chosen else None


def _otherwise(reason: str) -> Rule:
    def rule(_: Question) -> Verdict | None:
        return Verdict(_DIRECT, reason)

    return rule


_FIRST: Final[tuple[Rule, ...]] = (
    _not_recorded,
    _unknown_instruction,
    _warn_trap,
    _already_direct,
    _nop_chosen_at_boot,
)

LADDERS: Final[Mapping[PolicyName, tuple[Rule, ...]]] = {
    PolicyName.LUTOMIRSKI: (*_FIRST, _opcode_not_e8, _crosses_line, _otherwise("fits-line")),
    PolicyName.REL32: (*_FIRST, _opcode_not_e8, _rel32_crosses_line, _otherwise("rel32-fits-line")),
    PolicyName.BLOCK8: (*_FIRST, _opcode_not_e8, _rel32_crosses_block, _otherwise("rel32-fits-block")),
    PolicyName.TORVALDS: (*_FIRST, _no_prefix, _otherwise("prefixed")),
    PolicyName.KERNEL: (*_FIRST, _not_a_kernel_form, _return_form_chosen_at_boot, _otherwise("kernel-form")),
}


# The verdicts on earlier questions, which many files ask again.
_KNOWN: Final[defaultdict[tuple[Policy, bool, bool], dict[tuple[object, ...], Verdict]]] = defaultdict(dict)


def classify(
    sites: Iterable[Site],
    *,
    policy: Policy,
    dialect: Dialect,
    trampolines: Container[int],
    target_of: Callable[[int | None], TargetKind],
) -> list[Verdict]:
    """Judge sites; the verdicts come in their order.

    `trampolines` are the addresses of all trampolines, `target_of` says what a key (by its address) leads to
    or shall lead to.
    """
    period = max(policy.line, BLOCK)
    ladder = LADDERS[policy.name]
    return_thunks = dialect.kernel and dialect.return_thunk is not None
    nops_vary = dialect.kernel and len(dialect.generation.nops) > 1
    verdicts: list[Verdict] = []
    known = _KNOWN[policy, return_thunks, nops_vary]
    for record, address, _, _, _, alignment, key, flags, instruction, _, sources in sites:
        # Ten thousand sites ask a few hundred different questions.
        form, length, opcode, destination, _ = instruction
        # Only what the section's alignment says of the address is known of it.
        place = address % (alignment if 0 < alignment < period else period)
        by_trampoline, target = destination in trampolines, target_of(key)
        recorded = record is not None or Source.RELOCATION in sources
        case = (form, length, opcode, place, alignment, recorded, flags, by_trampoline, target)
        verdict = known.get(case)
        if verdict is None:
            question = Question(
                form,
                length,
                opcode,
                place,
                policy.line,
                recorded,
                bool(flags & TAIL_FLAG),
                by_trampoline,
                target,
                return_thunks,
                nops_vary,
            )
            verdict = known[case] = _anywhere(ladder, question, alignment, period)
        verdicts.append(verdict)
    return verdicts


def _anywhere(ladder: tuple[Rule, ...], question: Question, alignment: int, period: int) -> Verdict:
    """The verdict that holds wherever the section may be placed, undecided where that makes a difference."""
    places = x86.placements(question.place, alignment, period)
    verdicts = {_climb(ladder, question._replace(place=place)) for place in places}
    return verdicts.pop() if len(verdicts) == 1 else Verdict(Answer.UNDECIDED, "depends-on-address")


def _climb(ladder: tuple[Rule, ...], question: Question) -> Verdict:
    for rule in ladder:
        verdict = rule(question)
        if verdict is not None:
            return verdict
    raise AssertionError("a ladder has an end without an answer")
