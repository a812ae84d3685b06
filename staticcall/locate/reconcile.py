"""The sources held against each other: what table and code say of the same site, and where they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

from staticcall.abi import static_call
from staticcall.model.form import Form
from staticcall.model.image import Image
from staticcall.model.sites import (
    Dialect,
    Finding,
    Key,
    Located,
    Severity,
    Site,
    Source,
    TargetKind,
    Trampoline,
    TrampolineForm,
)

# What a live key's sites are made of: branches, and before a linker has relaxed them those through the GOT.
_LIVE_TAIL = frozenset({Form.TAIL_JMP, Form.JCC})
_LIVE_CALL = frozenset({Form.CALL, Form.PREFIXED_CALL})
# When a kernel looks at the bytes of sites and of trampolines.
_AT_BOOT, _AT_LOAD, _AT_UPDATE = "at boot", "when the module is loaded", "when the static call is updated"
_UNLINKED = {Form.INDIRECT_CALL: Form.CALL, Form.INDIRECT_JMP: Form.TAIL_JMP}


def with_scan(sites: tuple[Site, ...], scanned: tuple[Site, ...], keys: dict[int, Key]) -> tuple[Site, ...]:
    """Join what the table lists with what the code shows: one site each, with both sources, strays behind."""
    by_address = {site.address: site for site in scanned}
    recorded = {site.address for site in sites}
    joined = [
        site._replace(sources=tuple(dict.fromkeys((*site.sources, Source.SCAN))))
        if site.address in by_address
        else site
        for site in sites
    ]
    owners = {key.trampoline.address: key.address for key in keys.values() if key.trampoline}
    strays = (
        site._replace(key=owners.get(site.instruction.destination or 0))
        for site in scanned
        if site.address not in recorded
    )
    return (*joined, *strays)


def findings_of(image: Image, located: Located) -> tuple[Finding, ...]:
    """Everything in the image that a person should know, in order of address within each kind."""
    if located.table is None and not located.sites and not located.trampolines:
        return (Finding("no-static-calls", Severity.NOTE, "the image has no static calls"),)
    findings: list[Finding] = []
    if located.table is None and image.placement is None:
        findings.append(Finding("no-table", Severity.WARNING, "the image has trampolines and no table of sites"))
    elif located.table is None and located.sites:
        message = "the object has no table of sites: annotate makes one, and until then patch leaves sites alone"
        findings.append(Finding("no-table", Severity.NOTE, message))
    findings += _about_trampolines(image, located)
    incoherent = [key for key in located.keys.values() if key.trampoline and not coherent(located, key, key.trampoline)]
    odd = list(_odd_sites(image, located))
    names: Mapping[int, str] = {}
    if incoherent or odd:
        names = image.names_at(key.slot.value for key in located.keys.values())
    findings += (_about_key(located, key, names) for key in incoherent)
    for site, in_code in odd:
        findings += _about_site(image, located, site, names, in_code=in_code)
    findings += _about_overlaps(located)
    return tuple(findings)


def _odd_sites(image: Image, located: Located) -> Iterator[tuple[Site, bool]]:
    """The sites that need a second look, each with whether it lies in code.

    Nearly every site is a recorded call or jump to its own key's trampoline, and nothing can be said about it.
    """
    code = {section.name for section in image.sections if section.executable} or {""}
    own = {address: key.trampoline.address for address, key in located.keys.items() if key.trampoline}
    for site in located.sites:
        record, _, _, section, _, _, key, flags, (form, _, _, destination, _), _, _ = site
        in_code = section in code
        plain = _PLAIN.get(form) == flags and destination == own.get(key or 0)
        if not plain or (record is None and located.table) or not in_code:
            yield site, in_code


# The forms that compilers make of a static call, with the flags that their records carry.
_PLAIN = {Form.CALL: 0, Form.TAIL_JMP: static_call.TAIL_FLAG}


def _about_trampolines(image: Image, located: Located) -> Iterator[Finding]:
    dialect = located.dialect
    generation = dialect.generation
    plain = (TrampolineForm.JMP, generation.signature)
    for trampoline in located.trampolines.values():
        _, address, form, _, _, _, code = trampoline
        if (form, code[static_call.SIGNATURE_OFFSET :]) == plain or form is TrampolineForm.ELSEWHERE:
            continue  # nearly all there are
        if form is TrampolineForm.UNKNOWN:
            stored = image.in_file(image.offset_of(address) or 0, code)
            outcome = f", at which {generation.outcome(_AT_UPDATE)}" if dialect.kernel else ""
            yield Finding(
                "unknown-trampoline",
                Severity.ERROR if dialect.kernel else Severity.WARNING,
                f"trampoline {trampoline.label} has bytes of no known generation: {stored.hex()}{outcome}",
                address,
            )
        elif dialect.kernel and not (generation.accepts(code, tail=True) and generation.signs(code)):
            yield _unaccepted_trampoline(image, dialect, trampoline)


def _unaccepted_trampoline(image: Image, dialect: Dialect, trampoline: Trampoline) -> Finding:
    generation, address = dialect.generation, trampoline.address
    stored = image.in_file(image.offset_of(address) or 0, trampoline.code)
    if generation.accepts(trampoline.code, tail=True):
        what = f"{stored.hex()}, not signed with {generation.signature.hex()}"
    else:
        what = f"{stored.hex()} ({trampoline.form})"
    message = f"trampoline {trampoline.label} is {what}, which this kernel does not accept: "
    return Finding("unaccepted-trampoline", Severity.ERROR, message + generation.outcome(_AT_UPDATE), address)


def _about_key(located: Located, key: Key, names: Mapping[int, str]) -> Finding:
    target = located.target_of(key, names)
    message = f"key {key.name} leads to {target.name} and its trampoline elsewhere"
    return Finding("incoherent-key", Severity.WARNING, message, key.address)


def coherent(located: Located, key: Key, trampoline: Trampoline) -> bool:
    """Whether a trampoline does what its key's `func` says."""
    slot, destination = key.slot, trampoline.destination
    if slot.symbol or slot.elsewhere or trampoline.form is TrampolineForm.ELSEWHERE:
        return True
    if trampoline.form is TrampolineForm.INDIRECT_JMP:
        return trampoline.slot == key.address
    if trampoline.form is TrampolineForm.RET:
        return not slot.value
    return destination is not None and destination == (slot.value or located.dialect.return_thunk)


