"""Every place of a static call, with its bytes in both files.

What is where comes from the original alone. That is enough: whatever the proof does not name as a legal place
must be the same in the patched file, headers, tables and symbols included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from typing import NamedTuple

from staticcall.abi import static_call as abi
from staticcall.abi.generations import Generation
from staticcall.errors import MalformedError
from staticcall.model.form import Form
from staticcall.model.hints import NO_HINTS, Hints
from staticcall.verify.decode import MOST_BYTES, Code, Decoder
from staticcall.verify.hints import check_ends, checked
from staticcall.verify.layout import Layout
from staticcall.verify.names import Names, read_names
from staticcall.verify.relocations import Carrier, Pointer, read_pointers
from staticcall.verify.signs import read_generation
from staticcall.verify.source import Source, Span

_POINTER = Struct("<Q")
POINTER_SIZE = _POINTER.size


class Record(NamedTuple):
    """One record of the table, resolved to linked addresses, the flags taken off the key."""

    address: int
    key: int
    tail: bool


class Site(NamedTuple):
    """A record's site at a file offset. `before` and `after` hold its instruction and may hold more."""

    record: Record
    offset: int
    before: bytes
    after: bytes


class Slot(NamedTuple):
    """A key's `func`: the address of the slot, what holds its value, and the values themselves.

    The values are None where only run time knows them.
    """

    address: int
    pointer: Pointer
    before: int | None
    after: int | None


class Trampoline(NamedTuple):
    """A trampoline: its linked address, its file offset and its eight bytes, or what there is, in both files."""

    address: int
    offset: int
    before: bytes
    after: bytes


class Scene(NamedTuple):
    """All places; `keys` names every key by address, slots and trampolines are by their key's address.

    `ret0` are the bytes that this kernel keeps for a site that only returns 0, empty where it does not say. `starts`
    are the linked addresses of the tables, `owners` the keys of trampolines that records may name instead. `generation`
    says what a kernel accepts; it is None where the image is none.
    """

    layout: Layout
    names: Names
    tables: tuple[Span, ...]
    keys: dict[int, str]
    sites: tuple[Site, ...]
    slots: dict[int, Slot]
    trampolines: dict[int, Trampoline]
    ret0: bytes
    starts: tuple[int, ...] = ()
    owners: Mapping[int, int] = {}
    generation: Generation | None = None


def read_scene(
    original: Source,
    patched: Source,
    layout: Layout,
    decode: Decoder,
    table: tuple[int, int] | None,
    hints: Hints = NO_HINTS,
) -> Scene:
    """Collect all places; `table` overrides where the records are, `hints` tell what nothing else does.

    Raises `MalformedError` where the original's tables are broken, `VerificationError` for a hint that is wrong.
    """
    names = checked(original, layout, read_names(original, layout), hints, decode)
    extents = [table] if table else _tables(layout, names)
    if not extents and hints.table:
        extents = [hints.table]
        check_ends(original, layout, hints.table, decode)
    spans = tuple(_table_span(original, layout, start, stop) for start, stop in extents)
    records = [
        record
        for (start, _), span in zip(extents, spans, strict=True)
        for record in _records(original.read(*span), start)
    ]
    owners = {t: next(iter(p.keys)) for p in names.pairs if len(p.keys) == 1 for t in p.trampolines}
    # A record may name the trampoline instead of the key, where its object was not allowed to see the key.
    records = [
        record._replace(key=owners[record.key]) if record.key in owners else record for record in dict.fromkeys(records)
    ]
    keys = {record.key: hints.names.get(record.key, f"{record.key:#x}") for record in records}
    keys.update({key: pair.name for pair in reversed(names.pairs) for key in pair.keys})
    sites = tuple(_sites(original, patched, layout, records))
    slots = _slots(original, patched, layout, sorted(keys))
    homes = _match_trampolines(layout, names, original, sites, slots, decode)
    trampolines = _trampolines(original, patched, layout, homes)
    # Nothing can name the helper that conditional tails need, and a kernel that has such tails runs.
    jcc = hints is not NO_HINTS and any(_is_jcc(site.before) for site in sites)
    return Scene(
        layout,
        names,
        spans,
        keys,
        sites,
        slots,
        trampolines,
        _ret0(original, layout, names),
        tuple(start for start, _ in extents),
        owners,
        read_generation(original, layout, names, [home.before for home in trampolines.values()], jcc=jcc),
    )


