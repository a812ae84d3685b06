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
