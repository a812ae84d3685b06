"""The reports for a person at a terminal: what the plain text says, as wide as the terminal is, and in colour."""

from __future__ import annotations

from collections.abc import Mapping

from staticcall.model.diff import Diff
from staticcall.model.reasons import REASONS
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Policy
from staticcall.model.terminal import Terminal
from staticcall.model.tree import Survey
from staticcall.report.advice import advice_for
from staticcall.report.canvas import FAINT, NAME, Canvas, Cell, Column
from staticcall.report.diff import FEW, counts_of, parts_of, table_of
from staticcall.report.names import share
from staticcall.report.text import few_of, head_of, keys_of
from staticcall.report.totals import about_files, most_first, worst_first

_ANSWERS: Mapping[Answer, str] = {Answer.DIRECT: "green", Answer.TRAMPOLINE: "yellow", Answer.UNDECIDED: "magenta"}
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "cyan"}

_CHANGES = (("added", "green"), ("lost", "red"), ("changed", "yellow"))


def render_terminal(report: ImageReport, terminal: Terminal, *, verbose: bool = False) -> str:
    """The report of one image."""
    canvas, summary = Canvas(terminal), report.summary
    path, *facts = head_of(report)
    canvas.heading(path)
    for fact in facts:
        canvas.words(fact.strip(), indent=2, hang=4)
    if summary.sites:
        _verdicts(canvas, report.policy, summary.reasons, summary.sites)
        _forms(canvas, summary.forms, summary.crossing, summary.sites)
        _keys(canvas, report, verbose=verbose)
        _advice(canvas, report)
    _findings(canvas, report, verbose=verbose)
    return str(canvas)


def _verdicts(canvas: Canvas, policy: Policy, reasons: Mapping[tuple[str, str], int], total: int) -> None:
    canvas.blank()
    canvas.heading(f"policy {policy.name.value}, cache line of {policy.line} bytes")
    rows: list[tuple[Cell, ...]] = []
    for answer, style in _ANSWERS.items():
        own = sorted(((reason, n) for (kind, reason), n in reasons.items() if kind == answer), key=most_first)
        if own or answer is not Answer.UNDECIDED:
            count = sum(n for _, n in own)
            rows.append(
                ((answer.value, f"bold {style}"), f"{count:,}", share(count, total), (canvas.bar(count, total), style))
            )
            rows += [((f"  {reason}", ""), f"{n:,}", share(n, total), (REASONS[reason], FAINT)) for reason, n in own]
    canvas.table((Column(), Column(number=True), Column(number=True), Column(words=True)), rows)


def _forms(canvas: Canvas, forms: Mapping[str, int], crossing: int, total: int) -> None:
    canvas.blank()
    counts = [*sorted(forms.items(), key=most_first), ("(crossing a line)", crossing)]
    rows = [(name, f"{count:,}", share(count, total), (canvas.bar(count, total), "blue")) for name, count in counts]
    canvas.table((Column("form"), Column("sites", number=True), Column("share", number=True), Column()), rows)


def _keys(canvas: Canvas, report: ImageReport, *, verbose: bool) -> None:
    canvas.blank()
    keys, others = keys_of(report, verbose=verbose)
    columns = (
        Column("busiest key" if others else "key", NAME),
        Column("sites", number=True),
        Column("direct", number=True),
        Column("leads to"),
    )
    canvas.table(columns, ((key, f"{sites:,}", f"{direct:,}", target) for key, sites, direct, target in keys))
    _more(canvas, others)


def _advice(canvas: Canvas, report: ImageReport) -> None:
    lines = list(advice_for(report))
    if lines:
        canvas.blank()
        canvas.heading("what would make more sites direct")
        for line in lines:
            canvas.words(line, indent=2, hang=4, whole=True)


def _findings(canvas: Canvas, report: ImageReport, *, verbose: bool) -> None:
    findings = report.findings
    shown = few_of(findings, verbose=verbose)
    if findings:
        canvas.blank()
        canvas.heading(f"findings ({len(findings):,})")
    for finding in shown:
        severity = finding.severity.value
        canvas.labelled(f"{severity}:", _SEVERITIES[severity], f"{finding.message} [{finding.code}]")
    _more(canvas, len(findings) - len(shown))


def render_totals_terminal(title: str, survey: Survey, policy: Policy, terminal: Terminal) -> str:
    """The summary over all files of some trees."""
    canvas, totals = Canvas(terminal), survey.totals
    if survey.lines:
        canvas.table(
            (*_NUMBERS, Column("findings", number=True), Column("file", NAME)),
            ((*(f"{count:,}" for count in counts), path) for path, *counts in survey.lines),
        )
        canvas.blank()
    canvas.heading(title)
    for line in about_files(totals):
        canvas.words(line.strip(), indent=2, hang=4)
    if totals.sites:
        _verdicts(canvas, policy, totals.reasons, totals.sites)
        _forms(canvas, totals.forms, totals.crossing, totals.sites)
        canvas.blank()
        busiest = [line for line in totals.busiest if line.sites]
        more = totals.with_sites - len(busiest)
        title = "file with most sites" if more else "file with sites"
        canvas.table(
            (*_NUMBERS, Column(title, NAME)),
            ((f"{n.sites:,}", f"{n.direct:,}", f"{n.keys:,}", n.path) for n in busiest),
        )
        _more(canvas, more)
    if totals.findings:
        canvas.blank()
        canvas.heading(f"findings ({sum(example.times for example in totals.findings.values()):,})")
        for (severity, code), example in sorted(totals.findings.items(), key=worst_first):
            said = f"{example.times:,} {code}, as in {example.path}: {example.message}"
            canvas.labelled(f"{severity}:", _SEVERITIES[severity], said)
    return str(canvas)


_NUMBERS = (Column("sites", number=True), Column("direct", number=True), Column("keys", number=True))


def render_diff_terminal(diff: Diff, terminal: Terminal, *, verbose: bool = False) -> str:
    """The difference of two sides."""
    canvas = Canvas(terminal)
    if diff.equal:
        canvas.words(f"no difference: {counts_of(diff.new)}", hang=2)
        return str(canvas)
    canvas.labelled("old", "bold", f" {diff.old.path}: {counts_of(diff.old)}", indent=0)
    canvas.labelled("new", "bold", f" {diff.new.path}: {counts_of(diff.new)}", indent=0)
    canvas.blank()
    columns = (Column(), *(Column(title, style, number=True) for title, style in _CHANGES))
    rows = ((name, *("" if n is None else f"{n:,}" for n in numbers)) for name, numbers in table_of(diff))
    canvas.table(columns, rows)
    for title, lines in parts_of(diff):
        if lines:
            canvas.blank()
            canvas.heading(f"{title} ({len(lines):,})")
            shown = lines if verbose else lines[:FEW]
            for line in shown:
                canvas.words(line, indent=2, hang=4)
            _more(canvas, len(lines) - len(shown))
    return str(canvas)


def _more(canvas: Canvas, others: int) -> None:
    if others:
        canvas.words(f"and {others:,} more (-v shows all)", FAINT, indent=2, hang=4)
