"""What a kernel without names still says of its static calls: whose a trampoline is, and where its helpers are.

Trampolines stand side by side, eight bytes each, so from those that sites lead to all others are found. A trampoline's
key is the one whose sites lead there. Of a static call without sites, and of one whose sites go straight to their
target, other places tell:

    .static_call_tramp_key            pairs of trampoline and key, of the static calls that modules may use
    struct tracepoint,                the address of a key, then that of its trampoline
    struct lsm_static_call
    mov $key,%rdi; mov $trampoline,%rsi     what is handed to __static_call_update()

The helpers are where trampolines and keys lead. A trampoline of NULL goes to the return thunk, which begins with a ret.
Of the functions that do nothing but return 0 the code compares one with what shall be called, __static_call_return0,
and beside that comparison stand the addresses of __static_call_return and of the bytes that clear %eax.

Sources: include/linux/static_call.h, include/linux/tracepoint-defs.h, include/linux/lsm_hooks.h and
arch/x86/kernel/static_call.c, Linux 5.10 to 6.12.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice

from staticcall.abi import elf64, static_call, x86
from staticcall.locate.code import code_runs
from staticcall.locate.trampolines import decode_trampoline
from staticcall.model.form import Form
from staticcall.model.hints import Pairing
from staticcall.model.image import Image
from staticcall.model.sites import Key, Site, Table, Trampoline, TrampolineForm

_WORD = elf64.POINTER_SIZE
_LOW = (1 << 32) - 1
# What a trampoline of NULL may be, other than a jump.
_RETURNS = (static_call.RET_TRAMPOLINE, static_call.RET_TRAMPOLINE_NOPS)
# No kernel has so many trampolines or places that name them; a file made to be large could.
_MOST = 1 << 17
_BLOCK = 1 << 12
# More pairs than any kernel exports; what stands behind the table may go on in the same way.
_MOST_EXPORTED = 1 << 14
# mov $imm32,%rsi and mov $imm32,%rdi, and the size of each.
_SECOND_ARGUMENT, _FIRST_ARGUMENT = b"\x48\xc7\xc6", b"\x48\xc7\xc7"
_LOAD_SIZE = 7
# endbr64, a call of __fentry__ or the nop in its place, xor %eax,%eax, and a return.
_RETURNS_0 = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?(?:\xe8(.{4})|\x0f\x1f\x44\0\0)?\x31\xc0(\xc3|\xe9.{4})", re.DOTALL)
_LONGEST = 19
# __fentry__ returns, behind room for what counts the depth of calls; a call of anything else may have an effect.
_DOES_NOTHING = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\x90*(\xc3|\xe9.{4})", re.DOTALL)
_MOST_OF_NOTHING = 64
# A kernel has two or three; each costs a search of the code.
_MOST_CANDIDATES = 32
# cmp $imm32,%rax, and cmp $imm32 with another register.
_COMPARES = re.compile(rb"\x48\x3d$|[\x48\x49]\x81[\xf8-\xff]$", re.DOTALL)
# mov $imm32 to any register: what a function loads beside the comparison, before it and behind it.
_LOADS = re.compile(rb"[\x48\x49]\xc7[\xc0-\xc7](.{4})", re.DOTALL)
_BEFORE, _BEHIND = 256, 640


def trampolines_agreeing(
    image: Image, sites: Iterable[Site], keys: Mapping[int, Key], known: Mapping[int, Trampoline]
) -> dict[int, Trampoline]:
    """What sites lead to and what goes on to where their keys lead: trampolines, signed or not, by linked address."""
    owners = {
        site.instruction.destination: keys[site.key]
        for site in sites
        if site.key is not None and site.instruction.destination is not None
    }
    found = {}
    for address, _, code in image.read_each(sorted(owners.keys() - known.keys()), static_call.TRAMPOLINE_SIZE):
        trampoline = decode_trampoline("", address, code)
        key = owners[address]
        if trampoline.form is TrampolineForm.RET:
            agrees = not key.slot.value and code.startswith(_RETURNS)
        elif trampoline.form is TrampolineForm.INDIRECT_JMP:
            agrees = trampoline.slot == key.address
        else:
            agrees = _leads_to(image, trampoline, key.slot.value)
        if agrees and address != key.slot.value:
            found[address] = trampoline
    return found


def trampolines_beside(image: Image, known: Mapping[int, Trampoline]) -> dict[int, Trampoline]:
    """The trampolines that stand in rows with those that are known, by linked address."""
    found: dict[int, Trampoline] = {}
    for address, trampoline in sorted(known.items()):
        if trampoline.form in (TrampolineForm.UNKNOWN, TrampolineForm.ELSEWHERE):
            continue
        for step, codes in ((-static_call.TRAMPOLINE_SIZE, _before), (static_call.TRAMPOLINE_SIZE, _behind)):
            if address + step not in known and address + step not in found:
                _go_on(codes(image, address), known, trampoline, found)
    return found


def _go_on(
    codes: Iterable[tuple[int, bytes]],
    known: Mapping[int, Trampoline],
    first: Trampoline,
    found: dict[int, Trampoline],
) -> None:
    """On from a trampoline, as long as there are more with the same bytes behind their code."""
    end = first.code[static_call.SIGNATURE_OFFSET :]
    for address, code in codes:
        if address in known or address in found:
            return
        trampoline = decode_trampoline("", address, code)
        same = bool(trampoline.signature) or code[static_call.SIGNATURE_OFFSET :] == end
        if trampoline.form is TrampolineForm.UNKNOWN or not same or len(found) >= _MOST:
            return
        found[address] = trampoline


def _behind(image: Image, address: int) -> Iterator[tuple[int, bytes]]:
    """The eight bytes behind those at an address, and so on to the end of what the file loads."""
    step = static_call.TRAMPOLINE_SIZE
    for place, _, code in image.read_each(range(address + step, x86.ADDRESS_MASK, step), step):
        if len(code) < step:
            return
        yield place, code


def _before(image: Image, address: int) -> Iterator[tuple[int, bytes]]:
    """The same backwards."""
    step = static_call.TRAMPOLINE_SIZE
    segment = image.load_at(address)
    while segment is not None and address - step >= segment.address:
        size = min(_BLOCK, (address - segment.address) // step * step)
        code = image.read_at(address - size, size)
        for at in range(size - step, -1, -step):
            yield address - size + at, code[at : at + step]
        address -= size


def pairings_of(
    image: Image, table: Table | None, trampolines: Mapping[int, Trampoline], recorded: AbstractSet[int]
) -> tuple[Pairing, ...]:
    """The trampolines that other places than sites give to keys, in order of the keys.

    `recorded` are the keys that records name. Of another place only what agrees is believed: the trampoline leads to
    where the key does. Who would have two of the other kind has none.
    """
    pairs = [Pairing(t.slot, address, address) for address, t in trampolines.items() if t.slot and t.signature]
    if image.kernel and trampolines:
        pairs += _exported(image, table, trampolines) if table else ()
        pairs += islice(_pointers(image, trampolines), _MOST)
        pairs = _unique(_agreeing(image, pairs, trampolines, recorded))
        keys = {pair.key for pair in pairs}
        left = trampolines.keys() - {pair.trampoline for pair in pairs}
        handed = _agreeing(image, islice(_handed_on(image, left), _MOST), trampolines, recorded)
        pairs += _unique(pair for pair in handed if pair.key not in keys)
    return tuple(sorted(_unique(pairs)))


def _unique(pairs: Iterable[Pairing]) -> list[Pairing]:
    """One pairing of each pair, without those of which one end has several others."""
    found = {(pair.key, pair.trampoline): pair for pair in sorted(pairs, reverse=True)}
    keys, homes = Counter(key for key, _ in found), Counter(home for _, home in found)
    return [pair for (key, home), pair in found.items() if keys[key] == homes[home] == 1]


def _agreeing(
    image: Image, pairs: Iterable[Pairing], trampolines: Mapping[int, Trampoline], recorded: AbstractSet[int]
) -> list[Pairing]:
    """The pairs of which the key leads to where the trampoline does, or which records confirm."""
    possible = sorted({pair for pair in pairs if not pair.key % _WORD})
    slots = {at: code for at, _, code in image.read_each(sorted({pair.key for pair in possible}), _WORD)}
    agreeing = []
    for pair in possible:
        func = int.from_bytes(slots[pair.key], "little") if len(slots[pair.key]) == _WORD else None
        section = image.section_at(pair.key)
        if func is None or (section is not None and section.executable):
            continue
        if pair.key in recorded or _leads_to(image, trampolines[pair.trampoline], func):
            agreeing.append(pair)
    return agreeing


def _leads_to(image: Image, trampoline: Trampoline, func: int) -> bool:
    if func or trampoline.destination is None:
        return trampoline.destination == func if func else trampoline.form is TrampolineForm.RET
    return _returns(image, trampoline.destination)


def _returns(image: Image, address: int) -> bool:
    return image.offset_of(address) is not None and image.read_at(address, 1)[0] == x86.RET


def _exported(image: Image, table: Table, trampolines: Mapping[int, Trampoline]) -> Iterator[Pairing]:
    """The pairs of `.static_call_tramp_key`, which a kernel's linker script puts behind the table of sites."""
    unpack = static_call.RECORD.unpack
    places = range(table.stop, table.stop + _MOST_EXPORTED * static_call.RECORD_SIZE, static_call.RECORD_SIZE)
    for place, _, code in image.read_each(places, static_call.RECORD_SIZE):
        if len(code) < static_call.RECORD_SIZE:
            return
        to_home, to_key = unpack(code)
        if place + to_home not in trampolines:
            return
        yield Pairing(place + 4 + to_key, place + to_home, place)


