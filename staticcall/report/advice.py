"""Which build flags would make more sites direct, by the reasons that keep them from it.

The alignment flags were measured with GNU as 2.40 on 5,940 call sites of one object: 414 crossed a line
without them, none with them, and the code did not grow.
"""

from __future__ import annotations

from collections.abc import Iterator

from staticcall.model.form import Form
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer

ALIGN_FLAGS = "-Wa,-malign-branch-boundary={line},-malign-branch=call+jmp,-malign-branch-prefix-size=5"
PREFIX_FLAGS = "-fno-plt -Wl,-z,call-nop=prefix-0x2e"
_LINES = (32, 64)


def advice_for(report: ImageReport) -> Iterator[str]:
    """One line per kind of site that a flag would change."""
    counts = {reason: n for (answer, reason), n in report.summary.reasons.items() if answer != Answer.DIRECT}
    crossing = sum(counts.get(reason, 0) for reason in ("crosses-line", "rel32-crosses-line"))
    if crossing:
        # The assembler takes no boundary above 64 into account that it would not have to for 64.
        line = report.policy.line if report.policy.line in _LINES else 64
        yield f"{crossing:,} that cross a line: assemble with {ALIGN_FLAGS.format(line=line)}"
    if counts.get("rel32-crosses-block"):
        yield (
            f"{counts['rel32-crosses-block']:,} that cross an 8-byte block: --policy rel32 asks for less,"
            " where a store within a line is trusted to be atomic"
        )
    tails = sum(
        verdict.reason == "opcode-not-e8" and site.instruction.form in (Form.TAIL_JMP, Form.JCC)
        for site, verdict in zip(report.sites, report.verdicts, strict=True)
    )
    if tails:
        yield f"{tails:,} tail jumps: compile with -fno-optimize-sibling-calls, or use --policy kernel"
    indirect = report.summary.forms.get(Form.INDIRECT_CALL.value, 0)
    if indirect:
        yield f"{indirect:,} indirect calls: link their trampolines in, so that the linker can relax the calls"
    if counts.get("no-prefix"):
        yield f"{counts['no-prefix']:,} without a prefix: compile and link with {PREFIX_FLAGS}"


def flags_for(reason: str, form: Form, line: int) -> tuple[str, str] | None:
    """What to do about one site that is not direct for a reason, in words, and the flags for it, which may be none."""
    if reason in ("crosses-line", "rel32-crosses-line", "depends-on-address"):
        return "let the assembler keep it in a line", ALIGN_FLAGS.format(line=line if line in _LINES else 64)
    if reason == "opcode-not-e8" and form in (Form.TAIL_JMP, Form.JCC):
        return (
            "compile it as a call, or choose a policy that takes jumps",
            "-fno-optimize-sibling-calls, --policy kernel",
        )
    if form is Form.INDIRECT_CALL:
        return "link its trampoline in, so that the linker can relax the call", ""
    if reason == "no-prefix":
        return "compile and link it with a prefix", PREFIX_FLAGS
    if reason == "not-recorded":
        return "let objtool or staticcall annotate write a record for it", ""
    return None
