"""Which build flags would make more sites direct, by the reasons that keep them from it.

The alignment flags were measured with GNU as 2.40 on 5,940 call sites of one object: 414 crossed a line
without them, none with them, and the code did not grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from staticcall.model.form import Form
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Policy, PolicyName

_ALIGN_FLAGS: Final = "-Wa,-malign-branch-boundary={line},-malign-branch=call+jmp,-malign-branch-prefix-size=5"
_CALL_FLAGS: Final = "-fno-optimize-sibling-calls"
_PREFIX_FLAGS: Final = "-fno-plt -Wl,-z,call-nop=prefix-0x2e"
# The assembler takes no smaller boundary, and what fits into 64 bytes fits into lines that are longer.
_SMALLEST, _LARGEST = 16, 64
_JUMPS: Final = (Form.TAIL_JMP, Form.JCC)


def advice_for(report: ImageReport) -> Iterator[str]:
    """One line per kind of site that a flag would change."""
    counts = {reason: n for (answer, reason), n in report.summary.reasons.items() if answer != Answer.DIRECT}
    crossing = sum(counts.get(reason, 0) for reason in ("crosses-line", "rel32-crosses-line"))
    flags = _align_flags(report.policy.line)
    if crossing and flags:
        yield f"{crossing:,} that cross a line: assemble with {flags}"
    if counts.get("rel32-crosses-block"):
        yield (
            f"{counts['rel32-crosses-block']:,} that cross an 8-byte block: --policy rel32 asks for less,"
            " where a store within a line is trusted to be atomic"
        )
    tails = sum(
        verdict.reason == "opcode-not-e8" and site.instruction.form in _JUMPS
        for site, verdict in zip(report.sites, report.verdicts, strict=True)
    )
    if tails:
        yield f"{tails:,} tail jumps: compile with {_CALL_FLAGS}, or use --policy kernel"
    indirect = report.summary.forms.get(Form.INDIRECT_CALL.value, 0)
    if indirect:
        yield f"{indirect:,} indirect calls: link their trampolines in, so that the linker can relax the calls"
    # A kernel takes no prefix in front of its sites.
    if counts.get("no-prefix") and not report.image.kernel:
        yield f"{counts['no-prefix']:,} without a prefix: compile and link with {_PREFIX_FLAGS}"


def flags_for(reason: str, form: Form, policy: Policy, *, kernel: bool) -> tuple[str, str] | None:
    """What to do about one site that is not direct for a reason, in words, and the flags for it, which may be none."""
    if reason in ("crosses-line", "rel32-crosses-line", "depends-on-address"):
        # The assembler keeps instructions in lines, and not displacements in blocks.
        flags = "" if policy.name is PolicyName.BLOCK8 else _align_flags(policy.line)
        return ("let the assembler keep it in a line", flags) if flags else None
    if reason == "opcode-not-e8" and form in _JUMPS:
        return "compile it as a call, or choose --policy kernel, which takes jumps", _CALL_FLAGS
    if form is Form.INDIRECT_CALL:
        return "link its trampoline in, so that the linker can relax the call", ""
    if reason == "no-prefix":
        # A kernel takes no prefix in front of its sites.
        if kernel:
            return None
        if form in _JUMPS:
            return "compile it as a call, and link it with a prefix", f"{_CALL_FLAGS} {_PREFIX_FLAGS}"
        return "compile and link it with a prefix", _PREFIX_FLAGS
    if reason == "not-recorded":
        return "let objtool or staticcall annotate write a record for it", ""
    return None


def _align_flags(line: int) -> str:
    """What keeps instructions in lines of so many bytes; nothing where the assembler cannot."""
    return _ALIGN_FLAGS.format(line=min(line, _LARGEST)) if line >= _SMALLEST else ""