def _pointers(image: Image, trampolines: Mapping[int, Trampoline]) -> Iterator[Pairing]:
    """What stands before each pointer to a trampoline."""
    from staticcall.locate.pointers import Pointers  # noqa: PLC0415 - imports numpy, which programs do not need

    pointers = Pointers(image)
    for slot, home in pointers.to(trampolines.keys()):
        key = pointers.at(slot - _WORD)
        if key and key not in trampolines:
            yield Pairing(key, home, slot - _WORD)


def _handed_on(image: Image, trampolines: AbstractSet[int]) -> Iterator[Pairing]:
    """What the code loads as a first argument right before or behind a trampoline as the second one."""
    if not trampolines:
        return
    import numpy as np  # noqa: PLC0415 - as above

    size = _LOAD_SIZE
    for run in code_runs(image):
        if len(run.data) < size:
            continue
        data = np.frombuffer(run.data, np.uint8)
        fits = data[: len(data) - size + 1] == _SECOND_ARGUMENT[0]
        for place in range(1, len(_SECOND_ARGUMENT)):
            fits &= data[place : len(data) - size + 1 + place] == _SECOND_ARGUMENT[place]
        for place in np.flatnonzero(fits).tolist():
            home = _immediate(run.data[place + size - x86.REL32_SIZE : place + size])
            if home in trampolines:
                for step in (-size, size):
                    for at, key in _first_argument(run.data, place + step, step):
                        yield Pairing(key, home, run.address + min(at, place))


