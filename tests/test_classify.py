"""The policies, judged site by site against the rules as the facts state them, written down again here."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staticcall.classify.ladders import classify
from staticcall.model.form import Form, Instruction
from staticcall.model.reasons import REASONS
from staticcall.model.sites import Answer, Dialect, Policy, PolicyName, Site, Source, TargetKind, Verdict

TRAMPOLINE = 0x1000
FUNCTION = 0x2000
USER = Dialect(False, None, "", b"", b"", None, None, None)
KERNEL = Dialect(True, (6, 12), "", b"", b"", 0x3000, 0x4000, 0x5000)

# Length of each form, and how many bytes stand before its last four.
LENGTHS = {
    Form.CALL: (5, 0),
    Form.PREFIXED_CALL: (6, 1),
    Form.TAIL_JMP: (5, 0),
    Form.JCC: (6, 0),
    Form.INDIRECT_CALL: (6, 0),
    Form.INDIRECT_JMP: (6, 0),
    Form.SHORT_JMP: (2, 0),
    Form.UNKNOWN: (5, 0),
    Form.WARN_TRAP: (5, 0),
}
TAILS = {Form.TAIL_JMP, Form.JCC, Form.INDIRECT_JMP, Form.SHORT_JMP}


class Case(NamedTuple):
    form: Form
    address: int
    line: int


def site(form: Form, address: int, destination: int | None = TRAMPOLINE, *, record: int | None = 0) -> Site:
    length, opcode = LENGTHS.get(form, (5, 0))
    instruction = Instruction(form, length, opcode, destination)
    flags, code = int(form in TAILS), bytes(length)
    return Site(record, address, 0, ".text", address, 0, 0x8000, flags, instruction, code, (Source.TABLE,))


def judge(
    one: Site,
    policy: str,
    *,
    line: int = 64,
    target: TargetKind = TargetKind.FUNCTION,
    dialect: Dialect = USER,
) -> Verdict:
    (verdict,) = classify(
        [one],
        policy=Policy(PolicyName(policy), line),
        dialect=dialect,
        trampolines={TRAMPOLINE},
        target_of=lambda _: target,
    )
    return verdict


def lines_touched(first: int, size: int, line: int) -> int:
    return len({byte // line for byte in range(first, first + size)})


def displacement(case: Case) -> int:
    return case.address + LENGTHS[case.form][0] - 4


RULES: dict[str, Callable[[Case], bool]] = {
    "lutomirski": lambda c: (
        c.form in (Form.CALL, Form.PREFIXED_CALL) and lines_touched(c.address, LENGTHS[c.form][0], c.line) == 1
    ),
    "rel32": lambda c: c.form in (Form.CALL, Form.PREFIXED_CALL) and lines_touched(displacement(c), 4, c.line) == 1,
    "block8": lambda c: c.form in (Form.CALL, Form.PREFIXED_CALL) and lines_touched(displacement(c), 4, 8) == 1,
    "torvalds": lambda c: c.form is Form.PREFIXED_CALL,
    "kernel": lambda c: c.form in (Form.CALL, Form.TAIL_JMP, Form.JCC),
}


@pytest.mark.parametrize("policy", RULES)
@given(
    form=st.sampled_from(sorted(LENGTHS)),
    address=st.integers(0xFFFFFFFF81000000, 0xFFFFFFFF81001000),
    line=st.sampled_from([16, 32, 64, 128]),
)
def test_a_policy_patches_what_its_rule_says(policy: str, form: Form, address: int, line: int) -> None:
    verdict = judge(site(form, address), policy, line=line)

    assert (verdict.answer is Answer.DIRECT) == RULES[policy](Case(form, address, line))
    assert verdict.reason in REASONS


@pytest.mark.parametrize("policy", RULES)
@pytest.mark.parametrize("form", [Form.NOP, Form.RET0, Form.RET])
def test_a_site_that_was_patched_is_recognised_wherever_it_lies(policy: str, form: Form) -> None:
    assert judge(site(form, 62, None), policy) == (Answer.DIRECT, "already-direct")


@pytest.mark.parametrize("policy", RULES)
@pytest.mark.parametrize("form", [Form.CALL, Form.PREFIXED_CALL, Form.TAIL_JMP, Form.JCC])
def test_a_branch_that_leads_to_no_trampoline_was_patched(policy: str, form: Form) -> None:
    assert judge(site(form, 62, FUNCTION), policy) == (Answer.DIRECT, "already-direct")


@pytest.mark.parametrize("policy", RULES)
def test_a_site_without_a_record_is_never_patched(policy: str) -> None:
    assert judge(site(Form.CALL, 0, record=None), policy) == (Answer.TRAMPOLINE, "not-recorded")


def test_a_null_tail_of_a_kernel_with_return_thunks_is_left_to_the_boot() -> None:
    tail = site(Form.TAIL_JMP, 0)

    assert judge(tail, "kernel", target=TargetKind.NULL, dialect=KERNEL).reason == "return-form-chosen-at-boot"
    assert judge(tail, "kernel", target=TargetKind.NULL, dialect=USER).answer is Answer.DIRECT
    assert judge(tail, "kernel", dialect=KERNEL).answer is Answer.DIRECT


def test_at_spread_addresses_the_shares_that_cross_are_those_of_the_facts() -> None:
    """6.25 % of instructions of five bytes and 4.7 % of their displacements cross a 64-byte line."""
    verdicts = {
        policy: [judge(site(Form.CALL, address), policy).reason for address in range(64)]
        for policy in ("lutomirski", "rel32")
    }

    assert verdicts["lutomirski"].count("crosses-line") / 64 == 0.0625
    assert verdicts["rel32"].count("rel32-crosses-line") / 64 == pytest.approx(0.047, abs=0.0005)
