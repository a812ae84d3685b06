"""The out-of-line trampolines, of every generation, and where they lead.

e9 rel32  0f b9 cc      jmp func; ud1 %esp,%ecx         5.18 and later
e9 rel32  53 43 54      jmp func; "SCT"                 5.10 to 5.18
c3 cc 90 90 90 ...      ret                             target NULL, without return thunks
ff 25 disp32            jmp *key(%rip)                  the temporary trampoline of 2018
e8 rel32 c3             call func; ret                  the first permanent one of 2018
"""

from __future__ import annotations

from collections.abc import Iterable

from staticcall.abi import static_call, x86
from staticcall.model.image import Image, Symbol
from staticcall.model.sites import Form, Site, Trampoline, TrampolineForm

_PATCHABLE = {Form.TAIL_JMP: TrampolineForm.JMP, Form.INDIRECT_JMP: TrampolineForm.INDIRECT_JMP}


def locate_trampolines(image: Image, symbols: Iterable[Symbol]) -> dict[int, Trampoline]:
    """Every trampoline among the symbols, by linked address."""
    found: dict[int, Trampoline] = {}
    for symbol in sorted(symbols, key=lambda symbol: symbol.address):
        name = base_name(symbol.name)
        if name is not None and (code := _code_at(image, symbol.address)):
            found[symbol.address] = decode_trampoline(name, symbol.address, code)
    return found


def base_name(symbol: str) -> str | None:
    """The static call's name in a trampoline's symbol, or None where it is no trampoline's."""
    for prefix in static_call.TRAMPOLINE_PREFIXES:
        if symbol.startswith(prefix):
            # Compilers append .constprop and the like to copies, never to these; the rest is the name.
            return symbol[len(prefix) :] or None
    return None


def trampolines_behind(image: Image, sites: Iterable[Site], known: dict[int, Trampoline]) -> dict[int, Trampoline]:
    """Trampolines without a name: what records lead to and what carries a trampoline's signature."""
    found: dict[int, Trampoline] = {}
    for site in sites:
        address = site.instruction.destination
        if address is None or address in known or address in found:
            continue
        code = _code_at(image, address)
        trampoline = decode_trampoline("", address, code)
        if trampoline.signature and trampoline.form is not TrampolineForm.UNKNOWN:
            found[address] = trampoline
    return found


def _code_at(image: Image, address: int) -> bytes:
    """The trampoline's bytes; fewer at the end of a segment, none outside."""
    for size in (static_call.TRAMPOLINE_SIZE, 6, 1):
        if image.offset_of(address, size) is not None:
            return image.read_at(address, size)
    return b""


def decode_trampoline(name: str, address: int, code: bytes) -> Trampoline:
    """Say what the eight bytes of a trampoline do."""
    signature = static_call.SIGNATURES.get(code[static_call.SIGNATURE_OFFSET :], "")
    if code[:1] == bytes([x86.RET]):
        return Trampoline(name, address, TrampolineForm.RET, None, None, signature, code)
    instruction = x86.decode(code, address)
    form = _PATCHABLE.get(instruction.form, TrampolineForm.UNKNOWN)
    if instruction.form is Form.CALL and code[x86.CALL_SIZE : x86.CALL_SIZE + 1] == bytes([x86.RET]):
        form = TrampolineForm.CALL_RET
    if form is TrampolineForm.UNKNOWN or instruction.opcode:
        return Trampoline(name, address, TrampolineForm.UNKNOWN, None, None, signature, code)
    return Trampoline(name, address, form, instruction.destination, instruction.slot, signature, code)
