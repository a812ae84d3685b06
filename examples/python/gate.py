"""A gate for a build: fail if more sites than before cannot be patched directly because they cross a cache line.

    python gate.py vmlinux --most 500

Prints the functions to look at, and exits with 1 above the limit; with the tool's own exit codes where a file cannot
be read. `-falign-functions=64`, or another order of functions, changes which sites cross.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import staticcall


def crossing(path: Path, line: int) -> Counter[str]:
    """How many sites of each function cross a line of so many bytes, and go by their trampoline for it."""
    with staticcall.open(path) as file:
        report = file.report(line=line)
    return Counter(site.function_name or site.section for site in report.sites if site.reason == "crosses-line")


def main() -> int:
    """Run the gate; returns the exit code."""
    options = argparse.ArgumentParser(description="Fail if too many static calls cross a cache line.")
    options.add_argument("file", type=Path)
    options.add_argument("--most", type=int, default=0, help="how many may")
    options.add_argument("--line", type=int, default=64, help="bytes of a cache line")
    given = options.parse_args()
    try:
        counts = crossing(given.file, given.line)
    except staticcall.StaticcallError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    total = counts.total()
    sys.stdout.write(f"{total} sites cross a line of {given.line} bytes, {given.most} may\n")
    if total <= given.most:
        return 0
    for function, count in counts.most_common(10):
        sys.stdout.write(f"{count:6}  {function}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
