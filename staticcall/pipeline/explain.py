"""read -> locate -> classify -> report: all that there is to say of one site, or of one static call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from staticcall.abi import elf64, static_call, x86
from staticcall.errors import StaticcallError, about
from staticcall.locate.around import instructions_around
from staticcall.locate.claims import locate_claims
from staticcall.locate.pinned import without_repeats
from staticcall.locate.question import meant_by
from staticcall.model.explain import (
    EFFECTS,
    Candidate,
    Change,
    Explanation,
    KeySite,
    KeyStory,
    Rival,
    SiteStory,
    State,
    Stretch,
)
from staticcall.model.image import Image
from staticcall.model.lines import SourceLine
from staticcall.model.select import select_keys
from staticcall.model.sites import (
    Answer,
    Finding,
    Judge,
    Key,
    Located,
    Policy,
    PolicyName,
    Site,
    Source,
    TargetKind,
    TrampolineForm,
    Verdict,
)
from staticcall.model.types import Prototype
from staticcall.pipeline.look import PINNED, Look, judge_for, locate_for, refuse_archive, report_opened
from staticcall.pipeline.types import sources_of
from staticcall.read.image import open_image
from staticcall.read.lines import source_lines
from staticcall.report.advice import flags_for
from staticcall.report.explain import render_explanation
from staticcall.report.explain_json import render_explanation_json
from staticcall.report.names import counted

__all__ = ["explained", "render_explanation", "render_explanation_json"]

_BEFORE, _AFTER = 6, 5
# Bytes are shown in rows of so many.
_ROW: Final = 16
_MCOUNT_ENDS: Final = ("__start_mcount_loc", "__stop_mcount_loc")
_FTRACE_EFFECT: Final = "ftrace turns it into a nop and back when the function is traced"
_LARGEST_LIST: Final = 1 << 26


@contextmanager
def explained(path: Path, question: str, look: Look, *, thorough: bool = False) -> Iterator[Explanation]:
    """The answer to a question about a file, good inside the `with` block; `question` as in `locate.question`.

    `thorough` looks also for the functions that a key may be led to, which takes seconds in a kernel.
    Raises `UsageError` where the file has no such site or static call.
    """
    refuse_archive(path)
    with open_image(path, aids=look.aids.names) as image:
        located = locate_for(image, look)
        if look.edits is not None:
            # The undo file knows the sites that are pinned, and have no record any more.
            located = located._replace(sites=report_opened(path, image, look._replace(keys=None), located).sites)
        with about(path):
            subject = meant_by(image, _selected(located, look.keys), question)
        if isinstance(subject, Site):
            story: SiteStory | KeyStory = _site(image, located, look, subject)
        else:
            story = _key(image, located, look, subject, thorough=thorough)
        yield Explanation(image, located, look.policy, question, story)


def _site(image: Image, located: Located, look: Look, site: Site) -> SiteStory:
    policy, end = look.policy, site.address + site.instruction.length
    policies = [Policy(name, policy.line) for name in PolicyName]
    verdicts = tuple((one, _judged(located, one, (site,))[0]) for one in policies)
    verdict = dict(verdicts)[policy]
    claims = locate_claims(image, ((site.address, end),))
    rivals = [Rival(claim.owner.value, claim.address, claim.size, EFFECTS[claim.owner]) for claim in claims.found]
    key = located.key_of(site)
    return SiteStory(
        site=site,
        function=image.symbols.function_at(site.address) or "",
        verdict=verdict,
        verdicts=verdicts,
        crosses=x86.crosses_anywhere(site.address, site.instruction.length, policy.line, site.alignment),
        code=instructions_around(image, site.address, _BEFORE, _AFTER),
        bytes_around=_bytes_around(image, site, policy.line),
        state=None if key is None else _state(image, located, key),
        rivals=(*rivals, *_traced(image, site)),
        unreadable=claims.unreadable,
        changes=tuple(_changes(image, located, policy, site, verdict)),
        line=source_lines(image, (site.address,)).get(site.address),
        record_address=_record_address(image, located, site),
        placements=_placements(located, policy, site),
        findings=_findings(located, {site.address}),
    )


def _selected(located: Located, keys: str | None) -> Located:
    """Only what belongs to the keys that a glob selects."""
    if keys is None:
        return located
    chosen = {key.address: key for key in select_keys(located.keys.values(), keys)}
    return located._replace(keys=chosen, sites=tuple(site for site in located.sites if site.key in chosen))


def _judged(located: Located, policy: Policy, sites: Sequence[Site]) -> list[Verdict]:
    verdicts = judge_for(located, policy)(sites)
    return [PINNED if Source.EDITS in site.sources else one for site, one in zip(sites, verdicts, strict=True)]


def _record_address(image: Image, located: Located, site: Site) -> int | None:
    if located.table is None or site.record is None or image.placement is not None:
        return None
    return located.table.start + static_call.RECORD_SIZE * site.record


def _bytes_around(image: Image, site: Site, line: int) -> Stretch:
    """The lines that the instruction touches, of long ones some rows; None for bytes that are not in its section."""
    start, end = site.address, site.address + site.instruction.length
    unit = line if line <= 4 * _ROW and (not site.alignment or site.alignment >= line) else _ROW
    shift = (site.address - site.offset) % unit if site.alignment and site.alignment < unit else 0
    low, high = start - (start - shift) % unit, end + -(end - shift) % unit
    section, load = image.section_at(start), image.load_at(start)
    assert load is not None, "every site lies in the file"
    first, last = max(low, load.address), min(high, load.address + load.file_size)
    if section is not None:
        first, last = max(first, section.address), min(last, section.address + section.size)
    data = image.in_file(load.offset + first - load.address, image.read_at(first, last - first))
    return Stretch(low, (*[None] * (first - low), *data, *[None] * (high - last)))


def _traced(image: Image, site: Site) -> Iterator[Rival]:
    """The call at a function's entry that ftrace owns, where a site overlaps it."""
    ends = [next((symbol.address for symbol in image.symbols.named(name)), None) for name in _MCOUNT_ENDS]
    if image.placement is not None or not image.kernel or None in ends:
        return
    start, stop = (end or 0 for end in ends)
    if not 0 < stop - start <= _LARGEST_LIST or image.offset_of(start, stop - start) is None:
        return
    listed = image.read_at(start, stop - start)
    for address in range(site.address - x86.CALL_SIZE + 1, site.address + site.instruction.length):
        if listed.find(address.to_bytes(elf64.POINTER_SIZE, "little")) % elf64.POINTER_SIZE == 0:
            yield Rival("__mcount_loc", address, x86.CALL_SIZE, _FTRACE_EFFECT)


