"""What static calls cost a build: each example, and a larger program, built with the tool and with one that is idle.

The idle tool copies what it is given, so the difference is the work of `annotate` and `patch` and nothing else.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.measure import Figure, say
from tests.support.examples import SYSTEMS, Project, System

FILES = 100
# One file in five has static calls: far more than the kernel's objects, of which one in twenty has.
CALLING = 20
CALLS = 20

_IDLE: Final = "1"


class Cost(NamedTuple):
    """The median wall seconds of a whole build with the tool and with an idle one."""

    seconds: float
    without: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes."""
        return self.seconds / self.without

    def __str__(self) -> str:
        more = self.seconds - self.without
        return f"{self.seconds:7.2f} s   {self.without:7.2f} s   {more:+6.2f} s   {self.ratio - 1:+6.0%}"


def build_figures(folder: Path, rounds: int) -> list[Figure]:
    """Measure and print; gives the figures. A build takes seconds, so few rounds do."""
    rounds = min(rounds, 3)
    say(f"{'whole builds':<38} {'with':>9}   {'without':>9}   {'more':>8}")
    for name, system in SYSTEMS.items():
        if missing := [tool for tool in system.needs if shutil.which(tool) is None]:
            say(f"{name:<38} not installed: {', '.join(missing)}")
            continue
        cost = _cost(_fresh(system, folder / f"builds-{name}"), system.build, rounds)
        say(f"{f'the example of {name}':<38} {cost}")
    large = _cost(lambda: _large(folder / "builds-large"), ("make",), rounds)
    say(f"{f'{FILES} files, {CALLING} with {CALLS} static calls each':<38} {large}")
    each = (large.seconds - large.without) / CALLING
    say(f"{1000 * each:.0f} ms an annotated object, {1000 * large.without / FILES:.0f} ms to compile one")
    # A file of some thirty lines compiles in a few hundredths of a second: real ones take longer, so this is the worst.
    return [Figure(f"make: {FILES} small files, {CALLING} of them annotated / none", large.ratio, 1.6)]


def _fresh(system: System, home: Path) -> Callable[[], Project]:
    """What makes an example's tree anew, configured."""

    def make() -> Project:
        shutil.rmtree(home / system.folder, ignore_errors=True)
        project = Project(system.folder, home)
        if system.configure:
            project.run(*system.configure)
        return project

    return make


def _cost(fresh: Callable[[], Project], build: tuple[str, ...], rounds: int) -> Cost:
    """Both builds in turn, each of a fresh tree."""
    spent: dict[str, list[float]] = {"": [], _IDLE: []}
    for _ in range(rounds):
        for idle, seconds in spent.items():
            seconds.append(fresh().seconds(*build, STATICCALL_IDLE=idle))
    return Cost(median(spent[""]), median(spent[_IDLE]))


def _large(home: Path) -> Project:
    """The example of Make with many more files, of which some call."""
    shutil.rmtree(home / "make", ignore_errors=True)
    project = Project("make", home)
    names = []
    for number in range(FILES):
        lines = ['#include "hash.h"', "#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
        calls = number * CALLING % FILES < CALLING
        for place in range(CALLS):
            work = "static_call(hash)((const unsigned char *)text, n)" if calls else "(unsigned)strlen(text) + n"
            lines.append(
                f"unsigned part{number}_{place}(const char *text, unsigned n) {{ return {work} * {place + 3}; }}"
            )
        names.append(f"part{number}.o")
        (project.folder / f"part{number}.c").write_text("\n".join(lines) + "\n", encoding="utf-8")
    project.edit("Makefile", "main.o work.o hash.o", " ".join(["main.o work.o hash.o", *names]))
    return project
