"""What may stand at a site, in a trampoline and in a slot, given where its static call leads.

    place                 target      legal
    call site             any         call of the trampoline
                          function    call of the function
                          NULL        nop5
                          RET0        call of __static_call_return0, or five bytes of xor
    tail site             any         jmp or jcc to the trampoline
                          function    jmp or jcc to the function
                          NULL        ret and int3 padding, jmp or jcc to __x86_return_thunk,
                                      jcc to __static_call_return
    trampoline            function    jmp function; the old form call function, ret
                          NULL        ret and padding, jmp __x86_return_thunk
                          any         jmp *slot, the temporary form

Where the temporary form has a signature, as in user programs, the key is never NULL and sites are branches alone:
the function itself, be it one that does nothing or returns 0, or the trampoline.

Every check raises `VerificationError` and returns nothing of interest otherwise.

Sources: arch/x86/kernel/static_call.c, Linux 5.10 to 6.12; the postings of 2018 and 2019 for the old forms.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, NoReturn

from staticcall.abi.static_call import RET_SITE, RET_TRAMPOLINE, RET_TRAMPOLINE_NOPS
from staticcall.errors import VerificationError
from staticcall.model.form import Form
from staticcall.verify.decode import Decoded
from staticcall.verify.layout import Layout
from staticcall.verify.names import Names

CALLS = frozenset({Form.CALL, Form.PREFIXED_CALL})
JUMPS = frozenset({Form.TAIL_JMP, Form.SHORT_JMP, Form.JCC})
INDIRECT = frozenset({Form.INDIRECT_CALL, Form.INDIRECT_JMP})


class _Family(Enum):
    """Forms that may take each other's place, given the same length and prefix."""

    CALL = "a call"
    JUMP = "a tail jump"
    SHORT_JUMP = "a short jump"
    CONDITIONAL = "a conditional jump"


_FAMILIES = {
    Form.CALL: _Family.CALL,
    Form.PREFIXED_CALL: _Family.CALL,
    Form.NOP: _Family.CALL,
    Form.RET0: _Family.CALL,
    Form.TAIL_JMP: _Family.JUMP,
    Form.RET: _Family.JUMP,
    Form.SHORT_JMP: _Family.SHORT_JUMP,
    Form.JCC: _Family.CONDITIONAL,
}


class Call(NamedTuple):
    """One static call as the patched file has it.

    `address` is the key's, `func` its value there: 0 for NULL, None where only run time knows it.
    `trampoline` is None where the image does not tell which one is the key's. A `live` one has the trampoline of a
    user program, which goes on following its key at run time.
    """

    name: str
    address: int
    func: int | None
    trampoline: int | None
    live: bool = False

    @property
    def target(self) -> str:
        """The target in words."""
        if self.func is None:
            return "what run time finds"
        return f"{self.func:#x}" if self.func else "NULL"


class Place(NamedTuple):
    """A site or trampoline in messages: where it is linked and where in the file it stands."""

    what: str
    address: int
    offset: int

    def refuse(self, reason: str) -> NoReturn:
        """Raise `VerificationError` about this place."""
        raise VerificationError(f"{self.what} at {self.address:#x} {reason}", offset=self.offset)


def check_target(place: Place, call: Call, layout: Layout, *, was: int, fixed: bool, moves: bool) -> None:
    """Accept a changed slot that leads to code; a `fixed` one should be relocated and has no relocation.

    Where a loader `moves` the image, NULL has no relocation and a function has one, so neither may become the
    other.
    """
    func = call.func
    if func is None:
        place.refuse("has changed, though only run time knows its value")
    if fixed or (moves and not (was and func)):
        place.refuse(f"went from {was:#x} to {func:#x} in an image whose relocations did not follow")
    if call.live and not func:
        place.refuse("became NULL, which its trampoline would jump to")
    if func and func == call.trampoline:
        place.refuse("leads to the static call's own trampoline, so to itself")
    if func and not layout.is_code(func):
        place.refuse(f"leads to {func:#x}, where there is no code")


def check_change(place: Place, before: Decoded, after: Decoded) -> None:
    """Accept an instruction that was replaced by one of the same length, prefix, kind and condition."""
    family = _FAMILIES.get(before.form)
    if family is None:
        place.refuse(f"has changed, though {before.form} is no form that may be rewritten")
    if after.form not in _FAMILIES:
        place.refuse(f"became {after.mnemonic or 'no instruction'}, which no static call is made of")
    if _FAMILIES[after.form] is not family:
        place.refuse(f"was {family.value} and became {_FAMILIES[after.form].value}")
    if after.prefix != before.prefix:
        place.refuse(f"had the prefix {before.prefix.hex() or 'none'}, now {after.prefix.hex() or 'none'}")
    if after.length != before.length:
        place.refuse(f"was {before.length} bytes long, now {after.length}")
    if family is _Family.CONDITIONAL and after.mnemonic != before.mnemonic:
        place.refuse(f"was {before.mnemonic} and became {after.mnemonic}")