def leads_to_trampoline(located: Located, site: Site) -> bool:
    """Whether the site still goes through a trampoline, its own or another."""
    return site.instruction.destination in located.trampolines


def _about_site(
    image: Image, located: Located, site: Site, names: Mapping[int, str], *, in_code: bool
) -> Iterator[Finding]:
    if Source.TABLE not in site.sources:
        if located.table:
            trampoline = located.trampolines.get(site.instruction.destination or 0)
            yield Finding(
                "unrecorded-site",
                Severity.WARNING,
                f"the {site.instruction.form} at {site.where} leads to trampoline"
                f" {trampoline.label if trampoline else site.instruction.slot} and has no record",
                site.address,
            )
        return
    if not in_code:
        yield Finding(
            "site-not-executable",
            Severity.ERROR,
            f"record {site.record} points into {site.section or 'a place'}, which holds no code",
            site.address,
        )
    key = located.key_of(site)
    if key is not None and key.live:
        if not _rewritable(site):
            yield Finding(
                "not-live",
                Severity.NOTE,
                f"record {site.record} points to a {site.instruction.form}, which no update at run time reaches",
                site.address,
            )
    elif not located.dialect.generation.accepts(site.code, tail=site.tail):
        yield _unaccepted_site(image, located.dialect, site)
    yield from _about_destination(image, located, site, names)


