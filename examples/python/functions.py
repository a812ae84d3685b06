"""Which functions have static calls, how many, and how many of them each policy patches directly: a table in CSV.

    python functions.py vmlinux > functions.csv

The file is read once for all policies.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import staticcall

POLICIES = tuple(staticcall.PolicyName)


class Row(NamedTuple):
    """A function: its sites, the keys that they call, and how many of them each policy patches directly."""

    function: str
    sites: int
    keys: int
    direct: tuple[int, ...]


def rows(path: str) -> Iterator[Row]:
    """The functions of a file, those with most sites first."""
    with staticcall.open(path) as file:
        reports = [file.report(policy=policy) for policy in POLICIES]
    sites = Counter(_function(site) for site in reports[0].sites)
    keys = Counter(function for function, _ in {(_function(site), site.key) for site in reports[0].sites})
    direct = [
        Counter(_function(site) for site in report.sites if site.verdict is staticcall.Verdict.DIRECT)
        for report in reports
    ]
    for function, count in sorted(sites.items(), key=lambda item: (-item[1], item[0])):
        yield Row(function, count, keys[function], tuple(counts[function] for counts in direct))


def _function(site: staticcall.Site) -> str:
    return site.function_name or site.section


def main() -> None:
    """Write the table of the file that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: functions.py FILE")
    try:
        table = list(rows(sys.argv[1]))
    except staticcall.StaticcallError as error:
        sys.exit(str(error))
    writer = csv.writer(sys.stdout)
    writer.writerow(("function", "sites", "keys", *POLICIES))
    writer.writerows((row.function, row.sites, row.keys, *row.direct) for row in table)


if __name__ == "__main__":
    main()
