"""What stands at the sites and trampolines of the fixtures in `fixtures/user`, as their sources want it."""

from __future__ import annotations

import re
from typing import NamedTuple

from staticcall.model.form import Form


class Shape(NamedTuple):
    """An instruction: its form, its bytes in hex, and how objdump puts it (`{}` is where it leads)."""

    form: Form
    code: str
    text: str


CALL = Shape(Form.CALL, "e8 ........", "call ADDRESS <{}>")
PREFIXED = Shape(Form.PREFIXED_CALL, "2e e8 ........", "cs call ADDRESS <{}>")
PREFIXED_67 = Shape(Form.PREFIXED_CALL, "67 e8 ........", "addr32 call ADDRESS <{}>")
INDIRECT_CALL = Shape(Form.INDIRECT_CALL, "ff 15 ........", r"call \*SLOT <{}>")
JMP = Shape(Form.TAIL_JMP, "e9 ........", "jmp ADDRESS <{}>")
INDIRECT_JMP = Shape(Form.INDIRECT_JMP, "ff 25 ........", r"jmp \*SLOT <{}>")
JS = Shape(Form.JCC, "0f 88 ........", "js ADDRESS <{}>")
JS_SHORT = Shape(Form.JCC, "78 ..", "js ADDRESS <{}>")
SHORT_JMP = Shape(Form.SHORT_JMP, "eb ..", "jmp ADDRESS <{}>")
NOP = Shape(Form.NOP, "0f 1f 44 00 00", r"nopl 0x0\(%rax,%rax,1\)")
RET = Shape(Form.RET, "c3 cc cc cc cc", "ret")
RET0_CS = Shape(Form.RET0, "2e 2e 2e 31 c0", "cs cs cs xor %eax,%eax")
RET0_DATA16 = Shape(Form.RET0, "66 66 48 31 c0", "data16 data16 xor %rax,%rax")
WARN_TRAP = Shape(Form.WARN_TRAP, "67 48 0f b9 3a", r"ud1 \(%edx\),%rdi")
MOV = Shape(Form.UNKNOWN, "b8 39 30 00 00", r"mov \$0x3039,%eax")
BND_CALL = Shape(Form.UNKNOWN, "f2 e8 ........", "bnd call ADDRESS <{}>")


class Placed(NamedTuple):
    """A site: its function and offset there, key and shape, and the offset in a line where that is fixed."""

    function: str
    lead: int
    key: str
    shape: Shape
    offset: int | None = None
    destination: str = ""

    @property
    def tail(self) -> bool:
        return self.shape.form in (Form.TAIL_JMP, Form.INDIRECT_JMP, Form.JCC, Form.SHORT_JMP, Form.RET)


def _call(name: str, key: str, offset: int, shape: Shape = CALL, destination: str = "") -> Placed:
    return Placed(name, 4, key, shape, offset, destination)


def _void(name: str, key: str, offset: int, shape: Shape = CALL) -> Placed:
    return Placed(name, 1, key, shape, offset)


def _tail(name: str, key: str, offset: int, shape: Shape = JMP, destination: str = "") -> Placed:
    return Placed(name, 0, key, shape, offset, destination)


def _jcc(name: str, key: str, offset: int) -> Placed:
    return Placed(name, 2, key, JS, offset)


def _posted(name: str, prefix: str, lead: int = 4) -> Placed:
    return Placed(f"call_{name}", lead, name, CALL, 8, f"{prefix}static_call_tramp_{name}")


