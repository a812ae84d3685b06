"""What the code of one key shall be: the bytes of its trampoline and of each of its sites.

At a site the kernel's own choice is written (arch/x86/kernel/static_call.c, __static_call_transform), so
that the kernel finds nothing left to do; nop and xor are those of the kernel in the file (see `Dialect`):

                function            NULL                        __static_call_return0
    call        e8 rel32            0f 1f 44 00 00 (nop)        2e 2e 2e 31 c0 (xor %eax,%eax)
    tail jmp    e9 rel32            c3 cc cc cc cc              e9 rel32
    tail jcc    0f 8x rel32         0f 8x to a bare ret         0f 8x rel32

A live key, one of a user program's staticcall.h, has functions for all three: its sites stay calls and jumps.
A prefix in front of a call stays in front of what replaces it.
"""

from typing import NamedTuple

from staticcall.abi import static_call, x86
from staticcall.errors import UnsafeError
from staticcall.model.form import Form
from staticcall.model.sites import Dialect, Key, Located, Site, Target, TargetKind, Trampoline, TrampolineForm


class Code(NamedTuple):
    """Bytes for one place, and what a decoder should make of them."""

    data: bytes
    form: Form
    destination: int | None


def site_code(located: Located, site: Site, key: Key, target: Target) -> Code:
    """The bytes of a site that goes straight to the target.

    Raises `UnsafeError` where none of the site's forms can express that.
    """
    try:
        code = _tail_code(located, site, key, target) if site.tail else _call_code(located.dialect, site, key, target)
    except OverflowError:
        raise UnsafeError(
            f"{target.name} is more than 2 GiB away from the site at {site.where} of key {key.name}",
            code="out-of-range",
            advice="choose a nearer target",
        ) from None
    if len(code.data) != len(site.code):
        raise UnsafeError(
            f"the {site.instruction.form} of {len(site.code)} bytes at {site.where} has no room for the new one",
            code="site-too-short",
            advice="the site was rewritten by something else",
        )
    return code


def _call_code(dialect: Dialect, site: Site, key: Key, target: Target) -> Code:
    prefixes = site.code[: site.instruction.opcode]
    if target.kind is TargetKind.NULL and not key.live:
        if not dialect.nop:
            raise UnsafeError(
                f"the call at {site.where} of key {key.name} would become a nop that some processors' kernels reject",
                code="nop-chosen-at-boot",
                advice="give another target, or a policy that leaves the call alone",
            )
        return Code(prefixes + dialect.nop, Form.NOP, None)
    if target.kind is TargetKind.RET0 and not key.live and dialect.ret0:
        return Code(prefixes + dialect.ret0, Form.RET0, None)
    call = x86.encode_call(site.address + len(prefixes), target.address)
    return Code(prefixes + call, Form.PREFIXED_CALL if prefixes else Form.CALL, target.address)


def _tail_code(located: Located, site: Site, key: Key, target: Target) -> Code:
    dialect = located.dialect
    if target.kind is TargetKind.NULL and not key.live:
        if dialect.kernel and dialect.return_thunk is not None:
            # Which return this processor needs is decided at boot; the trampoline is fixed up then.
            return _to_trampoline(site, key)
        if site.instruction.form is not Form.JCC:
            return Code(static_call.RET_SITE, Form.RET, None)
        if dialect.plain_return is None:
            return _to_trampoline(site, key)
        return _jump(site, dialect.plain_return)
    return _jump(site, target.address)


def _to_trampoline(site: Site, key: Key) -> Code:
    if key.trampoline is None:
        raise UnsafeError(
            f"key {key.name} has no trampoline for the site at {site.where} to jump to",
            code="no-trampoline",
            advice="choose another target",
        )
    return _jump(site, key.trampoline.address)


def _jump(site: Site, address: int) -> Code:
    if site.instruction.form is Form.JCC:
        return Code(x86.retarget(site.code, site.address, address), Form.JCC, address)
    prefixes = site.code[: site.instruction.opcode]
    return Code(prefixes + x86.encode_jmp(site.address + len(prefixes), address), Form.TAIL_JMP, address)


def trampoline_code(dialect: Dialect, key: Key, trampoline: Trampoline, target: Target) -> Code | None:
    """The first bytes of a trampoline that leads to the target, or None where it follows the key by itself."""
    if trampoline.form is TrampolineForm.INDIRECT_JMP and trampoline.slot == key.address:
        return None
    if trampoline.form in (TrampolineForm.UNKNOWN, TrampolineForm.INDIRECT_JMP):
        raise UnsafeError(
            f"the trampoline of key {key.name} has bytes of no known generation: {trampoline.code.hex()}",
            code="unknown-trampoline",
            advice="nothing can be written there",
        )
    try:
        return _trampoline_code(dialect, trampoline, target)
    except OverflowError:
        raise UnsafeError(
            f"{target.name} is more than 2 GiB away from the trampoline of key {key.name}",
            code="out-of-range",
            advice="choose a nearer target",
        ) from None


def _trampoline_code(dialect: Dialect, trampoline: Trampoline, target: Target) -> Code:
    address = trampoline.address
    if target.kind is TargetKind.NULL:
        if trampoline.form is TrampolineForm.RET or trampoline.destination == dialect.return_thunk is not None:
            # It has a return form already, and boot may have its own mind about which.
            return Code(trampoline.code[: x86.JMP_SIZE], Form.RET, None)
        if dialect.return_thunk is not None:
            return Code(x86.encode_jmp(address, dialect.return_thunk), Form.TAIL_JMP, dialect.return_thunk)
        return Code(static_call.RET_TRAMPOLINE, Form.RET, None)
    if trampoline.form is TrampolineForm.CALL_RET:
        return Code(x86.encode_call(address, target.address), Form.CALL, target.address)
    return Code(x86.encode_jmp(address, target.address), Form.TAIL_JMP, target.address)
