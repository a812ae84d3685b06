"""From located and judged sites to the counts that every renderer shows."""

from __future__ import annotations

from collections import Counter, defaultdict

from staticcall.abi import x86
from staticcall.model.image import Image
from staticcall.model.report import ImageReport, JudgedSite, Summary
from staticcall.model.sites import Answer, Key, Located, Policy, Site, Verdict


def build_report(
    image: Image,
    located: Located,
    policy: Policy,
    judged: tuple[tuple[Site, Verdict], ...],
    keys: tuple[Key, ...],
    *,
    sha256: str | None = None,
) -> ImageReport:
    """Put the report of one image together; `judged` and `keys` are what was selected."""
    sites = tuple(
        JudgedSite(site, verdict, x86.crosses(site.address, site.instruction.length, policy.line))
        for site, verdict in judged
    )
    selected = {key.address for key in keys}
    known = {site.address for site, _ in judged}
    findings = tuple(
        finding
        for finding in located.findings
        # With a selection of keys, only what is about them; without one, everything.
        if len(selected) == len(located.keys)
        or finding.address is None
        or finding.address in selected
        or finding.address in known
    )
    return ImageReport(image, located, policy, sites, keys, _summarize(sites, keys), findings, sha256)


def _summarize(sites: tuple[JudgedSite, ...], keys: tuple[Key, ...]) -> Summary:
    reasons = Counter(judged.verdict for judged in sites)
    answers: Counter[Answer] = Counter()
    for verdict, count in reasons.items():
        answers[verdict.answer] += count
    forms = Counter(judged.site.instruction.form for judged in sites)
    by_key: defaultdict[int | None, list[int]] = defaultdict(lambda: [0, 0])
    for judged in sites:
        by_key[judged.site.key][judged.verdict.answer is not Answer.DIRECT] += 1
    return Summary(
        sites=len(sites),
        direct=answers[Answer.DIRECT],
        trampoline=answers[Answer.TRAMPOLINE],
        undecided=answers[Answer.UNDECIDED],
        crossing=sum(judged.crosses_line for judged in sites),
        forms={form.value: count for form, count in sorted(forms.items(), key=lambda pair: (-pair[1], pair[0]))},
        reasons={(verdict.answer.value, verdict.reason): count for verdict, count in reasons.most_common()},
        keys=len(keys),
        keys_used=sum(1 for key in keys if key.address in by_key),
        by_key={address: (direct, others) for address, (direct, others) in by_key.items()},
    )
