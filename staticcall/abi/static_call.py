"""Static calls on x86-64: names, records, trampolines, and what the kernel writes at a site.

A call through the static call `x` is compiled as a call to the trampoline `__SCT__x`, eight bytes that jump
to the present target. The key `__SCK__x` holds that target as a pointer, `func`, in its first eight bytes.
A table lists every site in records of two 32-bit fields, each relative to its own address:

    record n at R:  s32 addr   R + addr     = the site's first byte, prefixes included
                    s32 key    R + 4 + key  = the key, its two low bits flags: 1 TAIL, 2 INIT (run time only)

With that, a site may be rewritten from `call __SCT__x` into a direct call of the target. The kernel does so
at boot, for every site, from `func`; before it does it insists on bytes that it knows.

Sources: include/linux/static_call.h and static_call_types.h, kernel/static_call_inline.c,
arch/x86/include/asm/static_call.h and arch/x86/kernel/static_call.c, Linux 5.10 to 6.12; the postings of
2018 and 2019 for the old names.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

KEY_PREFIX: Final = "__SCK__"
TRAMPOLINE_PREFIX: Final = "__SCT__"
# The exported names of a trampoline and its key, by which a shared object of user programs offers a static call.
OFFER_PREFIX: Final = "__SCO__"
OFFERED_KEY_PREFIX: Final = "__SCX__"
# What the postings of 2018 and 2019 called the trampoline; their key had the bare name.
OLD_TRAMPOLINE_PREFIXES: Final = ("____static_call_tramp_", "__static_call_tramp_")
TRAMPOLINE_PREFIXES: Final = (TRAMPOLINE_PREFIX, *OLD_TRAMPOLINE_PREFIXES)

RECORD: Final = Struct("<ii")
RECORD_SIZE: Final = 8
TAIL_FLAG: Final = 1
FLAG_MASK: Final = 3
NO_FLAGS: Final = ~FLAG_MASK

# A linker makes start and stop symbols by itself only for a section whose name is a C identifier.
TABLE_SECTIONS: Final = (".static_call_sites", "static_call_sites")
TABLE_START: Final = "__start_static_call_sites"
TABLE_STOP: Final = "__stop_static_call_sites"

TRAMPOLINE_SIZE: Final = 8
# ud1 %esp,%ecx, never executed; 5.16 to 5.18 spelt out "SCT". Both stand behind five bytes of code; before 5.16
# there was whatever filled the gap.
SIGNATURE_UD1: Final = bytes.fromhex("0fb9cc")
SIGNATURE_SCT: Final = b"SCT"
SIGNATURES: Final = {SIGNATURE_UD1: "ud1", SIGNATURE_SCT: "SCT"}
SIGNATURE_OFFSET: Final = 5
# The trampoline of a user program's staticcall.h: jmp *key(%rip), six bytes, and the start of a ud1.
INDIRECT_TRAMPOLINE: Final = b"\xff\x25"
INDIRECT_SIGNATURE: Final = b"\x0f\xb9"
INDIRECT_SIGNATURE_OFFSET: Final = 6

RETURN_THUNK: Final = "__x86_return_thunk"
RETURN0: Final = "__static_call_return0"
PLAIN_RETURN: Final = "__static_call_return"
# What a static call of staticcall.h leads to where it does nothing: its key is never 0.
NOP_FUNCTION: Final = "__static_call_nop"

# nopl 0x0(%rax,%rax,1): a call whose target is NULL.
NOP5: Final = bytes.fromhex("0f1f440000")
# A call whose target is __static_call_return0 becomes five bytes that clear %eax: data16 data16 xor %rax,%rax in
# 5.12 to 5.17, cs cs cs xor %eax,%eax in later kernels. Which kernel takes which is told in `generations`.
RET0_DATA16: Final = bytes.fromhex("66664831c0")
RET0_CS: Final = bytes.fromhex("2e2e2e31c0")
RET0_FORMS: Final = (RET0_CS, RET0_DATA16)
# Kernels since 6.19: ud1 (%edx),%rdi at calls of __WARN_trap.
WARN_TRAP: Final = bytes.fromhex("67480fb93a")
# A tail site whose target is NULL, and a trampoline whose target is NULL, where no return thunk is used.
RET_SITE: Final = bytes.fromhex("c3cccccccc")
RET_TRAMPOLINE: Final = bytes.fromhex("c3cc909090")
# What 5.10 to 5.16 had there instead.
RET_TRAMPOLINE_NOPS: Final = bytes.fromhex("c390909090")
# Since then a kernel writes all five bytes of a return, and not only the first.
PADDED_RET_SINCE: Final = (5, 16)

# Where names can be found in a string table: a piece that few others have, and what of the name stands before it. A
# search for a piece takes about 2 ms in a kernel's strings, so names share pieces where they can.
_ENDS: Final = (b"__start_", b"__stop_")
# The ends of other tables of a kernel, see `locate/claims.py`:
JUMP_TABLE_ENDS: Final = ("__start___jump_table", "__stop___jump_table")
JUMP_TABLE_STEM: Final = (b"__jump_table", _ENDS)
CLAIM_STEMS: Final = (JUMP_TABLE_STEM, (b"kprobe_blacklist", _ENDS))
# All names above, and what a report needs of those:
SYMBOL_STEMS: Final = (
    JUMP_TABLE_STEM,
    (b"__SC", (b"",)),
    (b"__static_call_", (b"", b"__")),
    (b"static_call_sites", _ENDS),
    (b"x86_return_thunk", (b"__",)),
    (b"xor5rax", (b"",)),
    (b"linux_banner", (b"",)),
)

# The constant of the kernel's own code that has its xor, so the bytes that this very kernel accepts and writes.
XOR_SYMBOL: Final = "xor5rax"
XOR_SIZE: Final = 5
BANNER_SYMBOL: Final = "linux_banner"
BANNER_SIZE: Final = 256
MODULE_INFO_SECTION: Final = ".modinfo"


# Whatever has a static call has one of these among its names.
MARKS: Final = (b"__SC", b"static_call")


def is_live_trampoline(code: bytes) -> bool:
    """Whether the eight bytes of a trampoline are those of staticcall.h: jmp *slot and the start of a ud1."""
    return code.startswith(INDIRECT_TRAMPOLINE) and code[INDIRECT_SIGNATURE_OFFSET:] == INDIRECT_SIGNATURE
