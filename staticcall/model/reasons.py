"""The reasons that a verdict can have, each with its sentence; the codes are part of the public JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REASONS: Final[Mapping[str, str]] = {
    "already-direct": "the site was patched before and no longer leads to its trampoline",
    "pinned": "the site has no record any more, so nobody leads it elsewhere",
    "fits-line": "opcode e8, and the instruction lies in one cache line",
    "rel32-fits-line": "opcode e8, and the displacement lies in one cache line",
    "rel32-fits-block": "opcode e8, and the displacement lies in one aligned 8-byte block",
    "prefixed": "the call has a prefix that does nothing",
    "kernel-form": "a form that kernels patch",
    "crosses-line": "the instruction crosses a cache line",
    "rel32-crosses-line": "the displacement crosses a cache line",
    "rel32-crosses-block": "the displacement crosses an aligned 8-byte block",
    "opcode-not-e8": "the instruction is not a call with opcode e8",
    "no-prefix": "the call has no prefix to put an int3 on",
    "not-a-kernel-form": "no kernel patches this form",
    "return-form-chosen-at-boot": "the key is NULL and the processor decides at boot how a tail site returns",
    "nop-chosen-at-boot": "the key is NULL and kernels before 5.13 choose their nop by the processor",
    "unknown-instruction": "the bytes are no form of a static call",
    "warn-trap": "the site is a WARN trap",
    "depends-on-address": "whether it crosses is only known where the section gets its final address",
    "not-recorded": "found by code only; without a record nothing may patch it",
}

# Those that a site goes direct by; all others leave it to its trampoline, or undecided.
DIRECT_REASONS: Final = frozenset(
    {"already-direct", "pinned", "fits-line", "rel32-fits-line", "rel32-fits-block", "prefixed", "kernel-form"}
)

# What would make a site of each of the others direct.
REMEDIES: Final[Mapping[str, str]] = {
    "crosses-line": "Assemble with -Wa,-malign-branch-boundary=64,-malign-branch=call+jmp,-malign-branch-prefix-size=5,"
    " or use --policy rel32, which asks only that the displacement lies in one line.",
    "rel32-crosses-line": "Assemble with"
    " -Wa,-malign-branch-boundary=64,-malign-branch=call+jmp,-malign-branch-prefix-size=5.",
    "rel32-crosses-block": "Use --policy rel32, where a store within one cache line is trusted to be atomic.",
    "opcode-not-e8": "Compile with -fno-optimize-sibling-calls, which makes calls of tail jumps, or use --policy"
    " kernel, which patches jumps too.",
    "no-prefix": "Compile with -fno-plt and link with -Wl,-z,call-nop=prefix-0x2e, which gives calls a prefix.",
    "not-a-kernel-form": "Compile so that the site is a call or a jump with a 32-bit displacement, as objtool expects.",
    "return-form-chosen-at-boot": "Lead the key to a function that does nothing instead of to NULL.",
    "nop-chosen-at-boot": "Lead the key to a function that does nothing instead of to NULL.",
    "unknown-instruction": "Check that the table belongs to this file, and that nothing else rewrote the place.",
    "warn-trap": "Lead the key to a function with patch --set KEY=TARGET: a trap is what the build left for none.",
    "depends-on-address": "Give the section an alignment of 64 or more, or decide after the link: report on what the"
    " linker makes of it.",
    "not-recorded": "Run annotate, or objtool --static-call, on the object before it is linked.",
}
