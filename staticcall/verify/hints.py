"""Hints about an image that names nothing, each checked by the bytes where it leads.

    table          where it ends no record goes on: a branch to a trampoline or a call of what its key leads to
    return thunk   a ret, and so the function that does nothing
    return0        endbr64 or not, a call of __fentry__ or its nop or none, xor %eax,%eax, and a return; __fentry__ is
               what returns at once, but for endbr64 and nops
    xor            the five bytes themselves, in data
    pair           two pointers, a record of .static_call_tramp_key, two constants that are loaded one after the other,
                   or the trampoline's own slot

Sources: arch/x86/kernel/static_call.c, include/linux/static_call.h and tracepoint-defs.h, Linux 5.10 to 6.12.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from struct import Struct

from staticcall.abi import static_call as abi
from staticcall.errors import VerificationError
from staticcall.model.form import Form
from staticcall.model.hints import Hints, Pairing
from staticcall.verify.decode import MOST_BYTES, Code, Decoder
from staticcall.verify.layout import Layout
from staticcall.verify.names import Names, Pair
from staticcall.verify.source import Source, Span

_MASK = (1 << 64) - 1
_POINTER_SIZE = 8
_RET = b"\xc3"
_EMPTY = (abi.RET_TRAMPOLINE, abi.RET_TRAMPOLINE_NOPS, abi.RET_SITE)
_POINTERS = Struct("<QQ")
_RECORD = abi.RECORD
# mov $imm32 to a register, and which registers hold the first and the second argument.
_LOAD = re.compile(rb"[\x48\x49]\xc7([\xc0-\xc7])(.{4})", re.DOTALL)
_KEY, _HOME = b"\xc7", b"\xc6"
_MOST_LOADS = 3
_LOAD_SIZE = 7
_RETURNS_0 = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?(?:\xe8(.{4})|\x0f\x1f\x44\0\0)?\x31\xc0", re.DOTALL)
_LONGEST = 11
_NOTHING = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\x90*")
_MOST_OF_NOTHING = 64


def checked(source: Source, layout: Layout, names: Names, hints: Hints, decode: Decoder) -> Names:
    """What the symbols say, and where they say nothing the hints; raises `VerificationError` for one that is wrong."""
    helpers = hints.helpers
    thunks = names.thunks or _hinted(helpers.get(abi.RETURN_THUNK))
    for address in thunks - names.thunks:
        _require(_is_return(source, layout, address, decode), abi.RETURN_THUNK, address)
    return0 = names.return0 or _hinted(helpers.get(abi.RETURN0))
    for address in return0 - names.return0:
        _require(_returns_0(source, layout, address, thunks, decode), abi.RETURN0, address)
    returns = names.returns or _hinted(helpers.get(abi.PLAIN_RETURN))
    for address in returns - names.returns:
        _require(_is_return(source, layout, address, decode), abi.PLAIN_RETURN, address)
    xors = names.xors or _hinted(helpers.get(abi.XOR_SYMBOL))
    for address in xors - names.xors:
        held = not layout.sections or not layout.is_code(address)
        _require(held and _read(source, layout, address, abi.XOR_SIZE) in abi.RET0_FORMS, abi.XOR_SYMBOL, address)
    pairs = _agreeing(source, layout, _pairs(source, layout, names, hints), thunks, decode)
    return names._replace(pairs=(*names.pairs, *pairs), thunks=thunks, return0=return0, returns=returns, xors=xors)


def check_ends(source: Source, layout: Layout, table: tuple[int, int], decode: Decoder) -> None:
    """Raise `VerificationError` if a record stands right before or right behind what is said to be the whole table."""
    start, stop = table
    for place in (start - abi.RECORD_SIZE, stop):
        code = _read(source, layout, place, abi.RECORD_SIZE)
        if len(code) == abi.RECORD_SIZE and _is_record(source, layout, place, code, decode):
            raise VerificationError(f"the table {start:#x}:{stop:#x} goes on at {place:#x}")


def _is_record(source: Source, layout: Layout, place: int, code: bytes, decode: Decoder) -> bool:
    """Whether this is a record of a branch to a trampoline, or of a call of what the key leads to."""
    to_site, to_key = _RECORD.unpack(code)
    site, key = place + to_site & _MASK, place + 4 + to_key & abi.NO_FLAGS & _MASK
    if not layout.is_code(site) or not (layout.is_data(key, 8) or layout.is_zeros(key, 8)):
        return False
    if _is_trampoline(_read(source, layout, site, abi.TRAMPOLINE_SIZE)):
        return False  # it belongs to .static_call_tramp_key
    (now,) = decode([Code(site, source.read(*_span(layout, site, MOST_BYTES)))])
    if now.destination is None:
        return False
    func = int.from_bytes(_read(source, layout, key, _POINTER_SIZE), "little")
    # A jump may be a trampoline that is not signed, in .static_call_tramp_key.
    if now.destination == func and now.form in (Form.CALL, Form.PREFIXED_CALL):
        return True
    return _is_trampoline(_read(source, layout, now.destination, abi.TRAMPOLINE_SIZE))


def _is_trampoline(code: bytes) -> bool:
    return code[abi.SIGNATURE_OFFSET :] in abi.SIGNATURES or abi.is_live_trampoline(code)


def _span(layout: Layout, address: int, most: int) -> Span:
    size = layout.room_at(address, most)
    offset = layout.offset_of(address) if size else None
    return Span(0, 0) if offset is None else Span(offset, size)


def _read(source: Source, layout: Layout, address: int, size: int) -> bytes:
    """What there is at a linked address, up to `size` bytes."""
    return source.read(*_span(layout, address, size))


def _hinted(address: int | None) -> frozenset[int]:
    return frozenset() if address is None else frozenset({address})


def _require(held: bool, name: str, address: int) -> None:
    if not held:
        raise VerificationError(f"{address:#x} is said to be {name}, and its bytes say otherwise")


def _is_return(source: Source, layout: Layout, address: int, decode: Decoder) -> bool:
    code = _read(source, layout, address, MOST_BYTES)
    return bool(code) and layout.is_code(address) and decode([Code(address, code)])[0].form is Form.RET


def _returns_0(source: Source, layout: Layout, address: int, thunks: AbstractSet[int | None], decode: Decoder) -> bool:
    code = _read(source, layout, address, _LONGEST + MOST_BYTES)
    match = _RETURNS_0.match(code)
    if match is None or not layout.is_code(address, len(code)):
        return False
    parts = [Code(address + match.end(), code[match.end() :])]
    if match[1] is not None:
        called = address + match.end(1) + int.from_bytes(match[1], "little", signed=True) & _MASK
        body = _read(source, layout, called, _MOST_OF_NOTHING)
        skipped = _NOTHING.match(body)
        assert skipped is not None  # it may be empty
        parts.append(Code(called + skipped.end(), body[skipped.end() :]))
    return all(
        now.form is Form.RET or (now.form is Form.TAIL_JMP and now.destination in thunks) for now in decode(parts)
    )


def _pairs(source: Source, layout: Layout, names: Names, hints: Hints) -> list[tuple[str, Pairing]]:
    """The hinted pairs of what no symbol names, each with what the key is called in messages."""
    known = {address for pair in names.pairs for address in (*pair.keys, *pair.trampolines)}
    spans = [_span(layout, pair.place, _MOST_LOADS * _LOAD_SIZE) for pair in hints.pairs]
    found = []
    for pair, code in zip(hints.pairs, source.snippets(spans), strict=True):
        if not _says(pair, code):
            raise VerificationError(
                f"{pair.place:#x} is said to pair {pair.key:#x} with {pair.trampoline:#x}, and does not"
            )
        if pair.key not in known and pair.trampoline not in known:
            found.append((hints.names.get(pair.key, f"{pair.key:#x}"), pair))
    return found


def _agreeing(
    source: Source,
    layout: Layout,
    pairs: list[tuple[str, Pairing]],
    thunks: AbstractSet[int],
    decode: Decoder,
) -> Iterator[Pair]:
    """Those of which the trampoline leads to where the key does, or through it; two words side by side say too little.

    The others are left out: nothing of theirs may change.
    """
    homes = [(pair.trampoline, _read(source, layout, pair.trampoline, abi.TRAMPOLINE_SIZE)) for _, pair in pairs]
    decoded = decode([Code(address, code) for address, code in homes])
    for (label, pair), (_, code), now in zip(pairs, homes, decoded, strict=True):
        slot = _read(source, layout, pair.key, _POINTER_SIZE)
        func = int.from_bytes(slot, "little") if len(slot) == _POINTER_SIZE else None
        if code.startswith(_EMPTY):
            agrees = func == 0
        elif now.form is Form.TAIL_JMP or (now.form is Form.CALL and code[now.length :].startswith(_RET)):
            agrees = now.destination in ({func} if func else thunks) and func is not None
        else:
            agrees = abi.is_live_trampoline(code) and now.pointer == pair.key
        if agrees:
            yield Pair(label, frozenset({pair.key}), frozenset({pair.trampoline}), hinted=True)


def _says(pair: Pairing, code: bytes) -> bool:
    key, home, place = pair
    if len(code) >= _POINTERS.size and _POINTERS.unpack_from(code) == (key, home):
        return True
    if len(code) >= _RECORD.size:
        to_home, to_key = _RECORD.unpack_from(code)
        if (place + to_home & _MASK, place + 4 + to_key & _MASK) == (home, key):
            return True
    if place == home and abi.is_live_trampoline(code[: abi.TRAMPOLINE_SIZE]):
        return home + 6 + int.from_bytes(code[2:6], "little", signed=True) & _MASK == key
    loaded = {}
    for at in range(0, len(code) - _LOAD_SIZE + 1, _LOAD_SIZE):
        match = _LOAD.match(code, at)
        if match is None:
            break
        loaded[match[1]] = int.from_bytes(match[2], "little", signed=True) & _MASK
    return (loaded.get(_KEY), loaded.get(_HOME)) == (key, home)
