"""Many files in one report: their counts added up, and how that is shown to a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TypeVar

from staticcall.errors import printable
from staticcall.model.container import Layer
from staticcall.model.image import NameSource
from staticcall.model.reasons import REASONS
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Policy, Severity
from staticcall.model.tree import MOST_BUSY, NO_STATIC_CALLS, Example, FileCount, Survey, Totals
from staticcall.report.names import counted, share_line, shown

_SEVERITIES = tuple(severity.value for severity in Severity)
_Name = TypeVar("_Name")


def totals_of(report: ImageReport) -> Totals:
    """The counts of one file, which is the only one of `busiest` whether it has sites or not."""
    image, summary, path = report.image, report.summary, shown(report.image.path)
    findings: dict[tuple[str, str], Example] = {}
    for finding in report.findings:
        if finding.code != NO_STATIC_CALLS:
            what = finding.severity.value, finding.code
            known = findings.get(what)
            findings[what] = known._replace(times=known.times + 1) if known else Example(1, path, finding.message)
    bad = sum(example.times for (severity, _), example in findings.items() if severity != Severity.NOTE.value)
    line = FileCount(path, summary.sites, summary.direct, summary.keys, bad)
    return Totals(
        read=1,
        with_calls=int(all(finding.code != NO_STATIC_CALLS for finding in report.findings)),
        sites=summary.sites,
        with_sites=int(summary.sites > 0),
        crossing=summary.crossing,
        reasons=summary.reasons,
        forms=summary.forms,
        keys=frozenset(key.name for key in report.keys),
        findings=findings,
        busiest=(line,),
        names={image.name_source.kind: 1},
        layers=_labels(image.layers),
    )


def counts_without_calls(path: Path, names: NameSource, layers: Iterable[Layer]) -> Totals:
    """The counts of a file that has no static calls."""
    line = FileCount(shown(path), 0, 0, 0, 0)
    return Totals(read=1, busiest=(line,), names={names.kind: 1}, layers=_labels(layers))


def _labels(layers: Iterable[Layer]) -> Mapping[str, int]:
    return dict.fromkeys((layer.label for layer in layers), 1)


def merged(parts: Iterable[Totals]) -> Totals:
    """The counts of all parts together; their examples are those of the first part that has one."""
    parts = tuple(parts)
    findings: dict[tuple[str, str], Example] = {}
    for part in parts:
        for what, example in part.findings.items():
            known = findings.get(what)
            findings[what] = known._replace(times=known.times + example.times) if known else example
    return Totals(
        read=sum(part.read for part in parts),
        with_calls=sum(part.with_calls for part in parts),
        skipped=sum(part.skipped for part in parts),
        failed=sum(part.failed for part in parts),
        with_sites=sum(part.with_sites for part in parts),
        sites=sum(part.sites for part in parts),
        crossing=sum(part.crossing for part in parts),
        reasons=_added(part.reasons for part in parts),
        forms=_added(part.forms for part in parts),
        keys=frozenset().union(*(part.keys for part in parts)),
        findings=findings,
        busiest=tuple(sorted(chain.from_iterable(part.busiest for part in parts), key=_by_sites)[:MOST_BUSY]),
        names=_added(part.names for part in parts),
        layers=_added(part.layers for part in parts),
    )


def _by_sites(line: FileCount) -> tuple[int, str]:
    return -line.sites, line.path


def _added(counts: Iterable[Mapping[_Name, int]]) -> Mapping[_Name, int]:
    total: Counter[_Name] = Counter()
    for count in counts:
        if count:
            total.update(count)
    return dict(total)


def render_totals(title: str, survey: Survey, policy: Policy) -> Iterator[str]:
    """The summary over all files of some trees."""
    for line in _totals(title, survey, policy):
        yield printable(line.rstrip()) + "\n"


def _totals(title: str, survey: Survey, policy: Policy) -> Iterator[str]:
    totals = survey.totals
    if survey.lines:
        yield f"{'sites':>9}{'direct':>9}{'keys':>7}{'findings':>10}   file"
        for path, *counts in survey.lines:
            sites, direct, keys, findings = counts
            yield f"{sites:>9,}{direct:>9,}{keys:>7,}{findings:>10,}   {path}"
        yield ""
    yield title
    yield from about_files(totals)
    if totals.sites:
        yield ""
        yield f"policy {policy.name.value}, cache line of {policy.line} bytes"
        yield from _verdicts(totals)
        yield ""
        yield "forms"
        for form, count in sorted(totals.forms.items(), key=most_first):
            yield share_line(form, count, totals.sites)
        yield share_line("(crossing a line)", totals.crossing, totals.sites)
        yield ""
        busiest = [line for line in totals.busiest if line.sites]
        more = totals.with_sites - len(busiest)
        yield f"{'files with most sites' if more else 'files with sites':<22}{'sites':>9}{'direct':>9}{'keys':>7}"
        for line in busiest:
            yield f"{'':<22}{line.sites:>9,}{line.direct:>9,}{line.keys:>7,}   {line.path}"
        if more:
            yield f"  and {more:,} more (-v shows all)"
    yield from _findings(totals)


def about_files(totals: Totals) -> Iterator[str]:
    """What was read and found, in lines."""
    none = totals.read - totals.with_calls
    yield f"  {counted(totals.read, 'file')} read: {totals.with_calls:,} with static calls, {none:,} without"
    others = [f"{counted(totals.skipped, 'other file')} skipped"] if totals.skipped else []
    others += [f"{totals.failed:,} failed"] if totals.failed else []
    if others:
        yield f"  {', '.join(others)}"
    if totals.layers:
        yield f"  unpacked: {_list(totals.layers)}"
    if totals.names:
        yield f"  names by: {_list(totals.names)}"
    yield f"  {counted(totals.sites, 'site')}, {counted(len(totals.keys), 'key')} by different names"


def _verdicts(totals: Totals) -> Iterator[str]:
    for answer in Answer:
        reasons = {reason: count for (kind, reason), count in totals.reasons.items() if kind == answer.value}
        if reasons or answer is not Answer.UNDECIDED:
            yield share_line(answer.value, sum(reasons.values()), totals.sites)
            for reason, count in sorted(reasons.items(), key=most_first):
                yield f"    {reason:<26}{count:>11,}    {REASONS[reason]}"


def _findings(totals: Totals) -> Iterator[str]:
    if not totals.findings:
        return
    count = sum(example.times for example in totals.findings.values())
    yield ""
    yield f"findings ({count:,})"
    for (severity, code), example in sorted(totals.findings.items(), key=worst_first):
        yield f"  {severity}: {example.times:,} {code}, as in {example.path}: {example.message}"


def worst_first(item: tuple[tuple[str, str], Example]) -> tuple[int, str]:
    """What sorts findings: the worst severity, then by code."""
    (severity, code), _ = item
    return _SEVERITIES.index(severity), code


def most_first(item: tuple[str, int]) -> tuple[int, str]:
    """What sorts counts: the most, then by name."""
    name, count = item
    return -count, name


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=most_first))
