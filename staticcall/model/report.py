"""What is told about a file, before any renderer chose a form for it."""

from typing import NamedTuple

from staticcall.model.image import Image
from staticcall.model.sites import Finding, Key, Located, Policy, Site, Verdict


class Summary(NamedTuple):
    """The counts of one image. `reasons` counts (answer, reason) pairs, `by_key` sites per key address.

    `pinned` counts the sites that have no record any more, None where nobody said which they are.
    """

    sites: int
    direct: int
    trampoline: int
    undecided: int
    crossing: int
    forms: dict[str, int]
    reasons: dict[tuple[str, str], int]
    keys: int
    keys_used: int
    by_key: dict[int | None, tuple[int, int]]
    pinned: int | None = None


class ImageReport(NamedTuple):
    """One image: what was located, judged and counted; `verdicts` has one entry for each of `sites`."""

    image: Image
    located: Located
    policy: Policy
    sites: tuple[Site, ...]
    verdicts: list[Verdict]
    keys: tuple[Key, ...]
    summary: Summary
    findings: tuple[Finding, ...]
    sha256: str | None
