"""What each generation of kernels accepts at its sites and in its trampolines, and what it writes there.

Before a kernel patches a place it looks at the bytes there, and does not go on with what it does not know. The
first bytes decide: at a call e8, or all five bytes of its own nop or xor; at a tail e9, c3, or later 0f 8x. For
trampolines it asks as for tails, and later also for the three bytes of signature behind the code. Sites are looked
at while the kernel boots or a module is loaded, trampolines when their static call is updated.

    since   at a call                     at a tail     signature   otherwise
    5.10    e8, the processor's nop       e9 c3         (any)       WARN_ONCE(), and patches all the same
    5.12    and 66 66 48 31 c0
    5.13    its only nop 0f 1f 44 00 00
    5.16                                                53 43 54    BUG()
    5.18    2e 2e 2e 31 c0 for that xor
    5.19                                                0f b9 cc
    6.3                                   and 0f 8x
    6.19    and 67 48 0f b9 3a

Stable and vendor kernels have later rows' rules under earlier numbers: 5.15 has the later xor and signs with ud1
though it checks no signature, 5.18.14 signs with ud1, 6.1 patches jcc. So a kernel's own constants come before its
number: the bytes compared are arrays with names, the helper of jcc has one, and the text that a BUG() is announced
with is among the strings. A later kernel still accepts 3e 3e c6 07 00 at calls; only its constant tells.

Sources: arch/x86/kernel/static_call.c, __static_call_validate() and __static_call_transform(), arch/x86/include/asm/
static_call.h and nops.h, Linux 5.10 to 6.19; kernel/static_call_inline.c for the when. Changes: 2105a92748e8
(signature, BUG), 1cd5f059d956 (xor), ee88d363d156 (ud1), 923510c88d2b (jcc), and the removal of ideal_nops.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from staticcall.abi.static_call import (
    NOP5,
    RET0_CS,
    RET0_DATA16,
    RET0_FORMS,
    SIGNATURE_OFFSET,
    SIGNATURE_SCT,
    SIGNATURE_UD1,
    SIGNATURES,
    WARN_TRAP,
    XOR_SIZE,
    XOR_SYMBOL,
)

Release = tuple[int, int]

# The nop of five bytes on processors of AMD's K8 and of Intel's that decode prefixes faster, before 5.13.
NOP5_K8: Final = bytes.fromhex("6666666690")

_CALL: Final = bytes.fromhex("e8")
_PLAIN_TAILS: Final = (bytes.fromhex("e9"), bytes.fromhex("c3"))
_JCC_TAILS: Final = tuple(bytes.fromhex(f"0f8{condition:x}") for condition in range(16))

# Constants of the kernel's own code, by the names of their symbols, and their sizes.
SIGNATURE_SYMBOL: Final = "tramp_ud"
WARN_SYMBOL: Final = "warninsn"
UNLOCK_SYMBOL: Final = "unlockinsn"
CONSTANTS: Final = {XOR_SYMBOL: XOR_SIZE, SIGNATURE_SYMBOL: 3, WARN_SYMBOL: 5, UNLOCK_SYMBOL: 5}
# What holds the nops: where a processor decides, and since there is one for all.
NOPS_BY_PROCESSOR: Final = "ideal_nops"
NOPS_FOR_ALL: Final = "x86_nops"
# What such a kernel says before its BUG(); those that only warn check no signature.
SIGNATURE_MESSAGE: Final = b"trampoline signature fail"


class Generation(NamedTuple):
    """What the kernels since a release accept.

    `nops` are those of a call that leads nowhere: more than one where the processor decides. `xor` is that of a
    call of __static_call_return0, empty before there was one. `others` are further whole instructions at calls, `jcc`
    says whether a tail may be conditional. `signature` is empty where none is checked. A `fatal` kernel stops at
    anything else, another one warns and overwrites it.
    """

    since: Release
    nops: tuple[bytes, ...]
    xor: bytes = b""
    others: tuple[bytes, ...] = ()
    jcc: bool = False
    signature: bytes = b""
    fatal: bool = False

    @property
    def nop(self) -> bytes:
        """The nop that this kernel writes and accepts, empty where that depends on the processor."""
        return self.nops[0] if len(self.nops) == 1 else b""

    @property
    def calls(self) -> tuple[bytes, ...]:
        """What a call may begin with."""
        return tuple(code for code in (_CALL, self.nop, self.xor, *self.others) if code)

    @property
    def tails(self) -> tuple[bytes, ...]:
        """What a tail may begin with, and the code of a trampoline."""
        return (*_PLAIN_TAILS, *_JCC_TAILS) if self.jcc else _PLAIN_TAILS

    def accepts(self, code: bytes, *, tail: bool) -> bool:
        """Whether this kernel takes the bytes at a site (five of a call, if there are so many) for its own."""
        return code.startswith(self.tails if tail else self.calls)

    def signs(self, code: bytes) -> bool:
        """Whether a trampoline of these eight bytes has the signature that this kernel insists on, if on any."""
        return not self.signature or code[SIGNATURE_OFFSET:] == self.signature

    def by_processor(self, code: bytes, *, tail: bool) -> bool:
        """Whether some processors' kernels take these bytes for their own, and others' do not."""
        return not tail and len(self.nops) > 1 and code.startswith(self.nops)

    def outcome(self, when: str) -> str:
        """What the kernel does where it comes upon bytes that it does not accept."""
        return f"BUG() {when}" if self.fatal else f"WARN() {when}, and it is overwritten all the same"


_5_10: Final = Generation((5, 10), (NOP5, NOP5_K8))
_5_12: Final = _5_10._replace(since=(5, 12), xor=RET0_DATA16)
_5_13: Final = _5_12._replace(since=(5, 13), nops=(NOP5,))
_5_16: Final = _5_13._replace(since=(5, 16), signature=SIGNATURE_SCT, fatal=True)
_5_18: Final = _5_16._replace(since=(5, 18), xor=RET0_CS)
_5_19: Final = _5_18._replace(since=(5, 19), signature=SIGNATURE_UD1)
_6_3: Final = _5_19._replace(since=(6, 3), jcc=True)
_6_19: Final = _6_3._replace(since=(6, 19), others=(WARN_TRAP,))

GENERATIONS: Final = (_5_10, _5_12, _5_13, _5_16, _5_18, _5_19, _6_3, _6_19)
LATEST: Final = GENERATIONS[-1]
# What some kernel or other accepts, for files that are none and objects that do not say for which they are.
SOME_KERNEL: Final = LATEST._replace(others=(*LATEST.others, RET0_DATA16), signature=b"")
# Before this one the message tells whether a kernel is fatal; the trampolines of these tell how they are signed.
_FATAL_SINCE: Final = _5_16.since
_SIGNED_EITHER_WAY: Final = _5_18.since
# Stable kernels since this one may know jcc; a module cannot tell whether its kernel does.
JCC_IN_STABLE: Final = (6, 1)


class Signs(NamedTuple):
    """What a kernel file says of its own generation.

    `constants` are the bytes of its constants by symbol, those that it has. `signatures` are what its trampolines
    have behind their code, most frequent first; `message` tells whether the text of SIGNATURE_MESSAGE is in it, None
    where nobody looked. `nops` are the symbols of nops that it has, `jcc` tells whether it has the helper of
    conditional tails.
    """

    release: Release | None
    constants: Mapping[str, bytes]
    signatures: tuple[bytes, ...] = ()
    message: bool | None = None
    nops: frozenset[str] = frozenset()
    jcc: bool = False


def needs_message(release: Release | None) -> bool:
    """Whether the number leaves open what a kernel does with bytes that it does not accept."""
    return release is None or release < _FATAL_SINCE


def needs_signatures(release: Release | None) -> bool:
    """Whether the number leaves open how trampolines are signed."""
    return needs_message(release) or release == _SIGNED_EITHER_WAY


def needs_symbols(release: Release | None, *, message: bool | None) -> tuple[str, ...]:
    """The symbols to look for besides xor5rax; of most releases none can say anything new."""
    if release is None:
        return SIGNATURE_SYMBOL, WARN_SYMBOL, UNLOCK_SYMBOL, NOPS_BY_PROCESSOR, NOPS_FOR_ALL
    wanted = []
    if release < _5_13.since:
        wanted.append(NOPS_FOR_ALL)
    if needs_signatures(release) and (message or release >= _FATAL_SINCE):
        wanted.append(SIGNATURE_SYMBOL)
    if release >= _6_19.since:
        wanted += (WARN_SYMBOL, UNLOCK_SYMBOL)
    return tuple(wanted)


def generation_of(signs: Signs) -> Generation:
    """The generation by its release, corrected by what the file itself says; the latest where nothing is said."""
    release, constants = signs.release, signs.constants
    row = next((row for row in reversed(GENERATIONS) if release is None or row.since <= release), GENERATIONS[0])
    if needs_message(release) and signs.message is not None:
        row = row._replace(fatal=signs.message, signature=(row.signature or SIGNATURE_UD1) if signs.message else b"")
    if row.signature:
        row = row._replace(signature=_signature(signs, row.signature))
    if signs.nops:
        row = row._replace(nops=_5_10.nops if NOPS_BY_PROCESSOR in signs.nops else _5_13.nops)
    xor = constants.get(XOR_SYMBOL, b"")
    others = [constants[name] for name in (WARN_SYMBOL, UNLOCK_SYMBOL) if name in constants]
    if xor in RET0_FORMS:
        # Whoever names this one names them all: what it does not have it does not know.
        known = tuple(others) if release is None else tuple(dict.fromkeys((*row.others, *others)))
        return row._replace(xor=xor, others=known, jcc=signs.jcc or (release is not None and row.jcc))
    if row.xor == RET0_DATA16 and signs.signatures[:1] == (SIGNATURE_UD1,):
        # Those signatures came to stable kernels months after the later xor.
        row = row._replace(xor=RET0_CS)
    return row._replace(others=tuple(dict.fromkeys((*row.others, *others))), jcc=signs.jcc or row.jcc)


def _signature(signs: Signs, otherwise: bytes) -> bytes:
    """What a kernel that checks signatures compares them with."""
    constant = signs.constants.get(SIGNATURE_SYMBOL, b"")
    if constant in SIGNATURES:
        return constant
    if not needs_signatures(signs.release):
        return otherwise
    return next((found for found in signs.signatures if found in SIGNATURES), otherwise)
