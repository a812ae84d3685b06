"""Every range that run-time patching may change, and all that it may be.

                function     NULL                            __static_call_return0   always
    call        e8 rel32     the kernel's nop                its xor                 e8 to the trampoline
    tail jmp    e9 rel32     c3 cc cc cc cc, e9 to a thunk   e9 rel32                e9 to the trampoline
    tail jcc    0f 8x rel32  0f 8x to a return or a thunk    0f 8x rel32             0f 8x to the trampoline
    trampoline  e9 rel32     c3 and padding, e9 to a thunk   e9 rel32

A function that counts calls for its processor's return buffer (retbleed=stuff) is entered that many bytes before its
start at which the counting stands. Sites of a user program's staticcall.h stay calls and jumps: NULL and
__static_call_return0 are functions there.

While text is patched, the first byte of a range is int3 and the others are those of any of its contents: the kernel's
text_poke() and the runtime's protocols first write int3, then the other bytes, then the first one. What is written by
one store has no such step.

Sources: arch/x86/kernel/static_call.c, __static_call_transform() and __static_call_fixup(); callthunks.c,
callthunks_translate_call_dest(); alternative.c, text_poke_bp_batch().
"""

from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from typing import NamedTuple

from staticcall.abi import static_call, x86
from staticcall.model.form import Form
from staticcall.model.image import Image
from staticcall.model.integrity import AllowList, Content, KnownTargets, Range, RangeKind, State, TargetSource
from staticcall.model.sites import Dialect, Key, Located, Site, Trampoline, TrampolineForm

_CALLS = frozenset({Form.CALL, Form.PREFIXED_CALL, Form.NOP, Form.RET0, Form.WARN_TRAP})
_JUMPS = frozenset({Form.TAIL_JMP, Form.RET})
_PATCHED = frozenset({TrampolineForm.JMP, TrampolineForm.RET, TrampolineForm.CALL_RET})
_DISPLACEMENT = Struct("<i")
_REACH = 1 << 31
# Sections that a kernel gives back once it has started.
_INITIAL = (".init.", ".exit.")
_NOTHING = KnownTargets({}, open=False)


class Surroundings(NamedTuple):
    """What contents depend on besides keys and sites.

    `thunks` are the places that a return may be replaced by a jump to, by address. `counting` is how many bytes before
    a function its call-depth accounting starts where there is any, 0 elsewhere. `names` are those of all functions.
    """

    thunks: Mapping[int, str]
    counting: int
    names: Mapping[int, str]


def allow(image: Image, located: Located, targets: Mapping[int, KnownTargets], around: Surroundings) -> AllowList:
    """List the ranges of a linked image with their contents, in order of the addresses."""
    ranges = [*_sites(image, located, targets, around), *_trampolines(image, located, targets, around)]
    ranges.sort(key=lambda one: one.address)
    return AllowList(tuple(ranges), targets)


def _sites(
    image: Image, located: Located, targets: Mapping[int, KnownTargets], around: Surroundings
) -> Iterator[Range]:
    maker = _Maker(located.dialect, around)
    for site in located.sites:
        key = located.key_of(site)
        known = targets.get(key.address, _NOTHING) if key else _NOTHING
        code = site.code
        if len(code) < x86.CALL_SIZE:
            # A bare ret, whose padding is no part of the instruction.
            code = next(image.read_each([site.address], x86.CALL_SIZE))[2]
        contents = maker.site(site, code, key, known)
        yield Range(
            kind=RangeKind.SITE,
            address=site.address,
            section=site.section,
            offset=site.offset,
            file_offset=site.file_offset,
            key=site.key,
            tail=site.tail,
            initial=site.section.startswith(_INITIAL),
            behind=b"",
            contents=contents,
        )


def _trampolines(
    image: Image, located: Located, targets: Mapping[int, KnownTargets], around: Surroundings
) -> Iterator[Range]:
    maker = _Maker(located.dialect, around)
    owners = {key.trampoline.address: address for address, key in located.keys.items() if key.trampoline}
    for home in located.trampolines.values():
        if home.form not in _PATCHED:
            continue
        section = image.section_at(home.address)
        owner = owners.get(home.address)
        yield Range(
            kind=RangeKind.TRAMPOLINE,
            address=home.address,
            section=section.name if section else "",
            offset=home.address - section.address if section else 0,
            file_offset=image.offset_of(home.address) or 0,
            key=owner,
            tail=True,
            initial=bool(section and section.name.startswith(_INITIAL)),
            behind=home.code[x86.JMP_SIZE :],
            contents=maker.trampoline(home, targets.get(owner or 0, _NOTHING)),
        )


class _Choice(NamedTuple):
    """Somewhere that a branch of a key may lead, and what the key holds then."""

    address: int
    state: State
    target: str
    func: int | None


