"""read -> locate -> classify -> report."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.classify.ladders import classify
from staticcall.locate.linked import locate
from staticcall.model.report import ImageReport
from staticcall.model.select import select_keys
from staticcall.model.sites import Judge, Located, Policy, Site, TargetKind, Verdict
from staticcall.read.image import open_image
from staticcall.read.source import sha256_of
from staticcall.report.build import build_report


class Look(NamedTuple):
    """How to look at an image; `keys` is a glob, `table` START:STOP, `hashed` asks for the file's SHA-256."""

    policy: Policy = Policy()
    keys: str | None = None
    table: str | None = None
    scan: bool = False
    hashed: bool = False


@contextmanager
def report_image(path: Path, look: Look, name: Path | None = None) -> Iterator[ImageReport]:
    """Report on one file; renderers may still read from it, so the report is good inside the `with` block.

    `name` is what the report calls the file instead of its path.
    """
    with open_image(path, name) as image:
        # Every header and table was checked against the file's size; contents are still in the file.
        located = locate(image, table=look.table, scan=look.scan)
        # Every site lies in the file, and every record has exactly one site.
        keys = select_keys(located.keys.values(), look.keys)
        selected = {key.address for key in keys}
        sites = tuple(site for site in located.sites if look.keys is None or site.key in selected)
        verdicts = judge_for(located, look.policy)(sites)
        # Every selected site has exactly one verdict.
        sha256 = sha256_of(path) if look.hashed else None
        yield build_report(image, located, look.policy, sites, verdicts, keys, sha256=sha256)


def judge_for(located: Located, policy: Policy) -> Judge:
    """The classifier for one image and policy."""
    kinds = {address: located.kind_of(key) for address, key in located.keys.items()}

    def judge(sites: Iterable[Site], target: TargetKind | None = None) -> list[Verdict]:
        def target_of(key: int | None) -> TargetKind:
            return target or kinds.get(key or 0, TargetKind.FUNCTION)

        return classify(
            sites, policy=policy, dialect=located.dialect, trampolines=located.trampolines, target_of=target_of
        )

    return judge
