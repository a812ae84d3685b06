"""What is told about a file, before any renderer chose a form for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from staticcall.model.image import Image
from staticcall.model.lines import NO_LINES, SourceLine
from staticcall.model.sites import Finding, Key, Located, Policy, Site, Verdict

if TYPE_CHECKING:
    from staticcall.model.change import Edit


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
    """One image: what was located, judged and counted; `verdicts` has one entry for each of `sites`.

    `lines` leads from addresses of sites to their places in the source, where the form asks for them and the file
    knows; `edits` are those that made the file, where they were given.
    """

    image: Image
    located: Located
    policy: Policy
    sites: tuple[Site, ...]
    verdicts: list[Verdict]
    keys: tuple[Key, ...]
    summary: Summary
    findings: tuple[Finding, ...]
    sha256: str | None = None
    lines: Mapping[int, SourceLine] = NO_LINES
    edits: "tuple[Edit, ...]" = ()