def _is_jcc(code: bytes) -> bool:
    return len(code) > 1 and code[:1] == b"\x0f" and code[1] & 0xF0 == 0x80


def _ret0(source: Source, layout: Layout, names: Names) -> bytes:
    if not layout.kernel or len(names.xors) != 1:
        return b""
    offset = layout.offset_of(min(names.xors), abi.XOR_SIZE)
    return b"" if offset is None else source.read(offset, abi.XOR_SIZE)


def _tables(layout: Layout, names: Names) -> list[tuple[int, int]]:
    """Find the linked extents of all tables: by section, else by the symbols around the one there is."""
    found = [
        (section.address, section.address + section.body.size)
        for section in layout.sections
        if section.name in abi.TABLE_SECTIONS and section.allocated and section.body.size
    ]
    if found or names.table is None:
        return found
    return [names.table]


def _table_span(source: Source, layout: Layout, start: int, stop: int) -> Span:
    size = stop - start
    if size == 0:
        return Span(0, 0)
    offset = layout.offset_of(start, size) if size > 0 else None
    if offset is None or size % abi.RECORD_SIZE:
        raise MalformedError(f"the table of static call sites at {start:#x} is broken", path=source.path)
    return Span(offset, size)


def _records(table: bytes, start: int) -> Iterator[Record]:
    for i, (to_site, to_key) in enumerate(abi.RECORD.iter_unpack(table)):
        here = start + i * abi.RECORD_SIZE
        key = here + 4 + to_key
        yield Record(here + to_site, key & abi.NO_FLAGS, bool(key & abi.TAIL_FLAG))


def _sites(original: Source, patched: Source, layout: Layout, records: list[Record]) -> Iterator[Site]:
    """Read the sites in file order; records that lead out of the file stand last, without bytes."""
    placed, lost = [], []
    for record in records:
        offset = layout.offset_of(record.address)
        if offset is None:
            lost.append(Site(record, 0, b"", b""))
        else:
            placed.append((Span(offset, layout.room_at(record.address, MOST_BYTES)), record))
    placed.sort()
    spans = [span for span, _ in placed]
    befores, afters = original.snippets(spans), patched.snippets(spans)
    for (span, record), before, after in zip(placed, befores, afters, strict=True):
        yield Site(record, span.offset, before, after)
    yield from lost


def _slots(original: Source, patched: Source, layout: Layout, keys: list[int]) -> dict[int, Slot]:
    places = [key for key in keys if layout.is_data(key, POINTER_SIZE) or layout.is_zeros(key, POINTER_SIZE)]
    pointers = read_pointers(original, layout, places)
    known = sorted(
        (Span(pointer.offset, POINTER_SIZE), key) for key, pointer in pointers.items() if pointer.offset is not None
    )
    spans = [span for span, _ in known]
    befores, afters = original.snippets(spans), patched.snippets(spans)
    slots = {
        key: Slot(key, pointer, *((0, 0) if pointer.carrier is Carrier.ZEROS else (None, None)))
        for key, pointer in pointers.items()
    }
    for (_, key), before, after in zip(known, befores, afters, strict=True):
        slots[key] = Slot(key, pointers[key], *_POINTER.unpack(before), *_POINTER.unpack(after))
    return slots