def _rewritable(site: Site) -> bool:
    """Whether the runtime would take the bytes at a site for a branch of its own."""
    form = site.instruction.form
    if site.alignment:
        form = _UNLINKED.get(form, form)
    return form in (_LIVE_TAIL if site.tail else _LIVE_CALL)


def _unaccepted_site(image: Image, dialect: Dialect, site: Site) -> Finding:
    """A site whose bytes no kernel, or not the one concerned, takes for one of its own."""
    code = image.in_file(site.file_offset, site.code)
    what = (
        f"record {site.record} points to {code.hex()} ({site.instruction.form}{', tail' if site.tail else ''}), which"
    )
    generation = dialect.generation
    if not dialect.kernel:
        return Finding("unaccepted-bytes", Severity.NOTE, f"{what} a kernel does not accept", site.address)
    some = " on every processor" if generation.by_processor(site.code, tail=site.tail) else ""
    outcome = generation.outcome(_AT_LOAD if dialect.module else _AT_BOOT)
    message = f"{what} this kernel does not accept{some}: {outcome}"
    return Finding("unaccepted-bytes", Severity.ERROR, message, site.address)


def _about_destination(image: Image, located: Located, site: Site, names: Mapping[int, str]) -> Iterator[Finding]:
    key = located.key_of(site)
    destination = site.instruction.destination
    if key is None or destination is None:
        return
    if located.by_another(key, site):
        other = located.trampolines[destination]
        yield Finding(
            "wrong-trampoline",
            Severity.ERROR,
            f"record {site.record} belongs to key {key.name} and its instruction leads to trampoline {other.label}",
            site.address,
        )
    elif stale(located, site, key):
        target = located.target_of(key, names).name
        yield Finding(
            "stale-site",
            Severity.WARNING,
            f"record {site.record} leads to {image.where(destination)} and its key {key.name} to {target}",
            site.address,
        )


def stale(located: Located, site: Site, key: Key) -> bool:
    """Whether a site that was patched does something else than its key says."""
    target = located.target_of(key)
    form, destination = site.instruction.form, site.instruction.destination
    if target.kind is TargetKind.RUNTIME or leads_to_trampoline(located, site):
        return False
    if target.kind is TargetKind.NULL and not target.address:
        returns = (located.dialect.return_thunk, located.dialect.plain_return)
        return form not in (Form.NOP, Form.RET) and (destination is None or destination not in returns)
    if target.kind is TargetKind.RET0 and form is Form.RET0:
        return False
    return destination != target.address


def _about_overlaps(located: Located) -> list[Finding]:
    recorded = (site for site in located.sites if site.record is not None)
    repeats: dict[tuple[int, int | None], list[Site]] = {}
    found: list[Finding] = []
    for before, after in pairwise(recorded):
        if before.address + before.instruction.length <= after.address:
            continue
        if before.address == after.address and before.key == after.key:
            repeats.setdefault((before.address, before.key), [before]).append(after)
        elif before.address == after.address:
            message = f"records {before.record} and {after.record} both list this site, for different keys"
            found.append(Finding("duplicate-record", Severity.ERROR, message, after.address))
        else:
            message = f"the instructions of records {before.record} and {after.record} overlap"
            found.append(Finding("overlapping-records", Severity.ERROR, message, after.address))
    found += (_about_repeats(located, *same) for same in repeats.values())
    return sorted(found, key=_address_of)


def _address_of(finding: Finding) -> int:
    return finding.address or 0


def _about_repeats(located: Located, first: Site, *others: Site) -> Finding:
    """Several records of one site: harmless, and what `--pin` makes."""
    key = located.key_of(first)
    what = "record repeats" if len(others) == 1 else "records repeat"
    pinned = "a site leaves it when it is" if len(others) == 1 else "sites leave them when they are"
    message = (
        f"{len(others):,} {what} record {first.record} of key {key.name if key else 'unknown'}, as {pinned} pinned"
    )
    return Finding("duplicate-record", Severity.NOTE, message, first.address)
