"""The report for a person: the summary first, then why not the rest, then what is odd.

Plain text of stable columns, so that it can be compared and searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from staticcall.abi import elf64
from staticcall.errors import printable
from staticcall.model.change import Plan, Proof
from staticcall.model.image import NameSource
from staticcall.model.reasons import REASONS
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Finding
from staticcall.report.advice import advice_for
from staticcall.report.names import counted, share_line, shown

# Enough to see what matters on one screen; -v shows all.
_FEW_KEYS = 10
_FEW_FINDINGS = 20
_MOST_HEX = 24


def render_text(report: ImageReport, *, verbose: bool = False) -> Iterator[str]:
    """The report of one image."""
    for line in _image(report, verbose=verbose):
        yield printable(line.rstrip()) + "\n"


def _image(report: ImageReport, *, verbose: bool) -> Iterator[str]:
    summary = report.summary
    yield from head_of(report)
    if summary.sites:
        yield ""
        yield f"policy {report.policy.name.value}, cache line of {report.policy.line} bytes"
        for answer in (Answer.DIRECT, Answer.TRAMPOLINE, Answer.UNDECIDED):
            count = sum(n for (kind, _), n in summary.reasons.items() if kind == answer)
            if count or answer is not Answer.UNDECIDED:
                yield share_line(answer.value, count, summary.sites)
                yield from _reasons(report, answer)
        yield ""
        yield "forms"
        for form, count in summary.forms.items():
            yield share_line(form, count, summary.sites)
        yield share_line("(crossing a line)", summary.crossing, summary.sites)
        yield ""
        yield from _keys(report, verbose=verbose)
        yield from _advice(report)
    yield from _findings(report.findings, verbose=verbose)


def head_of(report: ImageReport) -> Iterator[str]:
    """What the file is, in lines: its path, then what is known of it."""
    image, located, summary = report.image, report.located, report.summary
    yield shown(image.path)
    kind = f"  {elf64.TYPE_NAMES[image.elf_type]} x86_64"
    release = located.dialect.release
    if release:
        kind += f", Linux {release[0]}.{release[1]}"
    if image.build_id:
        kind += f", build id {image.build_id}"
    yield kind
    if image.layers:
        yield f"  in {', in '.join(layer.label for layer in reversed(image.layers))}"
    if image.name_source.kind != "symtab":  # a file that names everything itself needs no word
        yield f"  {_named_by(image.name_source)}"
    table = located.table
    if table and image.placement:
        yield f"  table in {table.origin.removeprefix('section ')}"
    elif table:
        section = image.section_at(table.start)
        where = f" in {section.name}" if section else ""
        yield f"  table at {table.start:#x}{where} ({table.origin})"
    if image.placement and image.placement.predicted:
        yield "  cache lines foretold from where the kernel's loader puts the code"
    yield (
        f"  {summary.sites:,} sites, {summary.keys:,} keys ({summary.keys_used:,} with sites),"
        f" {len(located.trampolines):,} trampolines"
    )
    if summary.pinned is not None:
        yield f"  {counted(summary.pinned, 'site')} pinned by the patch that made it: no record leads them elsewhere"
    if report.sha256:
        yield f"  sha256 {report.sha256}"


def _named_by(source: NameSource) -> str:
    """Where the names are from, in words."""
    words = {
        "dynsym": "names from .dynsym, so of what is exported alone",
        "kallsyms": "names from kallsyms, the kernel's own list",
        "system-map": "names from the System.map",
        "debug-file": "names from the debug file",
        "none": "no names: neither symbols nor a debug file",
    }[source.kind]
    return words if source.path is None else f"{words} {shown(source.path)}"


def _reasons(report: ImageReport, answer: Answer) -> Iterator[str]:
    for (kind, reason), count in report.summary.reasons.items():
        if kind == answer:
            yield f"    {reason:<26}{count:>11,}    {REASONS[reason]}"


def _keys(report: ImageReport, *, verbose: bool) -> Iterator[str]:
    shown, others = keys_of(report, verbose=verbose)
    yield f"{'busiest keys' if others else 'keys':<40}{'sites':>9}{'direct':>9}   leads to"
    for name, sites, direct, target in shown:
        yield f"  {name:<38}{sites:>9,}{direct:>9,}   {target}"
    if others:
        yield f"  and {others:,} more (-v shows all)"


def keys_of(report: ImageReport, *, verbose: bool) -> tuple[list[tuple[str, int, int, str]], int]:
    """The keys with most sites, and how many more have some; all of them if `verbose`.

    Of each its name, the number of its sites, how many of these go direct, and what it leads to.
    """
    by_key = report.summary.by_key
    used = [(-sum(by_key[key.address]), key.name, key.address, key) for key in report.keys if key.address in by_key]
    used.sort()
    shown = [key for *_, key in (used if verbose else used[:_FEW_KEYS])]
    names = report.image.names_at(key.slot.value for key in shown)
    lines = []
    for key in shown:
        direct, others = by_key[key.address]
        lines.append((key.name, direct + others, direct, report.located.target_of(key, names).name))
    return lines, len(used) - len(shown)


def _advice(report: ImageReport) -> Iterator[str]:
    lines = list(advice_for(report))
    if lines:
        yield ""
        yield "what would make more sites direct"
        yield from (f"  {line}" for line in lines)


def _findings(findings: tuple[Finding, ...], *, verbose: bool) -> Iterator[str]:
    if not findings:
        return
    yield ""
    yield f"findings ({len(findings):,})"
    shown = few_of(findings, verbose=verbose)
    for finding in shown:
        yield f"  {finding.severity.value}: {finding.message} [{finding.code}]"
    if len(shown) < len(findings):
        yield f"  and {len(findings) - len(shown):,} more (-v shows all)"


def few_of(findings: Sequence[Finding], *, verbose: bool) -> Sequence[Finding]:
    """The findings that are shown: the first, or all of them if `verbose`."""
    return findings if verbose else findings[:_FEW_FINDINGS]


def render_plan(plan: Plan, *, verbose: bool = False) -> Iterator[str]:
    """What a patch changes, key by key."""
    moved = [change for change in plan.changes if change.before != change.after]
    bound = sum(change.before == change.after and change.pinned is None for change in plan.changes)
    for change in moved:
        yield (
            f"  {change.key.name}: {change.before.name} -> {change.after.name},"
            f" {counted(change.direct, 'site')} direct, {change.by_trampoline:,} by trampoline\n"
        )
        if change.types:
            yield f"    {change.types}\n"
    if bound:
        sites = sum(change.direct for change in plan.changes if change.before == change.after and change.pinned is None)
        targets = "its present target" if bound == 1 else "their present targets"
        yield f"  {counted(bound, 'key')} bound to {targets}, {counted(sites, 'site')} direct\n"
    for change in plan.changes:
        if change.pinned is not None:
            left = change.direct + change.by_trampoline - change.pinned
            pinned = counted(change.pinned, "site")
            yield f"  {change.key.name}: {pinned} pinned to {change.after.name}, {left:,} left to follow the key\n"
            if change.types and change.before == change.after:
                yield f"    {change.types}\n"
    for name in plan.undefined:
        yield f"  {name} is not in this object, which now refers to it\n"
    if verbose:
        for edit in plan.edits:
            what = f"{edit.kind.value} {edit.key}".rstrip()
            yield f"  {edit.file_offset:#010x} {_hex(edit.old)} -> {_hex(edit.new)} {what}\n"
    size = sum(len(edit.new) for edit in plan.edits)
    yield f"  {counted(len(plan.edits), 'edit')}, {counted(size, 'byte')}\n"


def _hex(data: bytes) -> str:
    """Bytes in hex, unless they are the rest of a file."""
    return data.hex() if 0 < len(data) <= _MOST_HEX else counted(len(data), "byte")


def render_proof(proof: Proof) -> Iterator[str]:
    """What the verifier established."""
    forms = ", ".join(f"{count:,} {form}" for form, count in sorted(proof.sites.items())) or "none"
    yield (
        f"verified: {proof.compared:,} bytes compared; changed sites: {forms};"
        f" changed trampolines: {proof.trampolines:,}; changed keys: {proof.keys:,}"
        f"{f'; replaced records: {proof.records:,}' if proof.records else ''}\n"
    )
    yield from (f"  {remark}\n" for remark in proof.remarks)
