"""read -> locate -> classify -> report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from staticcall.classify import classify
from staticcall.locate import locate
from staticcall.model.report import ImageReport
from staticcall.model.select import select_keys
from staticcall.model.sites import Located, Policy, Site, TargetKind, Verdict
from staticcall.read import open_image, sha256_of
from staticcall.report import build_report


class Look(NamedTuple):
    """How to look at an image; `keys` is a glob, `table` START:STOP, `hashed` asks for the file's SHA-256."""

    policy: Policy = Policy()
    keys: str | None = None
    table: str | None = None
    scan: bool = False
    hashed: bool = False


@contextmanager
def report_image(path: Path, look: Look) -> Iterator[ImageReport]:
    """Report on one file; renderers may still read from it, so the report is good inside the `with` block."""
    with open_image(path) as image:
        # Every header and table was checked against the file's size; contents are still in the file.
        located = locate(image, table=look.table, scan=look.scan)
        # Every site lies in the file, and every record has exactly one site.
        keys = select_keys(located.keys.values(), look.keys)
        judged = _judge_selected(located, look, {key.address: located.target_of(key).kind for key in keys})
        # Every selected site has exactly one verdict.
        sha256 = sha256_of(path) if look.hashed else None
        yield build_report(image, located, look.policy, judged, keys, sha256=sha256)


def _judge_selected(located: Located, look: Look, targets: dict[int, TargetKind]) -> tuple[tuple[Site, Verdict], ...]:
    judge = judge_for(located, look.policy)
    return tuple(
        (site, judge(site, targets.get(site.key or 0, TargetKind.FUNCTION)))
        for site in located.sites
        if look.keys is None or site.key in targets
    )


def judge_for(located: Located, policy: Policy) -> partial[Verdict]:
    """The classifier for one image and policy: (site, what its key leads to) -> verdict."""
    return partial(_judge, located, policy)


def _judge(located: Located, policy: Policy, site: Site, target: TargetKind) -> Verdict:
    by_trampoline = site.instruction.destination in located.trampolines
    return classify(site, policy=policy, target=target, by_trampoline=by_trampoline, dialect=located.dialect)
