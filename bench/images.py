"""The figures of linked images: a report beside nm and objdump, a patch beside a copy."""

import sys
from pathlib import Path

from bench.measure import Figure, Runs, in_turn, say, shell, tool
from bench.synthetic import write_image
from tests.support.kernels import kernel

MEGABYTE = 1 << 20
GROWTH = (10_000, 100_000, 1_000_000)


def image_figures(folder: Path, rounds: int, *, with_objdump: bool) -> list[Figure]:
    """Measure and print; gives the figures."""
    vmlinux = kernel("6.12")
    say(f"{vmlinux.name}, {vmlinux.stat().st_size / MEGABYTE:.0f} MiB, {rounds} rounds")
    return _speed(vmlinux, folder, rounds, with_objdump=with_objdump) + _growth(folder, rounds)


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
        say(f"{name:<18} {measured}  peak {measured.peak / MEGABYTE:5.0f} MiB")
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
        say(f"{sites:>9,} sites    {measured[sites]}  peak {measured[sites].peak / MEGABYTE:5.0f} MiB")
    small, large = GROWTH[0], GROWTH[-1]
    each = {sites: (runs.median - start_up.median) / sites for sites, runs in measured.items()}
    # Linear is 1; the rest is for the noise of the machine.
    return [Figure(f"time per site, {large:,} sites / {small:,} sites", each[large] / each[small], 1.1)]
