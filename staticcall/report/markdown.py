"""The report as Markdown with GitHub's tables, for a merge request or the summary of a build.

Short, whatever the input: a comment on GitHub holds 65,536 characters. So tables have their busiest rows alone, and
long names are cut. Names out of files are put in code spans, where nothing in them means anything.

An image is rendered as one line of JSON, of which `render_document` adds up what is needed of all.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from staticcall.abi import elf64
from staticcall.errors import printable
from staticcall.model.reasons import REASONS
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Policy, Severity
from staticcall.model.tree import NO_STATIC_CALLS
from staticcall.report.advice import advice_for
from staticcall.report.json import compact
from staticcall.report.names import common_folder, counted, share, shown
from staticcall.report.totals import most_first

MOST_FILES: Final = 20
MOST_KEYS: Final = 10
MOST_FINDINGS: Final = 15
MOST_FAILURES: Final = 5
# In characters; the escapes of the worst make six bytes of one.
_NAME: Final = 80
_MESSAGE: Final = 200


def render_image(report: ImageReport) -> Iterator[str]:
    """One image, as a line of JSON for `render_document`."""
    image, summary = report.image, report.summary
    used = [(key, *summary.by_key[key.address]) for key in report.keys if key.address in summary.by_key]
    used.sort(key=lambda one: (-one[1] - one[2], one[0].name))
    names = image.names_at(key.slot.value for key, *_ in used[:MOST_KEYS])
    targets = [report.located.target_of(key, names).name for key, *_ in used[:MOST_KEYS]]
    found = Counter(finding.severity.value for finding in report.findings)
    first = [[one.severity.value, one.code, one.message] for one in _worst(report)]
    line = {
        "path": shown(image.path),
        "kind": f"{elf64.TYPE_NAMES[image.elf_type]} x86_64",
        "build_id": image.build_id,
        "counts": dict(zip(_COUNTS, (summary.sites, summary.direct, summary.crossing, summary.keys), strict=True)),
        "reasons": [[answer, reason, count] for (answer, reason), count in summary.reasons.items()],
        "keys": [[key.name, direct + others, direct] for key, direct, others in used],  # the busiest first
        "targets": targets,
        "findings": [dict(found), first],
        "nothing": any(finding.code == NO_STATIC_CALLS for finding in report.findings),
        "advice": list(advice_for(report)),
    }
    yield compact(line) + "\n"


def render_failure(message: str) -> str:
    """A file that could not be read, as a line of JSON for `render_document`."""
    return compact({"failure": message}) + "\n"


_COUNTS: Final = ("sites", "direct", "crossing", "keys")


def _worst(report: ImageReport) -> Iterator[Any]:
    for severity in Severity:
        same = [finding for finding in report.findings if finding.severity is severity]
        yield from same[:MOST_FINDINGS]


def render_document(policy: Policy, images: Iterable[str]) -> Iterator[str]:
    """Rendered images as one document, in pieces."""
    everything = _Everything()
    for image in images:
        for line in image.split("\n")[:-1]:
            everything.add(json.loads(line))
    for line in everything.told(policy):
        yield line + "\n"


class _Everything:
    """What all images come to."""

    def __init__(self) -> None:
        self._files: list[tuple[int, int, int, str]] = []  # sites, direct, findings but for notes, path
        self._read = self._with_calls = 0
        self._counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._sites_of: Counter[str] = Counter()
        self._direct_of: Counter[str] = Counter()
        self._found: Counter[str] = Counter()
        self._findings: dict[str, list[tuple[str, str, str]]] = {severity.value: [] for severity in Severity}
        self._failed = 0
        self._failures: list[str] = []
        self._last: Mapping[str, Any] = {}
        self._root = ""  # the folder that all files are in, if it is not the working folder

    def add(self, image: Mapping[str, Any]) -> None:
        if "failure" in image:
            self._failed += 1
            self._failures += [image["failure"]][: MOST_FAILURES - len(self._failures)]
            return
        self._last = image
        self._read += 1
        self._with_calls += not image["nothing"]
        self._counts.update(image["counts"])
        self._reasons.update({(answer, reason): count for answer, reason, count in image["reasons"]})
        for name, sites, direct in image["keys"]:
            self._sites_of[name] += sites
            self._direct_of[name] += direct
        self._root = posixpath.dirname(image["path"]) if self._read == 1 else common_folder(self._root, image["path"])
        bad = sum(count for severity, count in image["findings"][0].items() if severity != Severity.NOTE.value)
        self._files.append((image["counts"]["sites"], image["counts"]["direct"], bad, image["path"]))
        if len(self._files) > 2 * MOST_FILES:
            self._files = sorted(self._files, key=_most_sites)[:MOST_FILES]
        if not image["nothing"]:
            self._add_findings(image)

    def _add_findings(self, image: Mapping[str, Any]) -> None:
        found, first = image["findings"]
        self._found.update(found)
        for severity, code, message in first:
            if len(self._findings[severity]) < MOST_FINDINGS:
                self._findings[severity].append((code, message, image["path"]))

    def told(self, policy: Policy) -> Iterator[str]:
        """All lines of the document."""
        if self._read == 1 and self._last["nothing"]:
            self._add_findings(self._last)  # among others it is no news that a file has none
        yield from self._head(policy)
        yield from self._failures_told()
        if self._counts["sites"]:
            yield ""
            yield from self._verdicts()
        yield from self._findings_told()
        if self._read > 1:
            yield from self._busiest_files()
        yield from self._busiest_keys()
        advice = self._last.get("advice") if self._read == 1 else ()
        if advice:
            yield from _folded("What would make more sites direct", [f"- {_code(line, _MESSAGE)}" for line in advice])

    def _head(self, policy: Policy) -> Iterator[str]:
        counts, one = self._counts, self._read == 1
        yield f"## Static calls in {_code(self._last['path'], _NAME, end=True) if one else f'{self._read:,} files'}"
        yield ""
        sites, direct = counts["sites"], counts["direct"]
        if sites:
            yield f"**{direct:,} of {counted(sites, 'site')} ({share(direct, sites)}) go direct**"
            yield f"under policy `{policy.name.value}` with cache lines of {policy.line} bytes."
            crossing = f"{counted(counts['crossing'], 'site')} cross{'es' if counts['crossing'] == 1 else ''} a line"
            # Two keys of one file may have the same name; of many files they are told by their names.
            keys, names = len(self._last["keys"] if one else self._sites_of), "" if one else " by different names"
            yield f"{crossing}; {counted(keys, 'key')}{names} {'has' if keys == 1 else 'have'} sites."
        else:
            yield "There are no sites."
        if one:
            build_id = self._last["build_id"]
            yield f"The file is {self._last['kind']}{f', build id {_code(build_id, _NAME)}' if build_id else ''}."
        elif self._read:
            yield f"{self._with_calls:,} of the {self._read:,} files have static calls."
            if self._root:
                yield f"They are in {_code(self._root, _NAME, end=True)}."

    def _failures_told(self) -> Iterator[str]:
        if self._failed:
            yield from ("", f"### Could not be read: {counted(self._failed, 'file')}", "")
            yield from (f"- {_code(message, _MESSAGE)}" for message in self._failures)
            yield from _more(self._failed - len(self._failures))

    def _below(self, path: str) -> str:
        """A path without the folder that all files are in."""
        return posixpath.relpath(path, self._root) if self._root else path

    def _verdicts(self) -> Iterator[str]:
        sites = self._counts["sites"]
        yield "| verdict | reason | sites | share | |"
        yield "|---|---|--:|--:|---|"
        for answer in Answer:
            reasons = {reason: count for (kind, reason), count in self._reasons.items() if kind == answer.value}
            total = sum(reasons.values())
            if total or answer is not Answer.UNDECIDED:
                yield f"| **{answer.value}** | | **{total:,}** | **{share(total, sites)}** | |"
            for reason, count in sorted(reasons.items(), key=most_first):
                yield f"| | `{reason}` | {count:,} | {share(count, sites)} | {REASONS[reason]} |"

    def _findings_told(self) -> Iterator[str]:
        total = sum(self._found.values())
        if not total:
            yield from ("", "No findings.") if self._read else ()
            return
        yield ""
        counts = (counted(self._found[one.value], one.value) for one in Severity if self._found[one.value])
        yield f"### Findings: {', '.join(counts)}"
        yield ""
        first = [(severity, *one) for severity, found in self._findings.items() for one in found][:MOST_FINDINGS]
        for severity, code, message, path in first:
            place = f" in {_code(self._below(path), _NAME, end=True)}" if self._read > 1 else ""
            yield f"- **{severity}** `{code}`{place}: {_code(message, _MESSAGE)}"
        yield from _more(total - len(first))

    def _busiest_files(self) -> Iterator[str]:
        files = [one for one in sorted(self._files, key=_most_sites) if one[0]][:MOST_FILES]
        rows = [
            f"| {_code(self._below(path), _NAME, end=True)} | {sites:,} | {direct:,} | {bad:,} |"
            for sites, direct, bad, path in files
        ]
        table = ["| file | sites | direct | warnings and errors |", "|---|--:|--:|--:|", *rows]
        yield from _folded("Files with most sites", table)

    def _busiest_keys(self) -> Iterator[str]:
        names = sorted(self._sites_of.items(), key=most_first)
        several = [[name, sites, self._direct_of[name]] for name, sites in names]
        every, targets = (self._last["keys"], self._last["targets"]) if self._read == 1 else (several, ())
        if not every:
            return
        table = [
            f"| key | sites | direct |{' leads to |' if targets else ''}",
            f"|---|--:|--:|{'---|' if targets else ''}",
        ]
        for index, (name, sites, direct) in enumerate(every[:MOST_KEYS]):
            target = f" {_code(targets[index], _NAME)} |" if targets else ""
            table.append(f"| {_code(name, _NAME)} | {sites:,} | {direct:,} |{target}")
        yield from _folded("Busiest keys", [*table, *_more(len(every) - MOST_KEYS)])


def _folded(title: str, lines: Sequence[str]) -> Iterator[str]:
    """Lines that are shown when somebody asks; Markdown inside of HTML needs the empty lines."""
    yield from ("", "<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>")


def _more(count: int) -> Iterator[str]:
    if count > 0:
        yield ""
        yield f"and {count:,} more"


def _code(text: str, most: int, *, end: bool = False) -> str:
    """Text as code, which no Markdown is looked for in, cut where it is too long; paths keep their `end`."""
    text = printable(text)
    if len(text) > most:
        text = f"…{text[1 - most :]}" if end else f"{text[: most - 1]}…"
    if text.strip() and not set(text) & {"`", "|"}:
        return f"`{text}`"
    escaped = "".join(c if c.isalnum() or not c.isascii() else f"&#{ord(c)};" for c in text)
    return f"<code>{escaped}</code>"


def _most_sites(one: tuple[int, int, int, str]) -> tuple[int, str]:
    return -one[0], one[3]
