"""A processor that runs one instruction: unicorn, with capstone and a few lines as the second opinion.

    machine = Machine()
    landing = machine.run(0x401234, bytes.fromhex("e800000000"), flags=0x202)

What the instruction leads to need not be there: the thread is looked at before it goes on.
"""

import struct
from importlib import import_module
from typing import Any, Final, Literal, NamedTuple

import capstone
from capstone import x86_const as operands
from unicorn import x86_const as registers

from tests.support.protocol_recording import BLANK_STACK, STACK_POINTER, Landing

unicorn: Any = import_module("unicorn")  # it says that it is typed, and half of it is not

CARRY, PARITY, ZERO, SIGN, OVERFLOW = 0x001, 0x004, 0x040, 0x080, 0x800

_PAGE: Final = 4096
_STACK: Final = 0x7FFF_0000_0000
_RSP: Final = _STACK + _PAGE // 2
_INT3: Final = 3


class Ran(NamedTuple):
    """What became of one instruction."""

    end: Literal["lands", "traps", "faults"]
    landing: Landing


class DisagreementError(Exception):
    """The two decoders do not lead to the same place, so that neither is to be believed."""


class Machine:
    """Memory with bytes at an address, a stack, and one instruction at a time. What was run is remembered."""

    def __init__(self) -> None:
        self._machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._machine.hook_add(unicorn.UC_HOOK_INTR, self._interrupted)
        self._machine.mem_map(_STACK, _PAGE)
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._decoder.detail = True
        self._mapped: set[int] = set()
        self._interrupts: list[int] = []
        self._known: dict[tuple[int, bytes, int], Ran] = {}
        self.runs = 0

    def run(self, address: int, code: bytes, flags: int) -> Ran:
        """Run the first instruction of `code` at `address` with the given rflags."""
        key = (address, code, flags)
        if (known := self._known.get(key)) is None:
            known = self._known[key] = self._run(address, code, flags)
            if (opinion := self._opinion(address, code, flags)) not in (None, known):
                raise DisagreementError(f"{code.hex(' ')} at {address:#x}: {known}, {opinion}")
        return known

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into memory, and forget what was run with the old ones."""
        self._known.clear()
        self._put(address, data)

    def _put(self, address: int, data: bytes) -> None:
        for page in range(address // _PAGE, (address + len(data) - 1) // _PAGE + 1):
            if page not in self._mapped:
                self._machine.mem_map(page * _PAGE, _PAGE)
                self._mapped.add(page)
        self._machine.mem_write(address, data)
        self._machine.ctl_remove_cache(address, address + len(data))

    def _run(self, address: int, code: bytes, flags: int) -> Ran:
        machine = self._machine
        self.runs += 1
        self._put(address, code)
        machine.mem_write(_RSP - STACK_POINTER, BLANK_STACK)
        machine.reg_write(registers.UC_X86_REG_RSP, _RSP)
        machine.reg_write(registers.UC_X86_REG_EFLAGS, flags)
        self._interrupts.clear()
        fault = None
        try:
            machine.emu_start(address, 0, count=1)
        except unicorn.UcError as error:
            fault = error.errno
        stack = bytes(machine.mem_read(_RSP - STACK_POINTER, len(BLANK_STACK)))
        at = machine.reg_read(registers.UC_X86_REG_RIP)
        landing = Landing(at, machine.reg_read(registers.UC_X86_REG_RSP) - _RSP, stack)
        # Where nothing is mapped at the target, the branch itself was still executed.
        if fault is not None and (fault != unicorn.UC_ERR_FETCH_UNMAPPED or at == address):
            return Ran("faults", landing)
        if not self._interrupts:
            return Ran("lands", landing)
        return Ran("traps" if self._interrupts == [_INT3] else "faults", landing)

    def _interrupted(self, machine: Any, number: int, _data: object) -> None:
        self._interrupts.append(number)
        machine.emu_stop()

    def _opinion(self, address: int, code: bytes, flags: int) -> Ran | None:
        """The same by capstone, for the instructions that sites are made of; None for others."""
        instruction = next(self._decoder.disasm(code, address, 1), None)
        if instruction is None:
            return None
        after = address + instruction.size
        name = instruction.mnemonic
        if name == "int3":
            return Ran("traps", Landing(after))
        if name not in ("call", "jmp") and name not in JUMPS:
            return None
        (target,) = instruction.operands
        if target.type != operands.X86_OP_IMM:
            return None
        to = target.imm & (1 << 64) - 1
        if name == "call":
            stack = BLANK_STACK[: STACK_POINTER - 8] + struct.pack("<Q", after) + BLANK_STACK[STACK_POINTER:]
            return Ran("lands", Landing(to, -8, stack))
        return Ran("lands", Landing(to if name == "jmp" or holds(name, flags) else after))


def _less(flags: int) -> bool:
    return bool(flags & SIGN) != bool(flags & OVERFLOW)


JUMPS: Final = ("jo", "jb", "je", "jbe", "js", "jp", "jl", "jle", "jno", "jae", "jne", "ja", "jns", "jnp", "jge", "jg")


def holds(jump: str, flags: int) -> bool:
    """Whether a conditional jump is taken: Intel SDM volume 2, Jcc."""
    which = JUMPS.index(jump)
    conditions = (
        flags & OVERFLOW,
        flags & CARRY,
        flags & ZERO,
        flags & (CARRY | ZERO),
        flags & SIGN,
        flags & PARITY,
        _less(flags),
        flags & ZERO or _less(flags),
    )
    return bool(conditions[which % 8]) != (which >= 8)
