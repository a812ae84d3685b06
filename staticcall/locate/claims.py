"""What other tables of a kernel say of the code where static calls are.

    .altinstructions     s32 code, s32 replacement, u16 cpuid, [u16 flags], u8 length, u8 replacement's length,
                         [u8 padding]: 14 bytes since 6.3, 12 since 5.13, 13 before
    .parainstructions    u64 code, u8 type, u8 length, 6 bytes unused; until 6.7
    __jump_table         s32 code, s32 target, s64 key; vmlinux has __start___jump_table and __stop___jump_table
    .retpoline_sites     s32 code; also .return_sites (since 5.19) and .call_sites (6.2)
    .smp_locks           s32 byte of a lock prefix; vmlinux fills it up with zeros
    __ex_table           s32 code, s32 fixup, s32 data
    _kprobe_blacklist    u64 function; vmlinux has __start_kprobe_blacklist and __stop_kprobe_blacklist

Each s32 counts from its own address. Sources: arch/x86/include/asm/alternative.h, paravirt_types.h, jump_label.h and
extable.h, include/asm-generic/kprobes.h, Linux 5.10 to 6.12.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import compress
from operator import attrgetter, itemgetter, le
from typing import Final, NamedTuple

from staticcall.abi import elf64, static_call
from staticcall.errors import MalformedError
from staticcall.locate.lists import near
from staticcall.model.claims import NAMING_ONLY, Claim, Claims, Owner, Unreadable
from staticcall.model.image import Image
from staticcall.model.sites import Finding, Located, Severity
from staticcall.model.symbols import Symbol

# The ends of the tables that have no section of their own in vmlinux.
_ENDS: Final = {
    Owner.JUMP_LABELS: static_call.JUMP_TABLE_ENDS,
    Owner.KPROBE_BLACKLIST: ("__start_kprobe_blacklist", "__stop_kprobe_blacklist"),
}
# Entries that start with such an s32: how many words of four bytes each has, and the size of what it names.
_LISTS: Final = {
    Owner.JUMP_LABELS: (4, 5),
    Owner.RETPOLINES: (1, 5),
    Owner.RETURNS: (1, 5),
    Owner.CALLS: (1, 5),
    Owner.LOCKS: (1, 1),
    Owner.EXCEPTIONS: (3, 1),
}
_WORD: Final = 4
# The generations of struct alt_instr: the size of one, and where the two lengths are in it.
_ALTERNATIVES: Final = ((14, 12), (12, 10), (13, 10))
_PARAVIRT_SIZE: Final = 16
_PARAVIRT_LENGTH: Final = 9
# How a jump label starts that is two bytes long: a short jmp, or the nop 66 90.
_SHORT_LABELS: Final = frozenset({b"\xeb", b"\x66"})
# No function of a kernel is longer.
_MOST_FUNCTION: Final = 1 << 16
# Lists of places where the kernel does a static call no harm. A report leaves such a list alone where it has more
# bytes than this: a kernel's would cost it a tenth of its time.
_HARMLESS: Final = frozenset({Owner.RETURNS, Owner.CALLS})
_LONG: Final = 1 << 17

# What a finding says of each; what it rests on is in `plan/collisions.py`.
_FINDINGS: Final = {
    Owner.ALTERNATIVES: ("overlaps-alternative", "the kernel may replace that code by what suits the processor"),
    Owner.PARAVIRT: ("overlaps-paravirt", "the kernel replaces that code by what suits the hypervisor"),
    Owner.JUMP_LABELS: ("overlaps-jump-label", "the kernel stops where it finds no jump or nop of its own"),
    Owner.RETPOLINES: ("overlaps-retpoline", "the kernel warns where it finds no branch to a retpoline"),
    Owner.RETURNS: ("overlaps-return", "the kernel warns where it finds no jump to its return thunk"),
    Owner.CALLS: ("overlaps-call-thunk", "the kernel may lead a call there to the accounting of its target"),
    Owner.LOCKS: ("overlaps-lock-prefix", "the kernel rewrites that byte if it looks like a lock prefix"),
    Owner.EXCEPTIONS: ("overlaps-exception", "the kernel survives a fault there"),
    Owner.KPROBE_BLACKLIST: ("in-kprobe-blacklist", "kprobes leave that function alone, static calls do not"),
}


def locate_claims(image: Image, ranges: Iterable[tuple[int, int]], *, writers_only: bool = False) -> Claims:
    """Find what the tables of a kernel, or of a part of one, say of some ranges of its code.

    A range is the linked address of an instruction, or of a trampoline's, and the first one behind it. A table that
    cannot be read is part of the answer and no error. With `writers_only` the `NAMING_ONLY` are not read.
    """
    sizes = {start: stop - start for start, stop in ranges}
    others = NAMING_ONLY if writers_only else frozenset()
    return _locate(image, _Places(sizes, sizes.__getitem__), _ends_in(image), others, thorough=True)


def _ends_in(image: Image) -> dict[str, Symbol]:
    return {symbol.name: symbol for symbol in image.symbols.matching(static_call.CLAIM_STEMS)}


def about_claims(image: Image, located: Located, symbols: Mapping[str, Symbol], *, thorough: bool) -> Iterator[Finding]:
    """One finding for each site and trampoline that another table names too, and for each table out of order.

    `symbols` has those that a table ends at. Unless `thorough`, what is long and harmless is left alone.
    """

    @cache
    def sizes() -> dict[int, int]:
        # Seldom asked for.
        own = {site.address: site.instruction.length for site in located.sites}
        return own | dict.fromkeys(located.trampolines, static_call.TRAMPOLINE_SIZE)

    addresses = map(attrgetter("address"), located.sites)
    places = _Places([*located.trampolines, *addresses], lambda start: sizes()[start])
    if thorough and image.placement is None:
        symbols = {**symbols, **_ends_in(image)}
    claims = _locate(image, places, symbols, frozenset(), thorough=thorough)
    for owner, address, reason in claims.unreadable:
        message = f"the table {owner} at {image.where(address)} cannot be read: {reason}"
        yield Finding("unreadable-table", Severity.WARNING, message, address)
    named = set()
    for owner, address, size in claims.found:
        code, effect = _FINDINGS[owner]
        severity = Severity.NOTE if owner in NAMING_ONLY else Severity.WARNING
        for start in places.touching(address, address + size):
            home = located.trampolines.get(start)
            # A trampoline of NULL is a return, and the kernel knows it by its signature: __static_call_fixup().
            normal = home and home.signature and owner is Owner.RETURNS and start == address
            if not normal and (owner, start) not in named:
                # Alternatives may be nested, and the same place is then named several times.
                named.add((owner, start))
                what = f"trampoline {home.label}" if home else f"the static call at {image.where(start)}"
                yield Finding(code, severity, f"{owner} names {image.where(address)} in {what}: {effect}", start)


def _locate(
    image: Image, places: _Places, symbols: Mapping[str, Symbol], others: frozenset[Owner], *, thorough: bool
) -> Claims:
    """The claims of all tables but those of `others`."""
    if not image.kernel or not places.starts:
        return Claims()
    code, room = _code_of(image), image.source.size
    found: list[Claim] = []
    unreadable: list[Unreadable] = []
    for owner, start, size in _tables(image, symbols):
        if owner in others:
            continue
        if size is None:
            unreadable.append(Unreadable(owner, start, "it has no symbol for its other end"))
            continue
        if not thorough and (owner is Owner.KPROBE_BLACKLIST or (owner in _HARMLESS and size > _LONG)):
            continue
        try:
            room -= size
            if room < 0:
                raise MalformedError("all tables together are larger than the file")
            simple = _by_relocations(image, owner, start, size, places, code)
            if simple is None:
                simple = _read(image, _Table(owner, start, image.read_at(start, size)), places, code)
            found += simple
        except MalformedError as error:
            unreadable.append(Unreadable(owner, start, error.what))
    return Claims(tuple(sorted(found, key=itemgetter(1))), tuple(unreadable))


def _by_relocations(
    image: Image, owner: Owner, start: int, size: int, places: _Places, code: range
) -> Iterable[Claim] | None:
    """The claims of a table of an object, if it is a list as most are, without filling in its relocations."""
    if image.placement is None or owner not in _LISTS or not size:
        return None
    addresses = near(image.placement, start, size, _LISTS[owner], places.starts, code)
    if addresses is None:
        return None
    claims = (Claim(owner, address, _extent(image, owner, address)) for address in addresses)
    return (claim for claim in claims if places.touching(claim.address, claim.address + claim.size))


def _extent(image: Image, owner: Owner, address: int) -> int:
    """The size of what an entry of a list names."""
    short = owner is Owner.JUMP_LABELS and image.read_at(address, 1) in _SHORT_LABELS
    return 2 if short else _LISTS[owner][1]


# Where the tables are


class _Table(NamedTuple):
    """One table, or a part of it in an object: the linked address of its first byte, and its bytes."""

    owner: Owner
    start: int
    data: bytes


def _tables(image: Image, symbols: Mapping[str, Symbol]) -> Iterator[tuple[Owner, int, int | None]]:
    """Owner, address and size of every table, by its sections and by the symbols at its ends.

    The size is None, and the address that of the symbol, where there is only one of the two.
    """
    named = set()
    owners = {str(owner): owner for owner in Owner}
    for section in image.sections:
        owner = owners.get(section.name)
        if owner is not None and section.flags & elf64.SHF_ALLOC and section.size:
            named.add((owner, section.address))
            yield owner, section.address, section.size
    for owner, (start, stop) in _ENDS.items():
        ends = [symbols[name].address for name in (start, stop) if name in symbols]
        if image.placement is not None or not ends or (owner, ends[0]) in named:
            continue
        if len(ends) == 1:
            yield owner, ends[0], None
        elif ends[0] != ends[1]:
            yield owner, ends[0], ends[1] - ends[0]


def _code_of(image: Image) -> range:
    """The addresses from the first instruction of the image to its last."""
    # Objects may have all the empty replacements of their alternatives in an empty section.
    places = image.placement is not None
    code = [(s.address, s.address + s.size) for s in image.sections if s.executable and (s.size or places)]
    return range(min(start for start, _ in code), max(stop for _, stop in code)) if code else range(1 << 64)


# What they say


def _read(image: Image, table: _Table, places: _Places, code: range) -> Iterator[Claim]:
    """The claims of one table that touch a place; raises `MalformedError` for what cannot be such a table."""
    if table.owner is Owner.ALTERNATIVES:
        return _alternatives(table, places, code)
    if table.owner is Owner.PARAVIRT:
        return _paravirt(table, places, code)
    if table.owner is Owner.KPROBE_BLACKLIST:
        return _blacklist(image, table, places, code)
    return _listed(image, table, places, code)


def _listed(image: Image, table: _Table, places: _Places, code: range) -> Iterator[Claim]:
    owner, start, data = table
    words, _ = _LISTS[owner]
    step = _WORD * words
    if owner is Owner.LOCKS:
        data = data.rstrip(b"\0")
        data += bytes(-len(data) % _WORD)
    _check_size(data, step)
    fields = elf64.column(data, "i", 0, words)
    blocks = places.numbered(fields, start, step, code)
    if blocks is None:
        raise MalformedError("it names places outside of all code")
    for number in compress(range(len(fields)), map(places.blocks.__contains__, blocks)):
        address = start + step * number + fields[number]
        extent = _extent(image, owner, address)
        if places.touching(address, address + extent):
            yield Claim(owner, address, extent)


def _alternatives(table: _Table, places: _Places, code: range) -> Iterator[Claim]:
    """The claims of a table whose layout shows by its sense alone: it has changed twice, also in stable kernels."""
    start, data = table.start, table.data
    for step, at in _ALTERNATIVES:
        lengths, shorter = data[at::step], data[at + 1 :: step]
        if len(data) % step or 0 in lengths or not all(map(le, shorter, lengths)):
            continue
        fields = _column(data, 0, step)
        blocks = places.numbered(fields, start, step, code)
        if blocks is not None and places.numbered(_column(data, 4, step), start + 4, step, code) is not None:
            break
    else:
        raise MalformedError("no layout of struct alt_instr makes sense of it")
    # Most are so short that they start at most one block before a place; the others are few.
    here, numbers = places.blocks.__contains__, range(len(fields))
    near = {*compress(numbers, map(here, blocks)), *compress(numbers, map(here, map((1).__add__, blocks)))}
    for number in sorted(near.union(compress(numbers, lengths.translate(_LONGER)))):
        address = start + step * number + fields[number]
        if places.touching(address, address + lengths[number]):
            yield Claim(Owner.ALTERNATIVES, address, lengths[number])


def _column(data: bytes, at: int, step: int) -> array[int]:
    """The s32 `at` bytes from the start of each entry of `step` bytes."""
    field = bytearray(len(data) // step * _WORD)
    for byte in range(_WORD):
        field[byte::_WORD] = data[at + byte :: step]
    return elf64.column(bytes(field), "i", 0, 1)


def _paravirt(table: _Table, places: _Places, code: range) -> Iterator[Claim]:
    data = table.data
    if len(data) % _PARAVIRT_SIZE > _PARAVIRT_LENGTH:
        data += bytes(-len(data) % _PARAVIRT_SIZE)  # entries are aligned, the last one ends with its last field
    _check_size(data, _PARAVIRT_SIZE)
    addresses = elf64.column(data, "Q", 0, _PARAVIRT_SIZE // elf64.POINTER_SIZE)
    lengths = data[_PARAVIRT_LENGTH::_PARAVIRT_SIZE]
    if addresses and not (min(addresses) in code and max(addresses) in code):
        raise MalformedError("it names places outside of all code")
    for address, length in zip(addresses, lengths, strict=True):
        if (length > 1 << _BLOCK_BITS or places.near(address)) and places.touching(address, address + length):
            yield Claim(Owner.PARAVIRT, address, length)


def _blacklist(image: Image, table: _Table, places: _Places, code: range) -> Iterator[Claim]:
    _check_size(table.data, elf64.POINTER_SIZE)
    functions = sorted({address for (address,) in elf64.POINTER.iter_unpack(table.data)})
    if functions and not (functions[0] in code and functions[-1] in code):
        raise MalformedError("it names functions outside of all code")
    for address in sorted(places.owners_among(functions)):
        # Of several names of a function one may have no size.
        symbol = image.symbols.containing(address)
        if symbol is not None and places.touching(address, symbol.address + symbol.size):
            yield Claim(Owner.KPROBE_BLACKLIST, address, symbol.address + symbol.size - address)


def _check_size(data: bytes, entry: int) -> None:
    if len(data) % entry:
        raise MalformedError(f"its {len(data)} bytes are no whole number of entries of {entry}")


# Which of it matters

_BLOCK_BITS: Final = 4
_BIAS: Final = 1 << 31
_NEAR: Final = 1 << 30
# What makes 1 of a length of more than a block, and 0 of any other.
_LONGER: Final = bytes(length > 1 << _BLOCK_BITS for length in range(256))


class _Places:
    """The places asked about, by the linked addresses at which they start.

    Thousands of places are held against tens of thousands of entries by the blocks of 16 bytes in which they lie,
    and integers count these for a whole table at once. `blocks` are those in which something starts that touches a
    place, if it has five bytes or fewer.
    """

    def __init__(self, starts: Iterable[int], size_at: Callable[[int], int]) -> None:
        self.starts = sorted(starts)
        self._size_at = size_at
        self._offset = _BIAS - (self.starts[0] if self.starts else 0)
        self.blocks = {*self._blocks(-4), *self._blocks(_LONGEST - 1)}

    def _blocks(self, distance: int) -> Iterable[int]:
        """The blocks of what is that far from the starts of the places."""
        starts, by = self.starts, self._offset + distance
        if not starts or starts[-1] - starts[0] >= _NEAR:
            return [start + by >> _BLOCK_BITS for start in starts]
        # As lanes of one integer, of 64 bits each; what is left of an address has 32.
        lanes = int.from_bytes(elf64.little_endian(array("Q", starts)), "little")
        ones = int.from_bytes((1).to_bytes(elf64.POINTER_SIZE, "little") * len(starts), "little")
        lanes = lanes - ones * starts[0] + ones * (_BIAS + distance) >> _BLOCK_BITS
        return elf64.column(lanes.to_bytes(elf64.POINTER_SIZE * len(starts), "little"), "I", 0, 2)

    def touching(self, start: int, stop: int) -> list[int]:
        """Where the places start that have a byte from `start` up to, not including, `stop`."""
        first, behind = bisect_right(self.starts, start - _LONGEST), bisect_left(self.starts, stop)
        if first >= behind:
            return []
        near = dict.fromkeys(self.starts[first:behind])
        return [place for place in near if place + self._size_at(place) > start]

    def near(self, address: int) -> bool:
        """Whether something of at most one block that starts at an address may touch a place."""
        block = address + self._offset >> _BLOCK_BITS
        return block in self.blocks or block + 1 in self.blocks

    def owners_among(self, functions: Sequence[int]) -> set[int]:
        """Of the sorted addresses of some functions, those that a place may belong to."""
        before = ((start, bisect_right(functions, start) - 1) for start in self.starts)
        return {functions[at] for start, at in before if at >= 0 and start - functions[at] < _MOST_FUNCTION}

    def numbered(self, fields: array[int], place: int, step: int, code: range) -> Sequence[int] | None:
        """The numbers of the blocks that s32 fields lead to, None where one is off the code.

        The first field lies at `place`, the next `step` on.
        """
        count, far = len(fields), place + self._offset - _BIAS
        first, last = (address + self._offset >> _BLOCK_BITS for address in (code.start, code.stop))
        # As lanes of one integer: with its sign turned an s32 is 2^31 more than it was, and never negative.
        ones = int.from_bytes((1).to_bytes(_WORD, "little") * count, "little")
        lanes, near = int.from_bytes(elf64.little_endian(fields), "little") ^ ones * _BIAS, ones * _NEAR
        if not -_NEAR < far < _NEAR - count * step or (lanes ^ lanes >> 1) & near != near:
            # A sum could run over into the next lane.
            blocks = [
                place + step * number + field + self._offset >> _BLOCK_BITS for number, field in enumerate(fields)
            ]
            return blocks if not blocks or (first <= min(blocks) and max(blocks) <= last) else None
        most = (1 << 32 - _BLOCK_BITS) - 1
        lanes = lanes + _counting(count) * step + ones * far >> _BLOCK_BITS & ones * most
        if last < 0 or first > most:
            return None if count else ()
        # What this adds up to, and what is left of that, has the uppermost bit of its lane for a block in bounds.
        lower, upper = lanes + ones * (_BIAS - max(first, 0)), ones * (_BIAS + min(last, most)) - lanes
        if lower & upper & ones * _BIAS != ones * _BIAS:
            return None
        return elf64.column(lanes.to_bytes(_WORD * count, "little"), "I", 0, 1).tolist()


def _counting(count: int) -> int:
    """The numbers from 0 to `count` - 1, in lanes of 32 bits."""
    lanes, ones, done = 0, 1, 1
    while done < count:
        lanes |= lanes + ones * done << 32 * done
        ones |= ones << 32 * done
        done *= 2
    return lanes & (1 << 32 * count) - 1


# What a place has at most: a trampoline.
_LONGEST: Final = 8
