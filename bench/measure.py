"""Whole processes, timed in turn: a machine that slows down slows all of them down."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple


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


def run(command: Sequence[str], prepare: Callable[[], None] | None = None) -> tuple[float, float, int]:
    """Run one cold process, its output thrown away; gives wall and processor seconds and peak memory in bytes.

    What `prepare` does before it is not measured.
    """
    if prepare is not None:
        prepare()
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def in_turn(
    commands: Mapping[str, Sequence[str]], rounds: int, prepare: Mapping[str, Callable[[], None]] | None = None
) -> dict[str, Runs]:
    """Run all commands once to warm the page cache, then each once per round, after what `prepare` has for it."""
    before = prepare or {}
    for name, command in commands.items():
        run(command, before.get(name))
    runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command, before.get(name)))
    return {
        name: Runs(wall, processor, max(peaks))
        for name, measured in runs.items()
        for wall, processor, peaks in [tuple(zip(*measured, strict=True))]
    }


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
