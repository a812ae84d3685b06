"""From located and judged sites to the counts that every renderer shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from staticcall.abi import x86
from staticcall.model.image import Image
from staticcall.model.report import ImageReport, Summary
from staticcall.model.sites import Answer, Key, Located, Policy, Site, Source, Verdict

if TYPE_CHECKING:
    from staticcall.model.change import Edit


def build_report(
    image: Image,
    located: Located,
    policy: Policy,
    sites: tuple[Site, ...],
    verdicts: list[Verdict],
    keys: tuple[Key, ...],
    *,
    edits: Sequence[Edit] | None = None,
) -> ImageReport:
    """Put the report of one image together; `sites` and `keys` are what was selected.

    With the `edits` that made the image, pinned sites are among them, and not merely missing.
    """
    findings = located.findings
    if findings and len(keys) < len(located.keys):
        # With a selection of keys, only what is about them.
        known = {key.address for key in keys} | {site.address for site in sites}
        known |= {key.trampoline.address for key in keys if key.trampoline}
        findings = tuple(f for f in findings if f.address is None or f.address in known)
    summary = _summarize(sites, verdicts, keys, policy.line)
    if edits is not None:
        summary = summary._replace(pinned=sum(Source.EDITS in site.sources for site in sites))
    return ImageReport(image, located, policy, sites, verdicts, keys, summary, findings, edits=tuple(edits or ()))


def _crosses(site: Site, line: int) -> bool:
    """Whether the instruction crosses a line, wherever its section is placed."""
    length = site.instruction.length
    if not site.alignment:
        return x86.crosses(site.address, length, line)
    return x86.crosses_anywhere(site.address, length, line, site.alignment) is True


def _summarize(sites: Sequence[Site], verdicts: Sequence[Verdict], keys: Sequence[Key], line: int) -> Summary:
    reasons = Counter(verdicts)
    answers: Counter[Answer] = Counter()
    for verdict, count in reasons.items():
        answers[verdict.answer] += count
    forms = Counter(site.instruction.form for site in sites)
    total_by_key = Counter(site.key for site in sites)
    others_by_key = Counter(
        site.key for site, verdict in zip(sites, verdicts, strict=True) if verdict.answer is not Answer.DIRECT
    )
    by_key = {key: (total, 0) for key, total in total_by_key.items()}
    for key, others in others_by_key.items():
        by_key[key] = (total_by_key[key] - others, others)
    return Summary(
        sites=len(sites),
        direct=answers[Answer.DIRECT],
        trampoline=answers[Answer.TRAMPOLINE],
        undecided=answers[Answer.UNDECIDED],
        crossing=sum(_crosses(site, line) for site in sites),
        forms={form.value: count for form, count in sorted(forms.items(), key=lambda pair: (-pair[1], pair[0]))},
        reasons={(verdict.answer.value, verdict.reason): count for verdict, count in reasons.most_common()},
        keys=len(keys),
        keys_used=sum(key.address in total_by_key for key in keys),
        by_key=by_key,
    )
