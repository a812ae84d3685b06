"""Instructions of static calls in words, as `objdump -d` has them."""

from __future__ import annotations

from typing import Final

from staticcall.abi import x86
from staticcall.abi.static_call import NOP5, WARN_TRAP
from staticcall.model.form import Form, Instruction

_CONDITIONS: Final = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
_SEGMENTS: Final = {0x26 + 8 * number: name for number, name in enumerate(("es", "cs", "ss", "ds"))}
_PREFIXES: Final = {**_SEGMENTS, 0x64: "fs", 0x65: "gs", 0x66: "data16", 0x67: "addr32"}
_REX: Final = range(0x40, 0x50)
_REX_BITS: Final = ((8, "W"), (4, "R"), (2, "X"), (1, "B"))
_XOR_SIZE: Final = 2
_WHOLE: Final = {NOP5: "nopl 0x0(%rax,%rax,1)", WARN_TRAP: "ud1 (%edx),%rdi"}
_BRANCHES: Final = {
    Form.CALL: "call",
    Form.PREFIXED_CALL: "call",
    Form.INDIRECT_CALL: "call",
    Form.TAIL_JMP: "jmp",
    Form.INDIRECT_JMP: "jmp",
    Form.SHORT_JMP: "jmp",
}


def instruction_text(instruction: Instruction, code: bytes, destination: str | None) -> str:
    """One instruction in AT&T syntax; `code` holds its bytes, `destination` is where it leads, by name or address.

    The destination of an indirect branch is the symbol that its slot is for, or the slot itself behind a `*`.
    """
    form, start = instruction.form, instruction.opcode
    if form in _BRANCHES:
        text = f"{_BRANCHES[form]} {destination}"
        if instruction.slot is not None:
            plain = destination is None or not destination.startswith("*")
            text = f"{_BRANCHES[form]} *{destination}@GOTPCREL(%rip)" if plain else f"{text}(%rip)"
    elif form is Form.JCC:
        condition = code[start + 1] if code[start] == x86.TWO_BYTE else code[start]
        text = f"j{_CONDITIONS[condition & 15]} {destination}"
    elif form is Form.RET:
        text = "ret"
    elif form is Form.RET0:
        return _clearing(code[start:])
    else:
        text = _WHOLE.get(code[start : start + x86.CALL_SIZE], "(no instruction of a static call)")
    prefixes = "".join(f"{_prefix(byte)} " for byte in code[:start])
    return prefixes + text if prefixes else text


def _clearing(code: bytes) -> str:
    """The xor that gives 0, with the prefixes that fill it up to five bytes."""
    wide = code[-_XOR_SIZE - 1] in _REX
    prefixes = code[: -_XOR_SIZE - wide]
    return " ".join([*map(_prefix, prefixes), "xor %rax,%rax" if wide else "xor %eax,%eax"])


def _prefix(byte: int) -> str:
    if byte in _REX:
        bits = "".join(name for bit, name in _REX_BITS if byte & bit)
        return f"rex.{bits}" if bits else "rex"
    return _PREFIXES.get(byte, f"{byte:#x}")
