"""Sites found in the code itself: every near or short call, jmp and jcc that leads to a trampoline.

Two steps. First, for every byte of code, numpy takes the displacement that would start there; only where it
leads into the range of the trampolines is the opcode in front looked at. A few thousand places of millions
are left, and a record vouches for nearly all. Second, each of the others counts only if it is an
instruction: capstone decodes up to it from the start of its function, and data among the code is left out
where a symbol says so.
"""

from collections.abc import Iterable, Iterator

import capstone
import numpy as np

from staticcall.abi import elf64, x86
from staticcall.locate.code import Code, code_runs
from staticcall.model.form import Form, Instruction
from staticcall.model.image import Image
from staticcall.model.sites import Site, Source, Trampoline

# Without a function's symbol, decoding starts this many bytes early: x86 code falls into step long before.
_RUN_UP = 4096
_SHORT_OPCODES = frozenset({x86.JMP_REL8, *x86.JCC_REL8})
_SHORT_REACH = 128
_LONG_REACH = 1 << 31
# A damaged symbol can make a function of all the code; the run-up finds the instructions there as well.
_LONGEST_FUNCTION = 1 << 20


def scan_code(image: Image, trampolines: dict[int, Trampoline], known: Iterable[Site]) -> tuple[Site, ...]:
    """Every site in the image's code, in address order, each with `Source.SCAN` and no record.

    `known` are the sites that the table vouches for; only the others have to be proved to be instructions.
    """
    if not trampolines:
        return ()
    vouched = {site.address + site.instruction.opcode: site.address for site in known}
    found: list[Site] = []
    for code in code_runs(image):
        starts = _InstructionStarts(image, code)
        for position in _opcodes(code, trampolines):
            start = vouched.get(code.address + position) or starts.of(position)
            if start is None:
                continue
            begin = start - code.address
            data = code.data[begin : begin + x86.MAX_INSTRUCTION]
            instruction = x86.decode(data, start)
            if instruction.destination in trampolines:
                found.append(_site(code, start, data, instruction))
    return tuple(found)


def _site(code: Code, start: int, data: bytes, instruction: Instruction) -> Site:
    return Site(
        record=None,
        address=start,
        file_offset=code.offset + start - code.address,
        section=code.section,
        offset=start - code.address if code.section else start,
        alignment=code.alignment,
        key=None,
        flags=int(instruction.form not in (Form.CALL, Form.PREFIXED_CALL)),
        instruction=instruction,
        code=data[: instruction.length],
        sources=(Source.SCAN,),
    )


def _opcodes(code: Code, trampolines: dict[int, Trampoline]) -> list[int]:
    """Positions in `code` of the opcode bytes whose displacement leads exactly to a trampoline."""
    return sorted([*_long_opcodes(code, trampolines), *_short_opcodes(code, trampolines)])


def _long_opcodes(code: Code, trampolines: dict[int, Trampoline]) -> Iterator[int]:
    """The opcodes with rel32: e8, e9, 0f 80..8f (the 0f is the opcode's position)."""
    data = code.data
    reach = range(code.address - _LONG_REACH, code.address + len(data) + _LONG_REACH)
    near = [address for address in trampolines if address in reach]
    if not near:
        return
    low, high = min(near), max(near)
    if high - low >= 1 << 32:
        # Farther apart than a displacement reaches: every place has to be looked at.
        low, high = 0, (1 << 32) - 1
    # field + 4 + displacement is the destination, all modulo 2**32; exactness is checked for what is left.
    shift = (code.address + x86.REL32_SIZE - low) % (1 << 32)
    for phase in range(x86.REL32_SIZE):
        count = (len(data) - phase) // x86.REL32_SIZE
        if count <= 0:
            continue
        displacements = np.frombuffer(data, dtype="<u4", count=count, offset=phase)
        places = np.arange(phase, phase + count * 4, 4, dtype=np.uint32)
        places += np.uint32(shift)
        places += displacements
        for index in np.flatnonzero(places <= np.uint32(high - low)).tolist():
            field = phase + 4 * index
            displacement = int.from_bytes(data[field : field + 4], "little", signed=True)
            if code.address + field + 4 + displacement in trampolines:
                if field >= 1 and data[field - 1] in (x86.CALL_REL32, x86.JMP_REL32):
                    yield field - 1
                elif field >= 2 and data[field - 2] == x86.TWO_BYTE and data[field - 1] in x86.JCC_REL32:
                    yield field - 2


def _short_opcodes(code: Code, trampolines: dict[int, Trampoline]) -> Iterator[int]:
    """The opcodes with rel8: eb, 70..7f. Only code beside a trampoline can reach it."""
    data = code.data
    done = 0
    for target in sorted(trampolines):
        place = target - code.address
        for position in range(max(place - _SHORT_REACH - 1, done), min(place + _SHORT_REACH, len(data) - 1)):
            done = position + 1
            if data[position] in _SHORT_OPCODES:
                displacement = int.from_bytes(data[position + 1 : position + 2], "little", signed=True)
                if code.address + position + 2 + displacement in trampolines:
                    yield position


class _InstructionStarts:
    """The first bytes of the instructions around a position, decoded once per function."""

    def __init__(self, image: Image, code: Code) -> None:
        self._image = image
        self._code = code
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        # Data between functions is no reason to stop.
        self._decoder.skipdata = True
        self._decoded: dict[tuple[int, int], dict[int, int]] = {}

    def of(self, position: int) -> int | None:
        """The address of the instruction whose opcode stands at `position`, or None where none does."""
        address = self._code.address + position
        function = self._image.symbols.containing(address)
        if function and function.address >= self._code.address and function.size <= _LONGEST_FUNCTION:
            begin, end = function.address, function.address + function.size
        elif self._image.symbols.containing(address, elf64.STT_OBJECT) is not None:
            return None
        else:
            begin, end = max(self._code.address, address - _RUN_UP), address + x86.MAX_INSTRUCTION
        if (begin, end) not in self._decoded:
            self._decoded[begin, end] = dict(self._opcodes_in(begin, end))
        return self._decoded[begin, end].get(address)

    def _opcodes_in(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Pairs of an opcode's address and its instruction's, for every instruction in a range."""
        base = self._code.address
        code = self._code.data[begin - base : end - base]
        for start, size, mnemonic, _ in self._decoder.disasm_lite(code, begin):
            if mnemonic == ".byte":
                continue
            opcode = start
            while opcode < start + size and code[opcode - begin] in x86.NO_EFFECT_PREFIXES:
                opcode += 1
            yield opcode, start
