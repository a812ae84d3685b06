"""Print every figure that the project promises, beside its peer and its limit; exit with 1 where one is missed.

python -m bench            all of them, seven rounds; some four minutes
python -m bench --rounds 3 --skip-objdump
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.measure import Runs, in_turn, shell, tool
from bench.synthetic import write_image
from tests.support.kernels import kernel

MEGABYTE = 1 << 20
GROWTH = (10_000, 100_000, 1_000_000)


class Figure(NamedTuple):
    """One promise: a ratio of medians (or a size) and the most that it may be."""

    name: str
    measured: float
    limit: float

    def __str__(self) -> str:
        verdict = "ok" if self.measured <= self.limit else f"MISSED by {self.measured / self.limit - 1:.0%}"
        return f"{self.name:<62} {self.measured:8.3f}   at most {self.limit:7.3f}   {verdict}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-objdump", action="store_true", help="leave the slowest peer out")
    options = parser.parse_args()
    vmlinux = kernel("6.12")
    _say(f"{vmlinux.name}, {vmlinux.stat().st_size / MEGABYTE:.0f} MiB, {options.rounds} rounds\n")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="staticcall-bench-") as folder:
        figures += _speed(vmlinux, Path(folder), options.rounds, with_objdump=not options.skip_objdump)
        figures += _growth(Path(folder), options.rounds)
    _say("")
    for figure in figures:
        _say(str(figure))
    sys.exit(any(figure.measured > figure.limit for figure in figures))


def _speed(vmlinux: Path, folder: Path, rounds: int, *, with_objdump: bool) -> list[Figure]:
    commands = {
        # Where the time of a small run goes: the interpreter, the library, the tool.
        "python": [sys.executable, "-c", "pass"],
        "import click": [sys.executable, "-c", "import click"],
        "--version": tool("--version"),
        "nm": ["nm", str(vmlinux)],
        "report": tool("report", vmlinux),
        "report --scan": tool("report", "--scan", vmlinux),
        "dd conv=fsync": ["dd", f"if={vmlinux}", f"of={folder / 'copy'}", "bs=1M", "conv=fsync", "status=none"],
        "patch --bind -o": tool("patch", vmlinux, "--bind", "-o", folder / "bound"),
    }
    if with_objdump:
        commands["objdump | grep"] = shell(f"objdump -d '{vmlinux}' | grep __SCT__")
    runs = in_turn(commands, rounds)
    for name, measured in runs.items():
        _say(f"{name:<18} {measured}  peak {measured.peak / MEGABYTE:5.0f} MiB")
    report = runs["report"].median
    figures = [
        Figure("report / nm", report / runs["nm"].median, 0.75),
        Figure("report: peak memory in MB", runs["report"].peak / 1e6, 120),
        Figure(
            "patch -o / (1.5 dd + report)",
            runs["patch --bind -o"].median / (1.5 * runs["dd conv=fsync"].median + report),
            1,
        ),
    ]
    if with_objdump:
        objdump = runs["objdump | grep"].median
        figures += [
            Figure("report / objdump -d | grep", report / objdump, 1 / 25),
            Figure("report --scan / objdump -d | grep", runs["report --scan"].median / objdump, 1 / 10),
        ]
    return figures


def _growth(folder: Path, rounds: int) -> list[Figure]:
    """Time per site beyond start-up must not grow with the number of sites."""
    start_up = in_turn({"start-up": tool("--version")}, rounds)["start-up"]
    measured: dict[int, Runs] = {}
    for sites in GROWTH:
        path = folder / f"{sites}-sites"
        write_image(path, sites)
        measured[sites] = in_turn({"report": tool("report", path)}, rounds)["report"]
        _say(f"{sites:>9,} sites    {measured[sites]}  peak {measured[sites].peak / MEGABYTE:5.0f} MiB")
    small, large = GROWTH[0], GROWTH[-1]
    each = {sites: (runs.median - start_up.median) / sites for sites, runs in measured.items()}
    # Linear is 1; the rest is for the noise of the machine.
    return [Figure(f"time per site, {large:,} sites / {small:,} sites", each[large] / each[small], 1.1)]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
