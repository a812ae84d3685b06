"""read -> locate -> integrity -> report: what run-time patching may do to an image, and whether memory agrees."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.abi import elf64, static_call
from staticcall.errors import UnsupportedError, UsageError, about
from staticcall.integrity.contents import Surroundings, allow
from staticcall.integrity.judge import inspect
from staticcall.integrity.place import Anchor, Landmarks, find_place
from staticcall.locate.linked import locate
from staticcall.model.image import Image
from staticcall.model.integrity import AllowList, Inspection, Judgement, KnownTargets, Observation, TargetSource
from staticcall.model.sites import Finding, Located, Severity
from staticcall.model.suggest import suggestion
from staticcall.pipeline import trace
from staticcall.read.core import open_core
from staticcall.read.image import open_image
from staticcall.report.allow import render_allow_list, render_inspection, render_inspection_text

__all__ = [
    "Allowed",
    "allowed_in",
    "checked_in",
    "is_bad",
    "render_allow_list",
    "render_inspection",
    "render_inspection_text",
]

_THUNK = "_return_thunk"
# The names in front of that: srso, its, srso_alias, retbleed, call_depth and the plain __x86.
_STEMS = ((_THUNK.encode(), tuple(range(1, 20))), (b"phys_base", (0,)), (b"skl_call_thunk_t", (0,)))
# What counts calls, copied in front of every function where the processor needs it: between these two symbols.
_COUNTING = ("skl_call_thunk_template", "skl_call_thunk_tail")
_MOST_COUNTING = 16
# The symbols of the padding in front of functions.
_PADDING = ("__pfx_", "__cfi_")
_SHORTEST_ANCHOR = 8


class Allowed(NamedTuple):
    """An image and its allow-list; the image is still open."""

    image: Image
    located: Located
    list: AllowList
    names: Mapping[int, str]


class _Seen(NamedTuple):
    """An open image, its static calls, and the addresses that --target adds to its keys."""

    image: Image
    located: Located
    named: Mapping[str, int]
    more: Mapping[int, tuple[int, ...]]


@contextmanager
def allowed_in(path: Path, table: str | None = None, more: Iterable[tuple[str, str]] = ()) -> Iterator[Allowed]:
    """The allow-list of an image; `more` are further targets, pairs of a key's and a function's name.

    Good inside the `with` block. Raises `UnsupportedError` for a relocatable object: its code has no addresses yet.
    """
    with _seen_in(path, table, more) as seen:
        yield _allowed(seen)


@contextmanager
def checked_in(
    path: Path,
    core_path: Path,
    *,
    table: str | None = None,
    more: Iterable[tuple[str, str]] = (),
    slide: int | None = None,
) -> Iterator[tuple[Allowed, Inspection]]:
    """The allow-list of an image as `allowed_in` has it, and how the memory in a core compares with it."""
    with _seen_in(path, table, more) as seen, about(core_path), open_core(core_path) as core:
        trace.doing("searching the memory")
        place = find_place(seen.image, _landmarks(seen), core, slide)
        trace.done(core_path, "found {} there", path)
        # The image's anchors are in memory where the place says; only now is the list worth its time.
        with about(path):
            allowed = _allowed(seen)
        trace.done(path, "allowed: {:,} ranges", len(allowed.list))
        trace.doing("comparing")
        observations = inspect(allowed.image, allowed.list, core, place)
        trace.done(core_path, "{:,} ranges compared", len(observations))
        # Every range has one judgement.
        yield allowed, Inspection(place, observations, tuple(_findings(allowed, observations)))


@contextmanager
def _seen_in(path: Path, table: str | None, more: Iterable[tuple[str, str]]) -> Iterator[_Seen]:
    with open_image(path) as image:
        if image.placement is not None:
            raise UnsupportedError(
                "is a relocatable object, whose code has no addresses yet", advice="give the linked file"
            )
        trace.opened(image)
        located = locate(image, table=table)
        trace.located(image, located)
        named = {symbol.name: symbol.address for symbol in image.symbols.matching(_STEMS)}
        yield _Seen(image, located, named, _more(image, located, more))


def _allowed(seen: _Seen) -> Allowed:
    from staticcall.locate.targets import locate_targets  # noqa: PLC0415 - imports numpy, 0.1 s

    image, located, named, more = seen
    targets = dict(locate_targets(image, located))
    for key, added in more.items():
        functions = dict.fromkeys(added, TargetSource.OPTION) | dict(targets[key].functions)
        targets[key] = targets[key]._replace(functions=functions)
    # Every key has an entry, and every function in it lies in the image's code.
    names = _names(image, located, targets)
    around = Surroundings(_thunks(image, named), _counting(named), names)
    # Every site and every trampoline that can change has one range, with what the file has among its contents.
    return Allowed(image, located, allow(image, located, targets, around), names)


def _thunks(image: Image, named: Mapping[str, int]) -> Mapping[int, str]:
    """The code that a return may be replaced by a jump to; variables and padding have names like it."""
    thunks = {}
    for name, address in named.items():
        section = image.section_at(address) if name.endswith(_THUNK) and not name.startswith(_PADDING) else None
        if section is not None and section.executable:
            thunks[address] = name
    return thunks


def _counting(named: Mapping[str, int]) -> int:
    start, stop = (named.get(name, 0) for name in _COUNTING)
    return stop - start if 0 < stop - start <= _MOST_COUNTING else 0


def _names(image: Image, located: Located, targets: Mapping[int, KnownTargets]) -> Mapping[int, str]:
    wanted = {address for known in targets.values() for address in known.functions}
    dialect = located.dialect
    wanted |= {address for address in (dialect.plain_return, dialect.nop_function) if address is not None}
    trampolines = {home.address: static_call.TRAMPOLINE_PREFIX + home.name for home in located.trampolines.values()}
    return image.names_at(wanted) | trampolines


def _more(image: Image, located: Located, more: Iterable[tuple[str, str]]) -> Mapping[int, tuple[int, ...]]:
    """Functions by the addresses of their keys; raises `UsageError` where there is no such key or function."""
    keys = {key.name: address for address, key in located.keys.items()}
    added: dict[int, tuple[int, ...]] = {}
    for name, function in more:
        if name not in keys:
            raise UsageError(f"there is no key {name}", advice=suggestion(name, keys, otherwise="see report"))
        found = [symbol.address for symbol in image.symbols.named(function) if symbol.type == elf64.STT_FUNC]
        if not found:
            advice = suggestion(function, image.symbols.function_names(), otherwise="--target takes KEY=FUNCTION")
            raise UsageError(f"there is no function {function}", advice=advice)
        added[keys[name]] = (*added.get(keys[name], ()), *found)
    return added


def _landmarks(seen: _Seen) -> Landmarks:
    """What the image is recognized by in memory: its build id, its banner, or what its file begins with."""
    image, located = seen.image, seen.located
    anchors = []
    if image.build_id:
        wanted = bytes.fromhex(image.build_id)
        for segment in image.segments:
            if segment.type == elf64.PT_NOTE and segment.file_size <= 1 << 16:
                data = image.source.read(segment.offset, segment.file_size)
                if (at := data.find(wanted)) >= 0 and len(wanted) >= _SHORTEST_ANCHOR:
                    anchors.append(Anchor(segment.address + at, wanted))
    banner = located.dialect.banner.encode("ascii", "replace")
    symbol = next(iter(image.symbols.named(static_call.BANNER_SYMBOL)), None) if image.kernel else None
    if symbol is not None and len(banner) >= _SHORTEST_ANCHOR:
        anchors.append(Anchor(symbol.address, banner))
    if not anchors:
        first = min((s for s in image.segments if s.type == elf64.PT_LOAD), key=lambda segment: segment.offset)
        size = min(elf64.HEADER.size, first.file_size)
        anchors.append(Anchor(first.address, image.source.read(first.offset, size)))
    return Landmarks(tuple(dict.fromkeys(anchors)), seen.named.get("phys_base"))


def is_bad(inspection: Inspection, fail_on: str) -> bool:
    """Whether a finding is as bad as a severity's name says, or worse; never for `never`."""
    ranks = [severity.value for severity in (Severity.NOTE, Severity.WARNING, Severity.ERROR)]
    bad = ranks[ranks.index(fail_on) :] if fail_on in ranks else []
    return any(finding.severity.value in bad for finding in inspection.findings)