def read_values(source: Source, layout: Layout, addresses: set[int]) -> dict[int, int | None]:
    """Tell what the pointers at these linked addresses lead to, for a symbol this file's own definition."""
    found: dict[int, int | None] = {}
    for address, pointer in read_pointers(source, layout, addresses).items():
        if pointer.offset is None:
            found[address] = pointer.guess if pointer.carrier is Carrier.SYMBOL else None
        else:
            (found[address],) = _POINTER.unpack(source.read(pointer.offset, POINTER_SIZE))
    return found


def _match_trampolines(
    layout: Layout,
    names: Names,
    source: Source,
    sites: tuple[Site, ...],
    slots: Mapping[int, Slot],
    decode: Decoder,
) -> dict[int, int]:
    """Which trampoline is whose: by name, and where names are missing or ambiguous by where sites lead.

    A trampoline that two keys lay claim to, or a key with two trampolines, is nobody's: a change there could
    not be judged.
    """
    claims: dict[int, set[int]] = {}
    candidates: dict[int, set[int]] = {}
    for pair in names.pairs:
        unique = len(pair.keys) == len(pair.trampolines) == 1
        for key in pair.keys:
            (claims if unique else candidates).setdefault(key, set()).update(pair.trampolines)
    # What is only hinted at has to stand up to where the sites lead.
    named = claims.keys() - {key for pair in names.pairs if pair.hinted for key in pair.keys}
    taken = {home for key in named for home in claims[key]}
    lost = [site for site in sites if site.record.key not in named]
    decoded = decode([Code(site.record.address, site.before) for site in lost])
    for site, home in zip(lost, (now.destination for now in decoded), strict=True):
        if home is None or home in taken:
            continue
        key = site.record.key
        choice = candidates.get(key)
        if (
            home in choice
            if choice
            else _signed(layout, source, home) or _agrees(layout, names, source, home, slots.get(key), decode)
        ):
            claims.setdefault(key, set()).add(home)
    owners: dict[int, set[int]] = {}
    for key, homes in claims.items():
        for home in homes:
            owners.setdefault(home, set()).add(key)
    return {key: home for key, homes in claims.items() for home in homes if len(homes) == 1 and len(owners[home]) == 1}


def _signed(layout: Layout, source: Source, address: int) -> bool:
    """Whether the eight bytes at a linked address carry a trampoline's signature."""
    offset = layout.offset_of(address, abi.TRAMPOLINE_SIZE)
    if offset is None:
        return False
    code = source.read(offset, abi.TRAMPOLINE_SIZE)
    return code[abi.SIGNATURE_OFFSET :] in abi.SIGNATURES or abi.is_live_trampoline(code)


def _agrees(layout: Layout, names: Names, source: Source, address: int, slot: Slot | None, decode: Decoder) -> bool:
    """Whether what stands at a linked address, unsigned, leads on to where the key does: a trampoline before 5.16."""
    offset = layout.offset_of(address, abi.SIGNATURE_OFFSET)
    if slot is None or slot.before is None or offset is None or address == slot.before:
        return False
    code = source.read(offset, abi.SIGNATURE_OFFSET)
    if code in (abi.RET_TRAMPOLINE, abi.RET_TRAMPOLINE_NOPS):
        return not slot.before
    (now,) = decode([Code(address, code)])
    return now.form is Form.TAIL_JMP and now.destination in ({slot.before} if slot.before else names.thunks)


def _trampolines(original: Source, patched: Source, layout: Layout, homes: dict[int, int]) -> dict[int, Trampoline]:
    placed = []
    for key, address in homes.items():
        # Those of 2018 have no signature, and the last one nothing at all behind its five bytes.
        offset = layout.offset_of(address, abi.SIGNATURE_OFFSET)
        if offset is not None and layout.is_code(address, abi.SIGNATURE_OFFSET):
            placed.append((Span(offset, layout.room_at(address, abi.TRAMPOLINE_SIZE)), key))
    placed.sort()
    spans = [span for span, _ in placed]
    befores, afters = original.snippets(spans), patched.snippets(spans)
    return {
        key: Trampoline(homes[key], span.offset, before, after)
        for (span, key), before, after in zip(placed, befores, afters, strict=True)
    }
