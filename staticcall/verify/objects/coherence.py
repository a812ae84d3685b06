"""One static call that changed: its key, its trampoline and its sites agree, each in a way that it may change."""

from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from staticcall.errors import VerificationError
from staticcall.model.form import Form
from staticcall.verify.objects import elf
from staticcall.verify.objects.calls import KEY, TRAMPOLINE
from staticcall.verify.objects.elf import Elf
from staticcall.verify.objects.places import Place
from staticcall.verify.objects.states import NULL, RET0, TAILS, UNKNOWN, State, Target

# Forms that may become each other, where the opcode's prefixes stay.
_FAMILIES = (
    frozenset({Form.CALL, Form.NOP, Form.RET0}),
    frozenset({Form.PREFIXED_CALL, Form.NOP, Form.RET0}),
    frozenset({Form.TAIL_JMP, Form.RET}),
    frozenset({Form.JCC}),
    frozenset({Form.INDIRECT_CALL}),
    frozenset({Form.INDIRECT_JMP}),
)
# What is made of a call that a running program may lead elsewhere.
_BRANCHES = frozenset(
    {
        *(Form.CALL, Form.PREFIXED_CALL, Form.TAIL_JMP, Form.JCC, Form.SHORT_JMP),
        *(Form.INDIRECT_CALL, Form.INDIRECT_JMP),
    }
)
# What leads to its target without asking anything else.
_DIRECT = frozenset(
    {Form.CALL, Form.PREFIXED_CALL, Form.TAIL_JMP, Form.JCC, Form.SHORT_JMP, Form.NOP, Form.RET0, Form.RET}
)
_CODE_TYPES = frozenset({elf.STT_NOTYPE, elf.STT_FUNC, elf.STT_GNU_IFUNC})


class Pair(NamedTuple):
    """What stands at a place in the original and in the patched file."""

    before: State
    after: State

    @property
    def changed(self) -> bool:
        """Whether anything at the place differs."""
        return self.before != self.after


class Call(NamedTuple):
    """One static call; `slot` and `trampoline` are None where this file does not define them.

    Each site has its place, whether its record says that it is a jump, and what stands there.
    """

    name: bytes
    slot: tuple[Place, Pair] | None
    trampoline: tuple[Place, Pair] | None
    sites: list[tuple[Place, bool, Pair]]

    def places(self) -> Iterator[tuple[Place, Pair]]:
        """All places."""
        yield from (own for own in (self.slot, self.trampoline) if own is not None)
        yield from ((place, pair) for place, _, pair in self.sites)

    @property
    def changed(self) -> bool:
        """Whether any place differs."""
        return any(pair.changed for _, pair in self.places())

    def has_site_in(self, places: frozenset[Place]) -> bool:
        """Whether one of these places is a site."""
        return any(place in places for place, _, _ in self.sites)


def check_call(after: Elf, call: Call, lost: frozenset[Place] = frozenset()) -> None:
    """Judge one static call in the patched file; raises `VerificationError`. One that did not change is right.

    Sites that are `lost` have no record any more, so they lead by themselves where the key does.
    """
    if not call.changed and not call.has_site_in(lost):
        return
    shown = call.name.decode(errors="replace")
    if call.slot is None or call.trampoline is None:
        raise VerificationError(f"{shown} changed, whose key and trampoline are not both here")
    target = call.slot[1].after.target
    own: tuple[Target, ...] = (
        ("place", b"", *call.trampoline[0]),
        ("symbol", TRAMPOLINE + call.name, 0, 0),
        ("slot", b"", *call.slot[0]),
    )
    if target in (UNKNOWN, *own):
        _refuse(after, call, call.slot[0], "the key leads nowhere")
    _check_target(after, call, target)
    live = call.trampoline[1].after.form is Form.INDIRECT_JMP
    if live:
        _check_live(after, call, target)
    if call.trampoline[1].after.target != (own[-1] if live else target):
        _refuse(after, call, call.trampoline[0], "the trampoline leads elsewhere than the key")
    for what, (place, pair) in (("key", call.slot), ("trampoline", call.trampoline)):
        if pair.changed and not pair.after.clean:
            _refuse(after, call, place, f"the {what} has bytes below its relocation, or two of those")
    for place, tail, pair in call.sites:
        if pair.after.target not in (target, *own):
            _refuse(after, call, place, "a site leads neither to its trampoline nor where the key does")
        if place in lost and (pair.after.target != target or pair.after.form not in _DIRECT):
            _refuse(after, call, place, "a site has lost its record and does not go straight where the key leads")
        if pair.changed:
            _check_change(after, call, place, pair, (call.slot[1].before.target, *own), tail=tail)


def _check_live(after: Elf, call: Call, target: Target) -> None:
    """Judge what a running program may lead elsewhere: its trampoline stays, and has a key to follow."""
    assert call.trampoline is not None  # it says that the call is live
    if call.trampoline[1].changed:
        _refuse(after, call, call.trampoline[0], "the trampoline changed, which follows its key as it is")
    if target == NULL:
        _refuse(after, call, call.trampoline[0], "the key is NULL, which the trampoline would jump to")
    for place, _, pair in call.sites:
        if pair.after.form not in _BRANCHES:
            _refuse(after, call, place, f"a site is a {pair.after.form}, which nothing leads elsewhere at run time")


def _check_change(after: Elf, call: Call, place: Place, pair: Pair, targets: tuple[Target, ...], *, tail: bool) -> None:
    """Judge what became of the instruction at a site, which led to one of the targets before."""
    was, now = pair
    if was.target not in targets:
        _refuse(after, call, place, "a site led neither to its trampoline nor where the key did")
    if not now.clean:
        _refuse(after, call, place, "a site has bytes below its relocation, or two of those")
    if (now.form in TAILS) is not tail:
        _refuse(after, call, place, "a site is a call instead of a jump, or the other way round")
    if was.opcode != now.opcode or not any({was.form, now.form} <= forms for forms in _FAMILIES):
        _refuse(after, call, place, f"a site became {now.form} from {was.form}")


def _refuse(after: Elf, call: Call, place: Place, reason: str) -> NoReturn:
    section, at = place
    raise VerificationError(f"{call.name.decode(errors='replace')}: {reason}", offset=after.offsets[section] + at)


def _check_target(after: Elf, call: Call, target: Target) -> None:
    """A new target is a function, as far as this file knows."""
    assert call.slot is not None  # the target is the slot's
    if target in (NULL, RET0) or not call.slot[1].changed:
        return
    kind, name, section, offset = target
    if kind == "symbol":
        good = not offset and name and not name.startswith(KEY)
    else:
        code = 0 < section < after.section_count and after.flags[section] & elf.SHF_EXECINSTR
        good = bool(code) and any(
            (symbol.section, symbol.value) == (section, offset) and symbol.type in _CODE_TYPES
            for symbol in map(after.symbol, range(after.symbol_count))
        )
    if not good:
        _refuse(after, call, call.slot[0], "the key leads to no function")
