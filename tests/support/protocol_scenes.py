"""Recordings by protocol, each made when it is asked for, and the sites in them by form and offset.

scene = Scenes(folder)("emulate")
assert scene.faulty(Machine(), scene.alpha(), lambda site, steps: steps, LINE) == set()
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, NoReturn

import pytest

from tests.support import toolchain
from tests.support.protocol_images import check, histories
from tests.support.protocol_machine import Machine
from tests.support.protocol_recording import Recording, Site, Step, build_recorder, record

LINE, BLOCK, BYTE = 64, 8, 1
CALLS: Final = ("call", "cs call", "addr32 call")
KINDS: Final = (*CALLS, "jmp", "je", "jno", "jg")
TORN: Final = MappingProxyType(
    {kind: frozenset({60, 61, 62} if kind in ("call", "jmp") else {59, 60, 61}) for kind in KINDS}
)
"""The offsets in a line at which rel32 lies in two, by hand: it is behind one byte of call and jmp, two of others."""

Steps = Sequence[Step]
Change = Callable[[Site, Steps], Steps]


class Scene(NamedTuple):
    """A protocol's recording, and what concerns each site in it."""

    recording: Recording
    histories: dict[Site, list[Step]]

    def alpha(self) -> list[Site]:
        """The sites that are there at every offset."""
        key = self.recording.sites[0].key
        matrix = [site for site in self.recording.sites if site.key == key]
        assert len(matrix) == LINE * len(KINDS)
        return matrix

    def faulty(self, machine: Machine, sites: Iterable[Site], change: Change, unit: int) -> set[Site]:
        """The sites at which something goes wrong in the first three updates, where these are changed."""
        keys = self.recording.trampolines
        early = ((site, change(site, first_three(self.histories[site]))) for site in sites)
        return {site for site, steps in early if any(check(site, steps, keys[site.key], machine, unit))}


def first_three(steps: Steps) -> Steps:
    """The registration, which leads each site to its first target, and two updates to others."""
    ends = [at for at, step in enumerate(steps) if step.action == "done"]
    return steps[: ends[2] + 1]


def old_and_new(steps: Steps) -> tuple[int, int]:
    """The targets before and after the last of these three."""
    _, old, new = [step.function for step in first_three(steps) if step.action == "func"]
    return old, new


class Scenes:
    """Builds the program once and runs it once for each protocol that is asked for."""

    def __init__(self, folder: Path) -> None:
        if missing := toolchain.missing_tools():
            _unavailable(f"not installed: {', '.join(missing)}")
        self.program = build_recorder(folder)
        self._made: dict[str, Scene] = {}

    def __call__(self, protocol: str) -> Scene:
        if protocol not in self._made:
            recording = record(self.program, protocol)
            if recording.text:
                _unavailable(f"text cannot be rewritten here: {os.strerror(recording.text)}")
            self._made[protocol] = Scene(recording, histories(recording))
        return self._made[protocol]


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def by_kind(sites: Iterable[Site]) -> dict[str, frozenset[int]]:
    """Their offsets in a line, by kind."""
    offsets = defaultdict(set)
    for site in sites:
        offsets[site.kind].add(site.address % LINE)
    return {kind: frozenset(found) for kind, found in offsets.items()}
