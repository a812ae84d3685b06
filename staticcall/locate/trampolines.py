"""The out-of-line trampolines, of every generation, and where they lead.

e9 rel32  0f b9 cc      jmp func; ud1 %esp,%ecx         5.18 and later
e9 rel32  53 43 54      jmp func; "SCT"                 5.10 to 5.18
c3 cc 90 90 90 ...      ret                             target NULL, without return thunks
ff 25 disp32            jmp *key(%rip)                  the temporary trampoline of 2018
ff 25 disp32  0f b9     jmp *key(%rip); ud1             user programs, staticcall.h
e8 rel32 c3             call func; ret                  the first permanent one of 2018
"""

from __future__ import annotations

from collections.abc import Iterable

from staticcall.abi import static_call, x86
from staticcall.abi.static_call import TRAMPOLINE_SIZE
from staticcall.model.form import Form
from staticcall.model.image import Image
from staticcall.model.sites import Site, Trampoline, TrampolineForm
from staticcall.model.symbols import Symbol

_PATCHABLE = {Form.TAIL_JMP: TrampolineForm.JMP, Form.INDIRECT_JMP: TrampolineForm.INDIRECT_JMP}


def locate_trampolines(image: Image, symbols: Iterable[Symbol]) -> dict[int, Trampoline]:
    """Every trampoline among the symbols, by linked address."""
    names = {symbol.address: name for symbol in symbols if (name := base_name(symbol.name)) is not None}
    codes = image.read_each(sorted(names), TRAMPOLINE_SIZE)
    found = {address: decode_trampoline(names[address], address, code) for address, _, code in codes if code}
    if image.placement is not None:
        for address in names.keys() & set(image.placement.undefined.values()):
            form = TrampolineForm.ELSEWHERE
            found[address] = Trampoline(names[address], address, form, None, None, "", b"")
    return found


def base_name(symbol: str) -> str | None:
    """The static call's name in a trampoline's symbol, or None where it is no trampoline's."""
    if not symbol.startswith(static_call.TRAMPOLINE_PREFIXES):
        return None
    for prefix in static_call.TRAMPOLINE_PREFIXES:
        if symbol.startswith(prefix):
            return symbol[len(prefix) :] or None
    return None


def trampolines_behind(image: Image, sites: Iterable[Site], known: dict[int, Trampoline]) -> dict[int, Trampoline]:
    """Trampolines without a name: what records lead to and what carries a trampoline's signature."""
    destinations = {site.instruction.destination for site in sites} - known.keys()
    unnamed = sorted(address for address in destinations if address is not None)
    decoded = (
        decode_trampoline("", address, code) for address, _, code in image.read_each(unnamed, TRAMPOLINE_SIZE) if code
    )
    return {t.address: t for t in decoded if t.signature and t.form is not TrampolineForm.UNKNOWN}


def decode_trampoline(name: str, address: int, code: bytes) -> Trampoline:
    """Say what the eight bytes of a trampoline do."""
    signature = static_call.SIGNATURES.get(code[static_call.SIGNATURE_OFFSET :], "")
    if signature and code[0] == x86.JMP_REL32:  # nearly all there are
        destination = address + x86.JMP_SIZE + x86.BRANCH.unpack_from(code)[1] & x86.ADDRESS_MASK
        return Trampoline(name, address, TrampolineForm.JMP, destination, None, signature, code)
    if len(code) < x86.JMP_SIZE:
        # It stands at the end of what the file has: no room for the jump that it might become.
        return Trampoline(name, address, TrampolineForm.UNKNOWN, None, None, "", code)
    if code[:1] == bytes([x86.RET]):
        return Trampoline(name, address, TrampolineForm.RET, None, None, signature, code)
    instruction = x86.decode(code, address)
    form = _PATCHABLE.get(instruction.form, TrampolineForm.UNKNOWN)
    if instruction.form is Form.CALL and code[x86.CALL_SIZE : x86.CALL_SIZE + 1] == bytes([x86.RET]):
        form = TrampolineForm.CALL_RET
    if form is TrampolineForm.UNKNOWN or instruction.opcode:
        return Trampoline(name, address, TrampolineForm.UNKNOWN, None, None, signature, code)
    if form is TrampolineForm.INDIRECT_JMP:
        signed = code[static_call.INDIRECT_SIGNATURE_OFFSET :] == static_call.INDIRECT_SIGNATURE
        signature = "ud1" if signed else ""
    return Trampoline(name, address, form, instruction.destination, instruction.slot, signature, code)
