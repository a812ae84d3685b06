"""What static_call_update() takes in each protocol, beside what programs do without one: mprotect and a store."""

from itertools import product
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.measure import Figure, say
from bench.programs import FIXTURES, assemble_object, command, compile_object, link_program, runtime_source

SITES = (1, 100, 10_000)
REWRITING: Final = ("emulate", "torvalds", "lutomirski", "rel32", "block8")
OUT_OF_LINE: Final = "out-of-line"
PEERS: Final = ("mprotect-each", "mprotect-once")
_WAYS = (*REWRITING, OUT_OF_LINE, *PEERS)
_THREADS = (0, 2)
_MILLISECONDS = 100
_MICROSECOND = 1_000  # in nanoseconds


class _Case(NamedTuple):
    """What is updated, beside how many other threads, and how."""

    sites: int
    threads: int
    way: str


def build_updates(folder: Path, sites: int) -> Path:
    """Build the program with so many sites of one key into a folder.

    Raises `SystemExit` with the compiler's or the tool's words.
    """
    objects = [
        compile_object(FIXTURES / "updates.c", folder),
        compile_object(runtime_source(), folder),
        assemble_object(FIXTURES / "sites.S", folder / "sites.o", [f"SITES={sites}"], annotated=True),
    ]
    return link_program(objects, folder / f"updates-{sites}")


class Update(NamedTuple):
    """The nanoseconds of an update: those that passed, and those that the updating thread ran."""

    passed: int
    ran: int


def measure_updates(program: Path, way: str, threads: int, milliseconds: int) -> tuple[int, list[Update]]:
    """Run the program once: how many sites go straight to the target, and every update that it timed."""
    first, *lines = command(program, way, str(threads), str(milliseconds)).splitlines()
    return int(first), [Update(*map(int, line.split())) for line in lines]


def update_figures(folder: Path, rounds: int) -> list[Figure]:
    """Measure and print; gives the figures. Each round has a process for every protocol, in turn."""
    programs = {sites: build_updates(folder, sites) for sites in SITES}
    updates: dict[_Case, list[Update]] = {}
    for _ in range(min(rounds, 3)):
        for case in map(_Case._make, product(SITES, _THREADS, _WAYS)):
            direct, measured = measure_updates(programs[case.sites], case.way, case.threads, _MILLISECONDS)
            if direct != (0 if case.way == OUT_OF_LINE else case.sites):
                raise SystemExit(f"{case.way}: {direct} of {case.sites} sites go straight to the target")
            updates.setdefault(case, []).extend(measured)
    passed = {case: median(update.passed for update in own) / _MICROSECOND for case, own in updates.items()}
    for threads in _THREADS:
        say(f"microseconds of an update (for each site), while {threads} other threads run through the sites")
        say(f"{'sites':<14}" + "".join(f"{sites:14,}{'':11}" for sites in SITES).rstrip())
        for way in _WAYS:
            columns = ((passed[_Case(sites, threads, way)], sites) for sites in SITES)
            say(f"{way:<14}" + "".join(f"{whole:14.1f} ({whole / sites:9.3f})" for whole, sites in columns))
    return [*_peer_figures(passed), _growth(updates)]


def _peer_figures(passed: dict[_Case, float]) -> list[Figure]:
    """Without other threads: with them, the scheduler's slices on a small machine are longer than most updates."""
    peer = passed[_Case(SITES[-1], 0, PEERS[0])]
    name = f"update {SITES[-1]:,} sites, {{}} / mprotect for each"
    return [Figure(name.format(way), passed[_Case(SITES[-1], 0, way)] / peer, 1) for way in REWRITING]


def _growth(updates: dict[_Case, list[Update]]) -> Figure:
    """Processor time: an update of many sites takes longer than a slice, so other programs run in the midst of it."""
    some, many = (
        median(update.ran for update in updates[_Case(sites, 0, REWRITING[0])]) / sites for sites in SITES[-2:]
    )
    # Linear is 1; the rest is for caches and noise.
    return Figure(f"update, {REWRITING[0]}: time per site, {SITES[-1]:,} / {SITES[-2]:,} sites", many / some, 1.25)