SITES = {
    "calls": (
        _call("alpha_inside", "alpha", 8),
        _call("alpha_block_edge", "alpha", 15),
        _call("alpha_block", "alpha", 20),
        _call("alpha_line_end", "alpha", 59),
        _call("alpha_last_byte", "alpha", 60),
        _call("alpha_split", "alpha", 61),
        _call("alpha_opcode", "alpha", 63),
        _call("alpha_indirect", "alpha", 8, INDIRECT_CALL, "__SCK__alpha"),
        _tail("beta_tail", "beta", 16),
        _tail("beta_tail_split", "beta", 61),
        _tail("beta_tail_opcode", "beta", 63),
        _jcc("beta_jcc", "beta", 24),
        _jcc("beta_jcc_split", "beta", 60),
        _jcc("beta_jcc_opcode", "beta", 62),
        _call("beta_prefixed", "beta", 32, PREFIXED),
        _call("beta_prefixed_split", "beta", 60, PREFIXED),
        _call("beta_prefixed_opcode", "beta", 62, PREFIXED),
        _call("beta_prefixed_alone", "beta", 63, PREFIXED),
        _void("hook_inside", "hook", 8),
        _void("hook_split", "hook", 61),
        _tail("hook_tail", "hook", 16),
        _tail("hook_tail_split", "hook", 61),
        _call("zero_inside", "zero", 8),
        _call("zero_split", "zero", 61),
        _tail("zero_tail", "zero", 16),
    ),
    "forms": (
        _call("form_call", "plain", 8),
        _call("form_call_bound", "plain", 8, CALL, "plain_add"),
        _call("form_prefixed_call", "plain", 8, PREFIXED),
        _call("form_prefixed_call_67", "plain", 8, PREFIXED_67),
        _call("form_indirect_call", "plain", 8, INDIRECT_CALL, "__SCK__plain"),
        _tail("form_tail_jmp", "plain", 8),
        _tail("form_indirect_jmp", "plain", 8, INDIRECT_JMP, "__SCK__plain"),
        _jcc("form_jcc", "plain", 8),
        Placed("form_jcc_short", 2, "near", JS_SHORT),
        Placed("form_short_jmp", 0, "near", SHORT_JMP),
        _void("form_nop", "hook", 8, NOP),
        _tail("form_ret", "hook", 8, RET),
        _call("form_ret0_cs", "zero", 8, RET0_CS),
        _call("form_ret0_data16", "zero", 8, RET0_DATA16),
        _call("form_warn_trap", "warn", 8, WARN_TRAP),
        _call("form_unknown", "plain", 8, MOV),
        _call("form_unknown_bnd", "plain", 8, BND_CALL),
    ),
    "generations": (
        *(_call(f"call_{name}", name, 8) for name in ("ud1_jmp", "sct_jmp", "return0")),
        *(_void(f"call_{name}", name, 8) for name in ("ud1_ret", "sct_ret", "sct_ret_nops", "thunk")),
        _posted("posted_temporary", "____"),
        _posted("posted_indirect", "__"),
        _posted("posted_permanent", "____"),
        _posted("posted_jmp", "__"),
        _posted("posted_vacant", "__", lead=1),
    ),
    "library": (
        _call("scale_inside", "scale", 8),
        _call("scale_split", "scale", 61),
        _call("scale_opcode", "scale", 63),
        _tail("scale_tail", "scale", 16),
        _void("hook_inside", "hook", 8),
    ),
}
# Sites in inline assembly lie wherever the compiler puts them: counted, all calls, no more.
COMPILED_SITES = {"calls": 2, "library": 1}

# The names of the sites say what touches two lines: everything, or all but the displacement. One displacement
# touches two blocks of 8 bytes and only one line.
ALL_SPLIT = ("_split", "_last_byte")
OPCODE_SPLIT = ("_opcode", "_alone")
BLOCK_SPLIT = ("alpha_block",)

TRAMPOLINES = {
    "__SCT__ud1_jmp": "e9 ........ 0f b9 cc",
    "__SCT__ud1_ret": "c3 cc 90 90 90 0f b9 cc",
    "__SCT__sct_jmp": "e9 ........ 53 43 54",
    "__SCT__sct_ret": "c3 cc 90 90 90 53 43 54",
    "__SCT__sct_ret_nops": "c3 90 90 90 90 53 43 54",
    "__SCT__thunk": "e9 ........ 0f b9 cc",
    "__SCT__return0": "e9 ........ 0f b9 cc",
    "____static_call_tramp_posted_temporary": "ff 25 ........",
    "__static_call_tramp_posted_indirect": "ff 25 ........",
    "____static_call_tramp_posted_permanent": "e8 ........ c3",
    "__static_call_tramp_posted_jmp": "e9 ........",
    "__static_call_tramp_posted_vacant": "c3 cc 90 90 90",
}


def matches(code: bytes, pattern: str) -> bool:
    """Whether bytes are what a pattern wants: hex digits, a dot for any, blanks for the eye."""
    return re.fullmatch(pattern.replace(" ", ""), code.hex()) is not None


def size_of(pattern: str) -> int:
    """How many bytes a pattern stands for."""
    return len(pattern.replace(" ", "")) // 2
