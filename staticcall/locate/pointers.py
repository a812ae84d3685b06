"""Who calls whom, and which pointers an image's data holds: bulk searches, each one pass over all bytes."""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from staticcall.abi import elf64, x86
from staticcall.errors import MalformedError
from staticcall.locate.code import Code, code_runs
from staticcall.model.image import Image

# movq $imm32, disp32(%rip)
_STORE = re.compile(rb"\x48\xc7\x05(?s:........)")
_STORE_SIZE = 11
_LOW = (1 << 32) - 1
# Ones for the opcodes of call and jmp, zeros for all other bytes.
_BRANCHES = bytes(byte in (x86.CALL_REL32, x86.JMP_REL32) for byte in range(256))
# The largest sections of a kernel that hold no pointers.
_NO_POINTERS = (".BTF", ".orc_unwind", ".orc_unwind_ip")


def branches_to(image: Image, targets: Collection[int]) -> list[tuple[int, int]]:
    """Every place that looks like a call or jmp with rel32 to one of a few targets: (address, target)."""
    found: list[tuple[int, int]] = []
    for run in code_runs(image):
        count = len(run.data) - x86.JMP_SIZE + 1
        if count <= 0:
            continue
        places = np.flatnonzero(np.frombuffer(run.data.translate(_BRANCHES), dtype=bool, count=count))
        displacements: npt.NDArray[np.uint32] = np.ndarray(count, "<u4", run.data, offset=1, strides=(1,))
        ends = displacements[places] + (places + x86.JMP_SIZE).astype(np.uint32)
        for target in targets:
            there = places[ends == np.uint32(target - run.address & _LOW)]
            found += ((run.address + place, target) for place in there.tolist())
    return sorted(found)


def references_to(image: Image, targets: Collection[int]) -> list[int]:
    """Every place of a displacement, or of an immediate value, that may lead to one of a few addresses."""
    found = {run.address + field for run, field, _ in _displacements(image, targets)}
    for target in () if image.position_independent else targets:
        value = (target & _LOW).to_bytes(x86.REL32_SIZE, "little")
        for run in code_runs(image):
            found.update(run.address + match.start() for match in re.finditer(re.escape(value), run.data))
    return sorted(found)


def _displacements(image: Image, targets: Collection[int]) -> Iterator[tuple[Code, int, int]]:
    """Where four bytes, counted from behind them, lead to a target: run of code, offset in it, target."""
    for run in code_runs(image):
        data = run.data
        for phase in range(x86.REL32_SIZE):
            count = (len(data) - phase) // x86.REL32_SIZE
            if count <= 0:
                continue
            places = np.arange(phase, phase + count * 4, 4, dtype=np.uint32)
            places += np.frombuffer(data, dtype="<u4", count=count, offset=phase)
            for target in targets:
                wanted = np.uint32(target - run.address - x86.REL32_SIZE & _LOW)
                for index in np.flatnonzero(places == wanted).tolist():
                    yield run, phase + x86.REL32_SIZE * index, target


def stores(image: Image, is_function: Callable[[int], bool]) -> Mapping[int, frozenset[int]]:
    """Which functions the code stores, as immediate values, in which variables: by the variable's address."""
    found: dict[int, set[int]] = defaultdict(set)
    for run in code_runs(image):
        for match in _STORE.finditer(run.data):
            fields = run.data[match.start() + 3 : match.end()]
            value = int.from_bytes(fields[4:], "little", signed=True) & x86.ADDRESS_MASK
            if is_function(value):
                end = run.address + match.start() + _STORE_SIZE
                found[end + int.from_bytes(fields[:4], "little", signed=True) & x86.ADDRESS_MASK].add(value)
    return {slot: frozenset(values) for slot, values in found.items()}


class Pointers:
    """The pointers in an image's data: 8-byte words at aligned addresses, or what relocations will put there."""

    def __init__(self, image: Image) -> None:
        self._relocated = {
            slot: relocation.addend & x86.ADDRESS_MASK if relocation.type == elf64.R_X86_64_RELATIVE else 0
            for slot, relocation in image.relocations.items()
            if relocation.file_offset is not None
        }
        self._image = image
        self._runs: list[_Run] = []
        room = image.source.size
        for section in image.sections:
            data = section.flags & elf64.SHF_ALLOC and section.type == elf64.SHT_PROGBITS and not section.executable
            if data and section.name not in _NO_POINTERS:
                room -= section.size
                if room < 0:
                    raise MalformedError("sections overlap", advice="the section headers are damaged")
                self._runs += _words(image, section.address, section.offset, section.size)
        if not image.sections:
            for segment in image.segments:
                if segment.type == elf64.PT_LOAD:
                    room -= segment.file_size
                    if room < 0:
                        raise MalformedError("segments overlap", advice="the program headers are damaged")
                    self._runs += _words(image, segment.address, segment.offset, segment.file_size)
        self._runs.sort(key=lambda run: run.start)
        self._starts = [run.start for run in self._runs]

    def at(self, slot: int) -> int:
        """The pointer that a slot holds, 0 where that is not in the file."""
        relocated = self._relocated.get(slot)
        if relocated is not None:
            return relocated
        position = bisect_right(self._starts, slot) - 1
        if position < 0:
            return 0
        start, words = self._runs[position]
        index, rest = divmod(slot - start, elf64.POINTER_SIZE)
        return 0 if rest or index >= len(words) else int(words[index])

    def to(self, wanted: Collection[int]) -> list[tuple[int, int]]:
        """Every slot that holds one of the wanted addresses, with that address, in order of the slots."""
        if not wanted:
            return []
        wanted = frozenset(wanted)
        found = {slot: value for slot, value in self._relocated.items() if value in wanted}
        low, high = np.uint64(min(wanted)), np.uint64(max(wanted))
        for start, words in self._runs:
            near = np.flatnonzero((words >= low) & (words <= high))
            for index, word in zip(near.tolist(), words[near].tolist(), strict=True):
                if word in wanted:
                    found.setdefault(start + index * elf64.POINTER_SIZE, word)
        return sorted(found.items())


class _Run(NamedTuple):
    """The aligned words of one section, or of a segment where there are no sections."""

    start: int
    words: npt.NDArray[np.uint64]


def _words(image: Image, address: int, offset: int, size: int) -> Iterator[_Run]:
    lead = -address % elf64.POINTER_SIZE
    count = (size - lead) // elf64.POINTER_SIZE
    if count > 0:
        data = image.source.read(offset + lead, count * elf64.POINTER_SIZE)
        yield _Run(address + lead, np.frombuffer(data, dtype="<u8"))