def _first_argument(data: bytes, place: int, step: int) -> Iterator[tuple[int, int]]:
    """Place and value of the first argument among the constants that are loaded one after the other."""
    for at in (place, place + step):
        code = data[max(at, 0) : at + _LOAD_SIZE]
        if len(code) < _LOAD_SIZE or not _LOADS.match(code):
            return
        if code.startswith(_FIRST_ARGUMENT):
            yield at, _immediate(code[-x86.REL32_SIZE :])
            return


def jump_table_before(image: Image, table: Table) -> tuple[int, int] | None:
    """Start and end of the table of jump labels, which a kernel's linker script puts right before that of sites.

    An entry has the place of an instruction, the place that it may jump to, and a key in data.
    """
    code = [range(run.address, run.address + len(run.data)) for run in code_runs(image)]
    start, halves = table.start, _before(image, table.start)
    for (_, key), (place, jump) in islice(zip(halves, halves, strict=False), _MOST):
        to_place, to_target = static_call.RECORD.unpack(jump)
        label, target = place + to_place, place + 4 + to_target
        home = place + _WORD + int.from_bytes(key, "little", signed=True) & static_call.NO_FLAGS
        if not any(label in run and target in run for run in code):
            break
        if image.load_at(home) is None or (image.sections and any(home in run for run in code)):
            break
        start = place
    return (start, table.start) if start < table.start else None


def _immediate(code: bytes) -> int:
    return int.from_bytes(code, "little", signed=True) & x86.ADDRESS_MASK


