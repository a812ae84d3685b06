"""Every image of a site that a processor may fetch while the runtime rewrites it, and where each leads.

    assert list(check(site, steps, trampoline, machine, unit=64)) == []

The model. Between two syncs a processor may see each aligned block of `unit` bytes as it was at the last sync or as it
became by any of the writes since, each block for itself. A `store` is seen in whole within a block, a `write` in any
subset of its bytes. Which unit is right for a processor is what the protocols differ in: 64, a cache line; 8, what AMD
promises; 1, nothing at all but single bytes.

The rule. A call, whatever it fetched, whenever a thread that trapped gets to its handler, and whenever one that goes on
behind the int3 does so, arrives at a function that its key leads to at that time: the old or the new one while an
update lasts, the one that was asked for last otherwise. It arrives with the stack that the instruction makes.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, groupby, product
from typing import Final, NamedTuple

from tests.support.protocol_machine import Machine, Ran, holds
from tests.support.protocol_recording import BLANK_STACK, STACK_POINTER, Landing, Recording, Site, Step

FLAGS: Final = (0x202, 0xA47)  # recorder.c's: no condition of its sites holds, or does not hold, with both

_EVERY_SITE: Final = frozenset({"begin", "done", "sync"})
_EVERY_SITE_OF_THE_KEY: Final = frozenset({"ask", "func"})


class Moment(NamedTuple):
    """What is so after a step: images that may be fetched, functions to arrive at, the key, the handler's answers."""

    images: frozenset[bytes]
    allowed: frozenset[int]
    function: int
    handled: tuple[Landing | None, ...]


def histories(recording: Recording) -> dict[Site, list[Step]]:
    """The steps that concern each site, in their order."""
    at: dict[int, list[Site]] = defaultdict(list)
    for site in recording.sites:
        for address in range(site.address, site.end):
            at[address].append(site)
    result: dict[Site, list[Step]] = {site: [] for site in recording.sites}
    for step in recording.steps:
        concerned: Iterable[Site]
        if step.action in _EVERY_SITE:
            concerned = recording.sites
        elif step.action in _EVERY_SITE_OF_THE_KEY:
            concerned = (site for site in recording.sites if site.key == step.key)
        else:
            size = max(len(step.data), 1)
            concerned = {site for address in range(step.address, step.address + size) for site in at[address]}
        for site in concerned:
            result[site].append(step)
    return result


def arrives(site: Site, target: int, flags: int) -> Landing:
    """Where a thread is that executed a site which leads to `target`."""
    if site.kind.endswith("call"):
        pushed = struct.pack("<Q", site.end)
        return Landing(target, -8, BLANK_STACK[: STACK_POINTER - 8] + pushed + BLANK_STACK[STACK_POINTER:])
    return Landing(target if site.kind == "jmp" or holds(site.kind, flags) else site.end)


class _Block:
    """The part of a site in one aligned block: all that may be seen of it, and what is there."""

    def __init__(self, start: int, code: bytes) -> None:
        self.start = start
        self.latest = code
        self.seen = {code}

    def put(self, step: Step) -> None:
        """Take over the bytes of a write or store, as far as they lie here."""
        changed = []
        new = bytearray(self.latest)
        for at, byte in enumerate(step.data, step.address - self.start):
            if 0 <= at < len(new) and new[at] != byte:
                new[at] = byte
                changed.append(at)
        if step.action == "write":
            self.seen |= set(_mixes(self.latest, bytes(new), changed))
        self.latest = bytes(new)
        self.seen.add(self.latest)

    def sync(self) -> None:
        self.seen = {self.latest}


def _mixes(old: bytes, new: bytes, changed: Sequence[int]) -> Iterator[bytes]:
    for count in range(len(changed) + 1):
        for chosen in combinations(changed, count):
            yield bytes(new[at] if at in chosen else old[at] for at in range(len(old)))


