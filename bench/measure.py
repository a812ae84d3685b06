"""Whole processes, timed in turn: a machine that slows down slows all of them down."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple


class Figure(NamedTuple):
    """One promise: a ratio of medians (or a size) and the most that it may be."""

    name: str
    measured: float
    limit: float

    def __str__(self) -> str:
        verdict = "ok" if self.measured <= self.limit else f"MISSED by {self.measured / self.limit - 1:.0%}"
        return f"{self.name:<62} {self.measured:8.3f}   at most {self.limit:7.3f}   {verdict}"


class Runs(NamedTuple):
    """The runs of one command: wall and processor seconds of each, and the largest peak memory in bytes."""

    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    peak: int

    @property
    def median(self) -> float:
        """The median wall time in seconds."""
        return median(self.seconds)

    def __str__(self) -> str:
        low, high = min(self.seconds), max(self.seconds)
        return f"{self.median:7.3f} s  ({low:.3f} to {high:.3f} in {len(self.seconds)} runs)"


# Linux counts as a child's memory what its parent had when it was started: a small parent tells more.
_PEAK: Final = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak_of(command: Sequence[str]) -> int:
    """Run one process, its output thrown away; gives its peak memory in bytes, or that of its largest child."""
    done = subprocess.run([sys.executable, "-c", _PEAK, *command], stdout=subprocess.PIPE, check=True)
    return int(done.stdout) * 1024


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run one cold process, its output thrown away; gives wall and processor seconds."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime


def in_turn(
    commands: Mapping[str, Sequence[str]], rounds: int, prepare: Mapping[str, Callable[[], None]] | None = None
) -> dict[str, Runs]:
    """Run each command once per round, after what `prepare` has for it and is not measured.

    A first round warms the page cache, and tells how much memory each takes.
    """
    before = prepare or {}
    peaks, runs = dict[str, int](), dict[str, list[tuple[float, float]]]()
    for turn in range(rounds + 1):
        for name, command in commands.items():
            before.get(name, _nothing)()
            if turn:
                runs.setdefault(name, []).append(run(command))
            else:
                peaks[name] = peak_of(command)
    return {
        name: Runs(wall, processor, peaks[name])
        for name, measured in runs.items()
        for wall, processor in [tuple(zip(*measured, strict=True))]
    }


def _nothing() -> None:
    pass


def shell(line: str) -> list[str]:
    """A pipeline as a command."""
    return ["sh", "-c", line]


def on_one_core(command: Sequence[str]) -> list[str]:
    """The same command, with one processor core for it and all its children."""
    return ["taskset", "-c", "0", *command]


def tool(*arguments: str | Path) -> list[str]:
    """The installed staticcall with these arguments."""
    return [str(Path(os.environ.get("VIRTUAL_ENV", ".venv")) / "bin" / "staticcall"), *map(str, arguments)]


def say(line: str) -> None:
    """Print a line at once: a bench takes minutes."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
