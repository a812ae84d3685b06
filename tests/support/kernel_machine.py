"""A kernel's own static-call code, run from its file in an emulator: the oracle for what it accepts and writes.

    machine = KernelMachine(vmlinux.read(path))
    machine.patch_site(bytes.fromhex("e800000000"), func=machine.kernel.address("__static_call_return0"), tail=False)

`arch_static_call_transform()` runs as it would at boot, down to its BUG() or to what it wants text_poke_early() to
write. Nothing of staticcall's is asked.
"""

from __future__ import annotations

import struct
from importlib import import_module
from typing import Any, Final, NamedTuple

from unicorn import x86_const as registers

from tests.support.vmlinux import Vmlinux

unicorn: Any = import_module("unicorn")  # it says that it is typed, and half of it is not

_PAGE: Final = 1 << 12
_MASK: Final = (1 << 64) - 1
_LOW: Final = (
    1 << 22
)  # what the code finds through gs, whose base is 0: the stack protector's word, and per-CPU counters
_STACK: Final = 0x7000_0000_0000
_STACK_SIZE: Final = 1 << 16
_SITE_SIZE: Final = 16
_MOST_INSTRUCTIONS: Final = 100_000

_ENTRY: Final = "arch_static_call_transform"
# What is of no interest here and would need a running kernel.
_SKIPPED: Final = ("mutex_lock", "mutex_unlock")
_PRINTK: Final = ("_printk", "printk", "__warn_printk")
_POKE: Final = "text_poke_early"
_BUG: Final = bytes.fromhex("0f0b")  # ud2, for BUG() and WARN()


class Outcome(NamedTuple):
    """What the kernel did with the bytes at a place.

    `said` is what it printed, by its format; `stopped` whether it came to a BUG(); `written` what it would have
    written over them, empty where they are what it wants already.
    """

    said: str
    stopped: bool
    written: bytes


class KernelMachine:
    """The memory of a kernel as its file has it, and a processor that runs one function of it."""

    def __init__(self, kernel: Vmlinux) -> None:
        self.kernel = kernel
        self._machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        # Linked addresses are the addresses: no page tables, and all 64 bits count.
        self._machine.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        self._end = self._load() + _PAGE
        # The place that is patched stands in pages of its own, near enough for every displacement.
        self.place = self._end + _PAGE
        self._machine.mem_map(self._end, 3 * _PAGE)
        self._machine.mem_map(0, _LOW)
        self._machine.mem_map(_STACK, _STACK_SIZE)
        self._said = ""
        self._written = b""
        for name in (*_SKIPPED, *_PRINTK, _POKE):
            for address in kernel.symbols.get(name, ()):
                self._machine.hook_add(unicorn.UC_HOOK_CODE, self._called, name, address, address)

    def _load(self) -> int:
        """Map everything that the file has, and give the end."""
        sections = [section for section in self.kernel.sections if section.address >> 63]
        start = min(section.address for section in sections) & -_PAGE
        # What is zero at first follows what is in the file.
        end = (max(section.address + section.size for section in sections) + (32 << 20)) & -_PAGE
        self._machine.mem_map(start, end - start)
        with self.kernel.path.open("rb") as file:
            for section in sections:
                file.seek(section.offset)
                self._machine.mem_write(section.address, file.read(section.size))
        return end

    def patch_site(self, code: bytes, *, func: int, tail: bool) -> Outcome:
        """Have a site with these bytes patched to lead to `func`."""
        return self._run(code, site=self.place, trampoline=0, func=func, tail=tail)

    def patch_trampoline(self, code: bytes, *, func: int) -> Outcome:
        """Have a trampoline with these bytes patched to lead to `func`."""
        return self._run(code, site=0, trampoline=self.place, func=func, tail=False)

    def _run(self, code: bytes, *, site: int, trampoline: int, func: int, tail: bool) -> Outcome:
        machine = self._machine
        self._said, self._written = "", b""
        machine.mem_write(self.place, code.ljust(_SITE_SIZE, b"\xcc"))
        stack = _STACK + _STACK_SIZE // 2
        machine.mem_write(stack, struct.pack("<Q", self._end))
        arguments = {"RDI": site, "RSI": trampoline, "RDX": func, "RCX": int(tail), "RSP": stack}
        for name, value in arguments.items():
            machine.reg_write(getattr(registers, f"UC_X86_REG_{name}"), value)
        (entry,) = self.kernel.symbols[_ENTRY]
        stopped = False
        try:
            machine.emu_start(entry, self._end, count=_MOST_INSTRUCTIONS)
        except unicorn.UcError:
            stopped = bytes(machine.mem_read(self._rip(), 2)) == _BUG
            if not stopped:
                raise
        assert stopped or self._rip() == self._end, "it did not come to an end"
        return Outcome(self._said, stopped, self._written)

    def _rip(self) -> int:
        return int(self._machine.reg_read(registers.UC_X86_REG_RIP)) & _MASK

    def _called(self, machine: Any, address: int, size: int, name: str) -> None:
        """Do what one of the functions that are not run has to do here, and return from it."""
        del address, size
        first, second, third = (
            int(machine.reg_read(register)) & _MASK
            for register in (registers.UC_X86_REG_RDI, registers.UC_X86_REG_RSI, registers.UC_X86_REG_RDX)
        )
        if name in _PRINTK:
            self._said = (
                bytes(machine.mem_read(first, 100)).partition(b"\0")[0].decode(errors="replace").strip("\x013\n")
            )
        elif name == _POKE:
            assert first == self.place
            self._written = bytes(machine.mem_read(second, third))
        stack = int(machine.reg_read(registers.UC_X86_REG_RSP)) & _MASK
        (back,) = struct.unpack("<Q", machine.mem_read(stack, 8))
        machine.reg_write(registers.UC_X86_REG_RSP, stack + 8)
        machine.reg_write(registers.UC_X86_REG_RIP, back)
