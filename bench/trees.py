"""The figure of whole trees: the report on all modules of a kernel, beside what unpacks them, on the same cores."""

import shlex
from importlib.util import find_spec
from pathlib import Path

from bench.measure import Figure, in_turn, say, shell, tool
from tests.support import kernels

MEGABYTE = 1 << 20
# What xargs gives to one of two processes at a time.
_AT_ONCE = 32
_LIMIT = 1.5


def tree_figures(folder: Path, rounds: int) -> list[Figure]:
    """Measure and print; gives the figures."""
    root = next(kernels.image(kernels.kernel(kernels.MODULES_SERIES)).glob("**/lib/modules/*"))
    modules = sorted(root.rglob("*.ko.xz"))
    names = folder / "names"
    names.write_bytes(b"\0".join(str(path).encode() for path in modules))
    liblzma = "the extra fast" if find_spec("lzma_mt") else "Python's own"
    size = sum(path.stat().st_size for path in modules) / MEGABYTE
    say(f"{len(modules):,} modules, {size:.0f} MiB as they are packed, {rounds} rounds, liblzma of {liblzma}")
    listed = f"xargs -0 -a {shlex.quote(str(names))}"
    commands = {}
    for jobs in (1, 2):
        cores = ["taskset", "-c", "0" if jobs == 1 else "0,1"]
        xz = shell(f"{listed} -P {jobs} -n {_AT_ONCE if jobs > 1 else len(modules)} xz -dc")
        commands[f"xz -dc, {jobs}"] = [*cores, *xz]
        commands[f"report -j {jobs}"] = [*cores, *tool("report", "-j", str(jobs), root)]
    runs = in_turn(commands, rounds)
    for name, measured in runs.items():
        say(f"{name:<18} {measured}  peak {measured.peak / MEGABYTE:5.0f} MiB")
    return [
        Figure(
            f"report on {len(modules):,} modules / xz -dc of them, {jobs} {'core' if jobs == 1 else 'cores'}",
            runs[f"report -j {jobs}"].median / runs[f"xz -dc, {jobs}"].median,
            _LIMIT,
        )
        for jobs in (1, 2)
    ]