class _Maker:
    """Makes contents for one image."""

    def __init__(self, dialect: Dialect, around: Surroundings) -> None:
        self._dialect = dialect
        self._around = around
        self._thunks = tuple(_Choice(address, State.RETURN_THUNK, name, 0) for address, name in around.thunks.items())
        plain = dialect.plain_return
        helper = () if plain is None else (_Choice(plain, State.RETURN, static_call.PLAIN_RETURN, 0),)
        self._returns = (*helper, *self._thunks)
        self._choices: dict[tuple[int, Form], list[_Choice]] = {}
        self._nothing: dict[tuple[Form, bytes], dict[bytes, Content]] = {}
        # Before 5.16 only the first byte of a return was written.
        self._short_returns = dialect.kernel and (dialect.release or static_call.PADDED_RET_SINCE) < (
            static_call.PADDED_RET_SINCE
        )

    def site(self, site: Site, code: bytes, key: Key | None, known: KnownTargets) -> tuple[Content, ...]:
        form, prefix = site.instruction.form, code[: site.instruction.opcode]
        if form is Form.JCC and len(prefix) + x86.JCC_SIZE == len(code):
            form, opcode = Form.JCC, code[: -x86.REL32_SIZE]
        elif form in _CALLS:
            form, opcode = Form.CALL, prefix + bytes([x86.CALL_REL32])
        elif form in _JUMPS:
            form, opcode = Form.TAIL_JMP, prefix + bytes([x86.JMP_REL32])
        else:
            return (Content(code, State.FILE, "", None),)
        found = _branches(site.address, opcode, self._choices_of(key, known, form))
        if key is None or not key.live:
            self._add_nothing(found, form, prefix)
        if code not in found:
            found[code] = Content(code, State.FILE, "", None)
        if len(opcode) + x86.REL32_SIZE == len(code):
            return tuple(found.values())
        return tuple(content for data, content in found.items() if len(data) == len(code))

    def _choices_of(self, key: Key | None, known: KnownTargets, form: Form) -> list[_Choice]:
        """Where the branches at a key's sites may lead."""
        case = (key.address if key else 0, form)
        if case in self._choices:
            return self._choices[case]
        choices = self._choices[case] = []
        if key is not None and key.trampoline is not None:
            home = key.trampoline.address
            choices.append(_Choice(home, State.TRAMPOLINE, self._name(home), None))
        choices += self._functions(known, counted=form is Form.CALL)
        if key is not None and key.live:
            if self._dialect.nop_function is not None:
                address = self._dialect.nop_function
                choices.append(_Choice(address, State.NULL, self._name(address), address))
        elif form is not Form.CALL:
            choices += self._returns if form is Form.JCC else self._thunks
        return choices

    def trampoline(self, home: Trampoline, known: KnownTargets) -> tuple[Content, ...]:
        code = home.code[: x86.JMP_SIZE]
        opcode = bytes([x86.CALL_REL32 if home.form is TrampolineForm.CALL_RET else x86.JMP_REL32])
        found = _branches(home.address, opcode, [*self._functions(known, counted=False), *self._thunks])
        self._add_nothing(found, Form.TAIL_JMP, b"")
        returning = code in (static_call.RET_TRAMPOLINE, static_call.RET_TRAMPOLINE_NOPS)
        initial = Content(code, State.RETURN, "", 0) if returning else Content(code, State.FILE, "", None)
        found.setdefault(code, initial)
        return tuple(found.values())

    def _functions(self, known: KnownTargets, *, counted: bool) -> Iterator[_Choice]:
        for function, source in known.functions.items():
            name = self._name(function)
            state = State.RET0 if source is TargetSource.RET0 else State.FUNCTION
            yield _Choice(function, state, name, function)
            if counted and self._around.counting:
                yield _Choice(function - self._around.counting, State.ACCOUNTED, name, function)

    def _name(self, address: int) -> str:
        return self._around.names.get(address) or f"{address:#x}"

    def _add_nothing(self, found: dict[bytes, Content], form: Form, prefix: bytes) -> None:
        """Add what is no branch: at calls nops, clearing of %eax and traps, at jumps returns."""
        case = (form, prefix)
        if case not in self._nothing:
            self._nothing[case] = {content.data: content for content in self._no_branches(form, prefix)}
        nothing = self._nothing[case]
        if form is Form.TAIL_JMP and not prefix and self._short_returns:
            returns = (bytes([x86.RET]) + data[1:] for data in found)
            nothing = nothing | {data: Content(data, State.RETURN, "", 0) for data in returns}
        for data, content in nothing.items():
            found.setdefault(data, content)

    def _no_branches(self, form: Form, prefix: bytes) -> Iterator[Content]:
        generation = self._dialect.generation
        if form is Form.CALL:
            yield from (Content(prefix + nop, State.NULL, "", 0) for nop in generation.nops)
            if generation.xor:
                yield Content(prefix + generation.xor, State.RET0, "", self._dialect.return0)
            if static_call.WARN_TRAP in generation.others:
                yield Content(prefix + static_call.WARN_TRAP, State.WARN_TRAP, "", None)
        elif form is Form.TAIL_JMP and not prefix:
            yield Content(static_call.RET_SITE, State.RETURN, "", 0)


def _branches(address: int, opcode: bytes, choices: Iterable[_Choice]) -> dict[bytes, Content]:
    """Branches to each of the choices, by their bytes; the first of equal ones counts."""
    end = address + len(opcode) + x86.REL32_SIZE
    pack, found = _DISPLACEMENT.pack, dict[bytes, Content]()
    for target, state, name, func in choices:
        displacement = target - end
        if -_REACH <= displacement < _REACH:  # else the kernel and the runtime could not write that either
            data = opcode + pack(displacement)
            if data not in found:
                found[data] = Content(data, state, name, func)
    return found