def _placements(located: Located, policy: Policy, site: Site) -> tuple[int, int] | None:
    """At how many of the places that an object's section allows the site is direct, and how many there are."""
    if not site.alignment:
        return None
    places = x86.placements(site.address, site.alignment, policy.line)
    verdicts = judge_for(located, policy)(site._replace(address=place, alignment=0) for place in places)
    return sum(verdict.answer is Answer.DIRECT for verdict in verdicts), len(verdicts)


def _changes(image: Image, located: Located, policy: Policy, site: Site, verdict: Verdict) -> Iterator[Change]:
    """What would make it direct: tried out, as far as it is a matter of the place."""
    if verdict.answer is Answer.DIRECT:
        return
    judge = judge_for(located, policy)
    if verdict.answer is Answer.UNDECIDED:
        # Aligned like that, the section begins at a multiple, and the site lies where its offset says.
        sizes = [1 << bit for bit in range(site.alignment.bit_length() - 1, policy.line.bit_length())]
        placed = judge(site._replace(address=site.offset, alignment=size) for size in sizes)
        enough = next((size for size, one in zip(sizes, placed, strict=True) if one.answer is Answer.DIRECT), None)
        if enough:
            yield Change(f"with its section aligned to {enough} bytes it would be direct")
        else:
            yield from _first_padding(judge, policy, site, sizes)
    else:
        yield from _padding(judge(_moved(site, policy, site.address)))
    flags = flags_for(verdict.reason, site.instruction.form, policy, kernel=image.kernel)
    if flags is not None:
        yield Change(*flags)


def _first_padding(judge: Judge, policy: Policy, site: Site, sizes: Iterable[int]) -> Iterator[Change]:
    """The padding that does it with the least alignment of the section, which grows only where it must."""
    for size in sizes:
        change = next(_padding(judge(_moved(site, policy, site.offset, size))), None)
        if change:
            aligned = "" if size == site.alignment else f", with its section aligned to {size} bytes"
            yield Change(f"{change.how}{aligned}")
            return


def _moved(site: Site, policy: Policy, address: int, alignment: int = 0) -> Iterator[Site]:
    """The site at each place of a line from an address on."""
    return (site._replace(address=address + padding, alignment=alignment) for padding in range(policy.line))