def _findings(allowed: Allowed, observations: Iterable[Observation]) -> Iterator[Finding]:
    for one in observations:
        if one.judgement is Judgement.CORRUPT:
            yield _finding(allowed, one, "corrupt", Severity.ERROR)
        elif one.judgement is Judgement.UNKNOWN:
            yield _finding(allowed, one, "unknown-target", Severity.WARNING)
        elif one.judgement is Judgement.LEGAL and one.agrees is False:
            yield _finding(allowed, one, "not-as-key", Severity.WARNING)


def _finding(allowed: Allowed, one: Observation, code: str, severity: Severity) -> Finding:
    key = allowed.located.keys.get(one.range.key or 0)
    what = f"the {one.range.kind} of {key.name}" if key else f"a {one.range.kind}"
    place = f"{one.range.address:#x}"
    if one.judgement is Judgement.CORRUPT:
        return Finding(code, severity, f"{what} at {place} holds {one.data.hex()}", one.range.address)
    if one.judgement is Judgement.LEGAL:
        content = next(content for content in one.range.contents if content.data == one.data)
        leads = content.target or content.state.value
        return Finding(code, severity, f"{what} at {place} leads to {leads}, its key elsewhere", one.range.address)
    assert one.destination is not None
    says = {True: ", as its key does", False: ", its key elsewhere", None: ""}[one.agrees]
    leads = _named(allowed.image, one.destination)
    return Finding(code, severity, f"{what} at {place} leads to {leads}{says}", one.range.address)


def _named(image: Image, address: int) -> str:
    symbol = image.symbols.containing(address)
    if symbol is None:
        return f"{address:#x}, outside of the image" if not image.in_memory(address) else f"{address:#x}"
    return symbol.name if symbol.address == address else f"{symbol.name}+{address - symbol.address:#x}"