class _Fetches:
    """A site's bytes in memory, by blocks."""

    def __init__(self, site: Site, unit: int) -> None:
        addresses = range(site.address, site.end)
        parts = [list(part) for _, part in groupby(addresses, lambda address: address // unit)]
        self._blocks = [_Block(part[0], site.code[part[0] - site.address :][: len(part)]) for part in parts]

    def put(self, step: Step) -> None:
        for block in self._blocks:
            block.put(step)

    def sync(self) -> None:
        for block in self._blocks:
            block.sync()

    def images(self) -> frozenset[bytes]:
        return frozenset(b"".join(parts) for parts in product(*(block.seen for block in self._blocks)))


def moments(site: Site, steps: Iterable[Step], unit: int) -> Iterator[Moment]:
    """What is so after each step. The handler's answers stand behind the step that changed them, and belong to it."""
    fetches = _Fetches(site, unit)
    asked = current = function = 0
    handled: dict[int, Landing | None] = dict.fromkeys(FLAGS)
    moment: Moment | None = None
    for step in steps:
        if step.trap is None and moment is not None:
            yield moment
        match step.action:
            case "ask":
                asked = step.function
            case "func":
                function = step.function
                if not current:
                    asked = current = function
            case "done":
                current = asked
            case "sync":
                fetches.sync()
            case "write" | "store":
                fetches.put(step)
        if step.trap is not None:
            handled[step.trap.flags] = step.trap.landing
        moment = Moment(fetches.images(), frozenset({current, asked}), function, tuple(handled.values()))
    if moment is not None:
        yield moment


class _Check:
    """Runs what may be fetched at one site, and follows the threads that trap there."""

    def __init__(self, site: Site, trampoline: int, machine: Machine) -> None:
        self._site = site
        self._trampoline = trampoline
        self._machine = machine
        self._done: set[tuple[bytes, frozenset[int], int]] = set()
        self._done_behind: set[tuple[bytes, frozenset[int], int]] = set()
        self._trapped = self._resumed = False

    def faults(self, moment: Moment) -> Iterator[str]:
        if moment.function not in moment.allowed:
            yield f"the key leads to {moment.function:#x}"
        for image in moment.images:
            if (key := (image, moment.allowed, moment.function)) not in self._done:
                self._done.add(key)
                yield from self._fetched(image, moment)
        if self._trapped:
            yield from self._handled(moment)
        if not self._resumed:
            return
        for image in moment.images:
            if (key := (image, moment.allowed, moment.function)) not in self._done_behind:
                self._done_behind.add(key)
                yield from self._gone_on(image, moment)

    def _fetched(self, image: bytes, moment: Moment) -> Iterator[str]:
        for flags in FLAGS:
            ran = self._machine.run(self._site.address, image, flags)
            if ran == Ran("traps", Landing(self._site.address + 1)):
                self._trapped = True
            elif not self._is_right(ran, flags, moment):
                yield f"{image.hex(' ')}: {ran}"

    def _handled(self, moment: Moment) -> Iterator[str]:
        for flags, landing in zip(FLAGS, moment.handled, strict=True):
            if landing == Landing(self._site.address + 1):
                self._resumed = True
            elif landing is None or not self._is_right(Ran("lands", landing), flags, moment):
                yield f"handler: {landing}"

    def _gone_on(self, image: bytes, moment: Moment) -> Iterator[str]:
        for flags in FLAGS:
            ran = self._machine.run(self._site.address + 1, image[1:], flags)
            if not self._is_right(ran, flags, moment):
                yield f"behind the int3, {image[1:].hex(' ')}: {ran}"

    def _is_right(self, ran: Ran, flags: int, moment: Moment) -> bool:
        landing = ran.landing
        if landing.address == self._trampoline:  # it goes where the key leads, and leaves the stack alone
            landing = landing._replace(address=moment.function)
        return ran.end == "lands" and any(landing == arrives(self._site, target, flags) for target in moment.allowed)


def check(site: Site, steps: Iterable[Step], trampoline: int, machine: Machine, unit: int) -> Iterator[str]:
    """All that may go wrong at a site, in words; nothing where nothing can."""
    checked = _Check(site, trampoline, machine)
    for moment in moments(site, steps, unit):
        yield from checked.faults(moment)