def _padding(verdicts: Sequence[Verdict]) -> Iterator[Change]:
    direct = [number for number, verdict in enumerate(verdicts) if verdict.answer is Answer.DIRECT]
    if direct and direct[0]:
        back = len(verdicts) - direct[-1]
        yield Change(f"{counted(direct[0], 'byte')} more of code before it, or {counted(back, 'byte')} less")


def _state(image: Image, located: Located, key: Key) -> State:
    home = key.trampoline
    places = {key.slot.value} | ({home.destination} if home and home.destination is not None else set())
    names = image.names_at(place for place in places if place)
    target = located.target_of(key, names)
    destination = ""
    if home is not None and home.destination is not None:
        destination = names.get(home.destination) or image.where(home.destination)
    coherent, remark = _coherence(located, key, target.kind)
    return State(key, target, coherent, remark, target.name, destination)


def _coherence(located: Located, key: Key, kind: TargetKind) -> tuple[bool | None, str]:
    home = key.trampoline
    if home is None:
        return None, "it has no trampoline in this file"
    if home.form is TrampolineForm.ELSEWHERE:
        return None, "its trampoline is in another file"
    if home.form is TrampolineForm.INDIRECT_JMP:
        same = home.slot == key.address
        return same, "the trampoline reads the key" if same else "the trampoline reads something else than the key"
    if kind is TargetKind.RUNTIME:
        return None, "what the key holds is only known at run time"
    if home.form is TrampolineForm.UNKNOWN:
        return False, "the trampoline's code is none that is known"
    if kind is TargetKind.NULL:
        same = home.form is TrampolineForm.RET or home.destination == located.dialect.return_thunk
        return same, "the key is NULL and the trampoline returns" if same else "the key is NULL, the trampoline jumps"
    same = home.destination == key.slot.value
    if kind is TargetKind.RET0 and home.form is TrampolineForm.CALL_RET:
        same = True
    return same, "the trampoline leads where the key does" if same else "the trampoline leads elsewhere than the key"


def _findings(located: Located, addresses: set[int]) -> tuple[Finding, ...]:
    return tuple(finding for finding in located.findings if finding.address in addresses)


def _key(image: Image, located: Located, look: Look, key: Key, *, thorough: bool) -> KeyStory:
    sites = [site for site in without_repeats(located) if site.key == key.address]
    verdicts = _judged(located, look.policy, sites)
    lines = source_lines(image, {site.address for site in sites})
    state = _state(image, located, key)
    type_, says = _type_of(image, look, state)
    known = _candidates(image, located, key) if thorough else None
    places = {key.address, *(site.address for site in sites)}
    if key.trampoline:
        places.add(key.trampoline.address)
    return KeyStory(
        state=state,
        sites=tuple(_key_sites(image, zip(sites, verdicts, strict=True), lines)),
        type=type_,
        type_source=says,
        candidates=None if known is None else known[0],
        open=known is None or known[1],
        findings=_findings(located, places),
    )


def _key_sites(image: Image, pairs: Iterable[tuple[Site, Verdict]], lines: dict[int, SourceLine]) -> Iterator[KeySite]:
    for site, verdict in pairs:
        function = image.symbols.function_at(site.address) or ""
        yield KeySite(site, verdict, function, lines.get(site.address))


def _type_of(image: Image, look: Look, state: State) -> tuple[str, str]:
    """The type of what the key leads to, or else of its trampoline, and which type data has it; else nothing."""
    key, target = state.key, state.target
    # What stands for NULL and for 0 is not of the key's type.
    wanted = [(target.name, target.address)] if target.kind is TargetKind.FUNCTION else []
    if key.trampoline:
        wanted.append((static_call.TRAMPOLINE_PREFIX + key.name, key.trampoline.address))
    try:
        for source in sources_of(image, look.aids.vmlinux):
            for name, address in wanted:
                found = source.type_of(name, address)
                if isinstance(found, Prototype):
                    return found.declared(key.name), source.name
    except StaticcallError:
        pass  # damaged type data is told where a patch rests on it
    return "", ""


def _candidates(image: Image, located: Located, key: Key) -> tuple[tuple[Candidate, ...], bool] | None:
    if image.placement is not None:
        return None
    from staticcall.locate.targets import locate_targets  # noqa: PLC0415 - imports numpy, 0.1 s

    known = locate_targets(image, located)[key.address]
    names = image.names_at(known.functions)
    return tuple(
        Candidate(names.get(address) or f"{address:#x}", source.value) for address, source in known.functions.items()
    ), known.open