def landmarks_of(
    image: Image, keys: Mapping[int, Key], trampolines: Mapping[int, Trampoline], sites: Iterable[Site]
) -> dict[str, int]:
    """The addresses of a kernel's helpers and constants, by the names of their symbols, as far as the code tells."""
    found: dict[str, int] = {}
    thunk = _return_thunk(image, keys, sites)
    if thunk is not None:
        found[static_call.RETURN_THUNK] = thunk
    leads = {key.slot.value for key in keys.values()} | {t.destination or 0 for t in trampolines.values()}
    candidates = {address for address in leads if address and _returns_0(image, address, thunk)}
    compared = _comparisons(image, candidates)
    if len(compared) == 1:
        ((return0, place),) = compared.items()
        found[static_call.RETURN0] = return0
        found |= _beside(image, place, thunk)
    return found


def _return_thunk(image: Image, keys: Mapping[int, Key], sites: Iterable[Site]) -> int | None:
    """Where all trampolines lead whose key is NULL, or all tails of those keys, if there is a return."""
    empty = [key for key in keys.values() if not key.slot.value and not key.slot.symbol]
    homes = {key.address: key.trampoline for key in empty}
    leads = {home.destination for home in homes.values() if home and home.form is TrampolineForm.JMP}
    own = {home.address for home in homes.values() if home}
    leads.update(
        site.instruction.destination
        for site in sites
        if site.key in homes and site.instruction.form is Form.TAIL_JMP and site.instruction.destination not in own
    )
    thunks = {address for address in leads if address is not None and _returns(image, address)}
    return thunks.pop() if len(thunks) == 1 else None


def _is_code(image: Image, address: int) -> bool:
    """Whether it may be a function's, and not that of the bytes that the kernel writes for a return."""
    section = image.section_at(address)
    if section is not None:
        return section.executable
    return image.read_at(address, x86.JMP_SIZE) != static_call.RET_SITE


def _returns_0(image: Image, address: int, thunk: int | None) -> bool:
    size = _LONGEST if image.offset_of(address, _LONGEST) is not None else 0
    match = _RETURNS_0.match(image.read_at(address, size)) if size else None
    if match is None or not _ends(match, 2, address, thunk):
        return False
    if match[1] is None:
        return True
    called = address + match.end(1) + int.from_bytes(match[1], "little", signed=True) & x86.ADDRESS_MASK
    codes = image.read_each([called], _MOST_OF_NOTHING)
    return any(found and _ends(found, 1, called, thunk) for *_, code in codes if (found := _DOES_NOTHING.match(code)))


def _ends(match: re.Match[bytes], group: int, address: int, thunk: int | None) -> bool:
    """Whether what ends the code at an address is a ret, or a jump to where there is one."""
    end = match[group]
    return len(end) == 1 or address + match.end(group) + int.from_bytes(end[1:], "little", signed=True) == thunk


def _comparisons(image: Image, functions: AbstractSet[int]) -> dict[int, int]:
    """Which of the functions the code compares something with, each with the place of a comparison."""
    places: dict[int, int] = {}
    if len(functions) > _MOST_CANDIDATES:
        return places
    for run in code_runs(image) if functions else ():
        for function in functions:
            value = (function & _LOW).to_bytes(x86.REL32_SIZE, "little")
            at = run.data.find(value)
            while at >= 0:
                if _COMPARES.search(run.data[max(at - 3, 0) : at]):
                    places.setdefault(function, run.address + at)
                at = run.data.find(value, at + 1)
    return places


def _beside(image: Image, place: int, thunk: int | None) -> dict[str, int]:
    """What the function around the comparison loads: where there is a lone return, and the bytes of the xor."""
    segment = image.load_at(place)
    if segment is None:
        return {}
    start = max(place - _BEFORE, segment.address)
    code = image.read_at(start, min(place + _BEHIND, segment.address + segment.file_size) - start)
    found: dict[str, set[int]] = defaultdict(set)
    for match in _LOADS.finditer(code):
        address = _immediate(match[1])
        if image.offset_of(address, static_call.XOR_SIZE) is None:
            continue
        if image.read_at(address, static_call.XOR_SIZE) in static_call.RET0_FORMS:
            found[static_call.XOR_SYMBOL].add(address)
        elif address != thunk and _is_code(image, address) and _returns(image, address):
            found[static_call.PLAIN_RETURN].add(address)
    return {name: min(addresses) for name, addresses in found.items() if len(addresses) == 1}
