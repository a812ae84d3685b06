"""Each range against what a memory image has there.

legal      one of its contents, or its first byte int3 and the rest that of one
unknown    an instruction of the range's own form that leads to code, but not to any function on the list
corrupt    everything else, also halves of two contents
freed      not legal, in a section that only the start needs: there may be anything by now
absent     the memory image does not have it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from staticcall.abi import elf64, x86
from staticcall.model.core import Core
from staticcall.model.form import Form, Instruction
from staticcall.model.image import Image
from staticcall.model.integrity import AllowList, Judgement, Observation, Place, Range, State

# Where a kernel's modules and BPF programs are: behind its own 512 MiB, behind 1 GiB if it can move.
_MODULES, _MODULES_OF_MOVED = 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_C000_0000
_KERNEL_MAP = 0xFFFF_FFFF_8000_0000

IsCode = Callable[[int], bool]


def inspect(image: Image, allowed: AllowList, core: Core, place: Place) -> tuple[Observation, ...]:
    """Judge every range, in the list's order."""
    is_code = _code_test(image, core, place)
    functions = _functions(allowed, core, place)
    return tuple(
        _judge(one, data, functions.get(one.key or 0), is_code)
        for one, data in zip(allowed.ranges, _pieces(allowed, core, place), strict=True)
    )


def _pieces(allowed: AllowList, core: Core, place: Place) -> list[bytes]:
    """What memory has of every range and of what is behind it; those of one size are read together."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(allowed.ranges):
        numbers[one.length + len(one.behind)].append(number)
    found = [b""] * len(allowed.ranges)
    for size, group in numbers.items():
        addresses = (allowed.ranges[number].address + place.shift & x86.ADDRESS_MASK for number in group)
        for number, data in zip(group, core.read_each(addresses, size, physical=place.physical), strict=True):
            found[number] = data
    return found


def _functions(allowed: AllowList, core: Core, place: Place) -> Mapping[int, int]:
    """What the keys hold in memory, as linked addresses; nothing where the slide is not known."""
    if place.slide is None:
        return {}
    keys = sorted(allowed.targets)
    shifted = (key + place.shift & x86.ADDRESS_MASK for key in keys)
    slots = core.read_each(shifted, elf64.POINTER_SIZE, physical=place.physical)
    values = {key: elf64.POINTER.unpack(slot)[0] for key, slot in zip(keys, slots, strict=True) if slot}
    return {key: value - place.slide & x86.ADDRESS_MASK if value else 0 for key, value in values.items()}


def _code_test(image: Image, core: Core, place: Place) -> IsCode:
    """Whether there may be code at a linked address: the image's own, or memory outside of it."""
    own = [(section.address, section.address + section.size) for section in image.sections if section.executable]
    if not own:
        loads = (s for s in image.segments if s.type == elf64.PT_LOAD and s.flags & elf64.PF_X)
        own = [(segment.address, segment.address + segment.file_size) for segment in loads]
    # The lowest linked address that may be a module's; a slide that is not known may be any.
    modules = _KERNEL_MAP if place.slide is None else (_MODULES_OF_MOVED if place.slide else _MODULES) - place.slide

    def is_code(address: int) -> bool:
        if any(start <= address < stop for start, stop in own):
            return True
        if image.in_memory(address):
            return False
        if image.kernel and address < modules:
            return False
        return place.physical or core.mapped(address + place.shift & x86.ADDRESS_MASK)

    return is_code


def _judge(one: Range, data: bytes, func: int | None, is_code: IsCode) -> Observation:
    if not data:
        return Observation(one, Judgement.ABSENT, data)
    code, behind = data[: one.length], data[one.length :]
    if behind == one.behind:
        for content in one.contents:
            if content.data == code:
                agrees = None if func is None or content.func is None else content.func == func
                return Observation(one, Judgement.LEGAL, code, content.state, agrees=agrees)
        # What is freed is filled with int3.
        if code[0] == x86.INT3 and not (one.initial and code == code[:1] * len(code)):
            for content in one.contents:
                if content.data[1:] == code[1:]:
                    return Observation(one, Judgement.LEGAL, code, content.state, int3=True)
    if one.initial:
        return Observation(one, Judgement.FREED, data)
    destination = _destination(one, code) if behind == one.behind else None
    if destination is None or not is_code(destination):
        return Observation(one, Judgement.CORRUPT, data, destination=destination)
    agrees = None if func is None else func == destination
    if not agrees and _torn(one, code):
        return Observation(one, Judgement.CORRUPT, data, destination=destination)
    return Observation(one, Judgement.UNKNOWN, code, destination=destination, agrees=agrees)


def _torn(one: Range, code: bytes) -> bool:
    """Whether the code begins as one content and goes on as another one."""
    contents = [content.data for content in one.contents]
    return any(
        any(data[:place] == code[:place] for data in contents)
        and any(data[place:] == code[place:] for data in contents)
        for place in range(2, len(code))
    )


def _destination(one: Range, code: bytes) -> int | None:
    """Where the code leads if it is a branch such as the range's contents are, None otherwise."""
    instruction = x86.decode(code, one.address)
    if instruction.length != len(code) or instruction.destination is None:
        return None
    return instruction.destination if _shape(instruction, code) in _shapes(one) else None


def _shapes(one: Range) -> set[tuple[Form, bytes]]:
    """The branches among a range's contents: form, and all bytes before the displacement."""
    return {
        _shape(x86.decode(content.data, one.address), content.data)
        for content in one.contents
        if content.state in (State.FUNCTION, State.TRAMPOLINE, State.RET0, State.FILE)
    }


def _shape(instruction: Instruction, code: bytes) -> tuple[Form, bytes]:
    return instruction.form, code[: -x86.REL32_SIZE]