def check_site(place: Place, call: Call, names: Names, *, tail: bool, now: Decoded) -> None:
    """Accept a site that does what its static call wants; an indirect one has a check of its own."""
    form = now.form
    if call.live and form not in CALLS and form not in JUMPS:
        place.refuse(f"is {now.mnemonic or 'no instruction'}, while {call.name} may be led elsewhere at run time")
    if form in CALLS or form in JUMPS:
        if tail is not (form in JUMPS):
            place.refuse(f"is a {now.mnemonic}, which contradicts its record's TAIL flag")
        if now.destination != call.trampoline and not _leads_on(call, names, now):
            place.refuse(
                f"leads to {now.destination:#x}, neither the trampoline nor the target of {call.name}, {call.target}"
            )
    elif form is Form.NOP:
        if tail or call.func != 0:
            place.refuse(f"is a nop, while {call.name} leads to {call.target}")
    elif form is Form.RET0:
        if tail or call.func not in names.return0:
            place.refuse(f"clears eax, while {call.name} leads to {call.target}")
    elif form is Form.RET:
        if not tail or call.func != 0:
            place.refuse(f"returns, while {call.name} leads to {call.target}")
    else:
        place.refuse(f"is {now.mnemonic or 'no instruction'}, which no site of {call.name} can be")


def _leads_on(call: Call, names: Names, now: Decoded) -> bool:
    """Whether a direct branch past the trampoline goes where the static call leads."""
    if call.func is None:
        return False
    if call.func:
        return now.destination == call.func
    if now.form is Form.JCC:
        return now.destination in names.thunks or now.destination in names.returns
    return now.form in JUMPS and now.destination in names.thunks


def check_indirect_site(place: Place, call: Call, pointer: int | None, destination: int | None) -> None:
    """Accept a site that calls through memory if it reads the key itself, or a pointer to the trampoline."""
    if pointer != call.address and (destination is None or destination not in (call.trampoline, call.func)):
        place.refuse(f"calls through {pointer or 0:#x}, which is not known to lead where {call.name} does")


def check_trampoline_change(place: Place, before: bytes, after: bytes) -> None:
    """Accept a change of the five bytes of code alone, from one permanent form to another."""
    if after[5:] != before[5:]:
        place.refuse("changed behind its first five bytes, where its signature stands")
    was, now = _trampoline_form(before), _trampoline_form(after)
    if was is None or was is Form.INDIRECT_JMP:
        place.refuse(f"has changed, though its bytes {before.hex()} are no form that may be rewritten")
    if now is None or (was is Form.CALL) is not (now is Form.CALL):
        place.refuse(f"became {after.hex()}, which is no form of a trampoline that was {before.hex()}")


def check_trampoline(place: Place, call: Call, names: Names, code: bytes, now: Decoded) -> None:
    """Accept a trampoline that leads where its static call does."""
    form = _trampoline_form(code)
    if form is Form.INDIRECT_JMP:
        good = now.form is Form.INDIRECT_JMP and now.pointer == call.address
    elif form is Form.RET:
        good = now.form is Form.RET and call.func == 0
    elif form is Form.CALL:
        good = now.form is Form.CALL and bool(call.func) and now.destination == call.func
    elif form is Form.TAIL_JMP and now.form is Form.TAIL_JMP:
        good = now.destination in (names.thunks if call.func == 0 else {call.func})
    else:
        good = False
    if not good:
        place.refuse(f"({code.hex()}) does not lead to the target of {call.name}, {call.target}")


def _trampoline_form(code: bytes) -> Form | None:
    """Which of the known forms a trampoline's eight bytes have, by their first ones."""
    if code[:5] in (RET_TRAMPOLINE, RET_TRAMPOLINE_NOPS, RET_SITE):
        return Form.RET
    if code[:1] == b"\xe9":
        return Form.TAIL_JMP
    if code[:1] == b"\xe8" and code[5:6] == b"\xc3":
        return Form.CALL
    if code[:2] == b"\xff\x25":
        return Form.INDIRECT_JMP
    return None
