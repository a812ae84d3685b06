"""What the HTML report says of one image, as values for its template: texts and numbers, nothing of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from staticcall.abi import elf64, x86
from staticcall.errors import printable
from staticcall.model.reasons import REASONS
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Severity, Site, Verdict
from staticcall.report.advice import advice_for
from staticcall.report.cache_lines import CROSSING, Drawn, pieces_of_map
from staticcall.report.edited import edited_places
from staticcall.report.instructions import instruction_text
from staticcall.report.names import Names, shown

# Rows that a browser lays out before a script takes over; the others are there, and hidden until then.
FIRST_ROWS: Final = 25
# Lines longer than this have so many offsets that a bar for each is none any more.
_MOST_BARS: Final = 128


class SiteRow(NamedTuple):
    """A row of the table of sites; `crosses` is None where it depends on the final address."""

    where: str
    function: str
    place: str
    key: str
    code: str
    text: str
    verdict: str
    reason: str
    crosses: bool | None
    source: str


class Share(NamedTuple):
    """A bar: its name, how many, of how many, its share in percent, and a sentence."""

    name: str
    number: int
    percent: float
    sentence: str = ""
    kind: str = ""


def printable_path(path: Path) -> str:
    """A path on one line."""
    return printable(shown(path))


def image_values(report: ImageReport) -> dict[str, Any]:
    """All that the template of an image asks for."""
    order = sorted(range(len(report.sites)), key=lambda number: report.sites[number].address)
    pairs = [(report.sites[number], report.verdicts[number]) for number in order]
    names = Names(report.image, report.sites, report.keys)
    rows = [_site(report, names, site, verdict) for site, verdict in pairs]
    crossing_of = Counter(site.key for (site, _), row in zip(pairs, rows, strict=True) if row.crosses)
    drawn = [
        Drawn(number, site, CROSSING if row.crosses else row.verdict)
        for number, ((site, _), row) in enumerate(zip(pairs, rows, strict=True))
    ]
    summary = report.summary
    return {
        "path": printable_path(report.image.path),
        "facts": list(_facts(report)),
        "summary": summary,
        "policy": report.policy.name.value,
        "line": report.policy.line,
        "verdicts": list(_verdicts(report)),
        "forms": [_share(name, count, summary.sites) for name, count in summary.forms.items()],
        "offsets": _offsets(report, pairs),
        "advice": list(advice_for(report)),
        "findings": [(f.severity.value, f.code, printable(f.message)) for f in report.findings],
        "severities": _severities(report),
        "pieces": list(pieces_of_map(report.image, drawn, report.policy.line)),
        "keys": list(_keys(report, crossing_of)),
        "functions": _functions(rows),
        "sites": rows,
        "sourced": any(row.source for row in rows),
        "edited": edited_places(report),
        "first": FIRST_ROWS,
    }


def _site(report: ImageReport, names: Names, site: Site, verdict: Verdict) -> SiteRow:
    function = names.function(site.address)
    name, _, offset = (function or "").rpartition("+")
    key = report.located.key_of(site)
    line = report.lines.get(site.address)
    destination = names.destination(site)
    length = site.instruction.length
    return SiteRow(
        where=site.where,
        function=printable(name),
        place=f"+{offset}" if function else "",
        key=printable(key.name) if key else "",
        code=report.image.in_file(site.file_offset, site.code).hex(" "),
        text=printable(instruction_text(site.instruction, site.code, destination)),
        verdict=verdict.answer.value,
        reason=verdict.reason,
        crosses=x86.crosses_anywhere(site.address, length, report.policy.line, site.alignment),
        source=f"{printable(line.path)}:{line.line}" if line else "",
    )


def _facts(report: ImageReport) -> Iterator[tuple[str, str]]:
    """What is known of the file as a whole, each with its name."""
    image, located = report.image, report.located
    kind = f"{elf64.TYPE_NAMES[image.elf_type]} x86_64"
    release = located.dialect.release
    if release:
        kind += f", Linux {release[0]}.{release[1]}"
    yield "Kind", kind
    if image.build_id:
        yield "Build id", image.build_id
    if report.sha256:
        yield "SHA-256", report.sha256
    if image.layers:
        yield "Inside of", ", ".join(layer.label for layer in reversed(image.layers))
    source = image.name_source
    yield "Names", source.kind if source.path is None else f"{source.kind} {printable_path(source.path)}"
    table = located.table
    if table:
        place = table.origin if image.placement else f"{table.start:#x} ({table.origin})"
        yield "Table", printable(place)
    if image.placement and image.placement.predicted:
        yield "Cache lines", "foretold from where the kernel's loader puts the code"
    yield "Trampolines", f"{len(located.trampolines):,}"
    if not report.lines and image.section_named((".debug_line",)):
        yield "Source lines", "left out here; explain and --format sarif tell them"
    if report.summary.pinned is not None:
        yield "Pinned sites", f"{report.summary.pinned:,}"


def _share(name: str, count: int, total: int, sentence: str = "", kind: str = "") -> Share:
    return Share(name, count, 100 * count / total if total else 0.0, sentence, kind)


def _verdicts(report: ImageReport) -> Iterator[tuple[Share, list[Share]]]:
    """Each answer, with the reasons for it."""
    summary = report.summary
    counts = {
        Answer.DIRECT: summary.direct,
        Answer.TRAMPOLINE: summary.trampoline,
        Answer.UNDECIDED: summary.undecided,
    }
    for answer, count in counts.items():
        reasons = [
            _share(reason, number, summary.sites, REASONS[reason], answer.value)
            for (kind, reason), number in summary.reasons.items()
            if kind == answer
        ]
        yield _share(answer.value, count, summary.sites, kind=answer.value), reasons


def _offsets(report: ImageReport, pairs: list[tuple[Site, Verdict]]) -> list[tuple[int, int, int, int]]:
    """How many sites begin at each offset in a line, and how many of them cross its end, with heights out of 100."""
    line = report.policy.line
    if line > _MOST_BARS:
        return []
    known = [site for site, _ in pairs if not site.alignment or site.alignment >= line]
    begin = Counter(site.address % line for site in known)
    cross = Counter(site.address % line for site in known if x86.crosses(site.address, site.instruction.length, line))
    most = max(begin.values(), default=1)
    return (
        [(offset, begin[offset], cross[offset], round(100 * begin[offset] / most)) for offset in range(line)]
        if known
        else []
    )


def _severities(report: ImageReport) -> list[tuple[str, int]]:
    counts = Counter(finding.severity for finding in report.findings)
    return [(severity.value, counts[severity]) for severity in Severity]


def _keys(report: ImageReport, crossing: Counter[int | None]) -> Iterator[tuple[object, ...]]:
    """Rows of the table of keys, those with most sites first."""
    by_key = report.summary.by_key
    keys = sorted(report.keys, key=lambda key: (-sum(by_key.get(key.address, (0, 0))), key.name, key.address))
    targets = report.image.names_at({key.slot.value for key in keys})
    for key in keys:
        direct, others = by_key.get(key.address, (0, 0))
        total = direct + others
        yield (
            printable(key.name),
            total,
            direct,
            others,
            crossing[key.address],
            round(100 * direct / total) if total else 0,
            printable(report.located.target_of(key, targets).name),
            printable(key.trampoline.label) if key.trampoline else "",
        )


def _functions(rows: list[SiteRow]) -> list[tuple[object, ...]]:
    """Rows of the table of functions, those with most sites first."""
    sites, direct, crossing = Counter[str](), Counter[str](), Counter[str]()
    keys: dict[str, set[str]] = {}
    for row in rows:
        sites[row.function] += 1
        direct[row.function] += row.verdict == Answer.DIRECT.value
        crossing[row.function] += row.crosses is True
        keys.setdefault(row.function, set()).add(row.key)
    return [
        (
            name or "(outside of any function)",
            total,
            direct[name],
            total - direct[name],
            crossing[name],
            round(100 * direct[name] / total),
            len(keys[name]),
        )
        for name, total in sorted(sites.items(), key=lambda item: (-item[1], item[0]))
    ]
