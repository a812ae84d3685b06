"""The negative controls of test_protocol_images: the same check finds what is wrong, exactly where it is wrong."""

import struct
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from tests.support.protocol_images import FLAGS, arrives, check
from tests.support.protocol_machine import Machine
from tests.support.protocol_recording import Handled, Landing, Site, Step
from tests.support.protocol_scenes import (
    BLOCK,
    BYTE,
    CALLS,
    KINDS,
    LINE,
    TORN,
    Change,
    Scenes,
    Steps,
    by_kind,
    old_and_new,
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return Scenes(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="module")
def machine() -> Machine:
    """One for all: it remembers what it ran."""
    return Machine()


def straight(site: Site, target: int) -> bytes:
    return site.code[: site.displacement] + struct.pack("<i", target - site.end)


def at_once(site: Site, steps: Steps, action: Literal["write", "store"], start: int) -> tuple[Site, Steps]:
    """An update without a protocol: the bytes from `start` on, old to new. And the site as it is before that."""
    old, new = old_and_new(steps)
    code = straight(site, new)
    site = site._replace(code=straight(site, old))
    assert all(a != b for a, b in zip(site.code[-4:], code[-4:], strict=True))
    before, after = (Step("func", key=site.key, function=target) for target in (old, new))
    ask = Step("ask", key=site.key, function=new)
    write = Step(action, site.address + start, code[start:])
    return site, [before, Step("begin"), ask, after, write, Step("sync"), Step("done")]


@pytest.mark.parametrize("whole", [True, False], ids=["instruction", "rel32"])
def test_a_plain_store_is_wrong_exactly_where_rel32_is_in_two_lines(
    scene: Scenes, machine: Machine, whole: bool
) -> None:
    """Where only the opcode lies before the boundary, nothing is torn: it is the same in both."""
    wrong = set()
    emulate = scene("emulate")
    for site in emulate.alpha():
        changed, steps = at_once(site, emulate.histories[site], "store", 0 if whole else site.displacement)
        if any(check(changed, steps, emulate.recording.trampolines[site.key], machine, LINE)):
            wrong.add(site)
    assert by_kind(wrong) == TORN


def test_a_plain_write_in_any_order_is_wrong_everywhere(scene: Scenes, machine: Machine) -> None:
    emulate = scene("emulate")
    for site in emulate.alpha():
        changed, steps = at_once(site, emulate.histories[site], "write", site.displacement)
        assert any(check(changed, steps, emulate.recording.trampolines[site.key], machine, LINE)), site


def test_going_on_behind_every_int3_is_wrong_exactly_where_rel32_is_in_two_lines(
    scene: Scenes, machine: Machine
) -> None:
    """The rule of the thread on the mailing list, taken by the letter."""

    def always(site: Site, steps: Steps) -> Steps:
        return answered(steps, lambda _: Landing(site.address + 1))

    torvalds = scene("torvalds")
    wrong = torvalds.faulty(machine, torvalds.alpha(), always, LINE)
    assert by_kind(wrong) == {kind: TORN[kind] for kind in CALLS[1:]}


def test_going_on_behind_the_int3_needs_one_store(scene: Scenes, machine: Machine) -> None:
    def written(_site: Site, steps: Steps) -> Steps:
        return [step._replace(action="write") if step.action == "store" else step for step in steps]

    torvalds = scene("torvalds")
    wrong = torvalds.faulty(machine, torvalds.alpha(), written, LINE)
    assert by_kind(wrong) == {kind: frozenset(range(LINE)) - TORN[kind] for kind in CALLS[1:]}


def without_sync(steps: Steps, number: int) -> Iterator[Step]:
    """Leaves out the first sync of each update, or the second."""
    count = 0
    for step in steps:
        count = 0 if step.action == "begin" else count + (step.action == "sync")
        if not (step.action == "sync" and count == number):
            yield step


@pytest.mark.parametrize("number", [1, 2], ids=["behind the int3", "behind the rest"])
def test_leaving_out_a_sync_is_wrong_exactly_across_lines(scene: Scenes, machine: Machine, number: int) -> None:
    """Even a processor that sees each line in order then sees the first byte and the rest out of order."""
    emulate = scene("emulate")
    sites = emulate.recording.sites
    wrong = emulate.faulty(machine, sites, lambda _, steps: list(without_sync(steps, number)), LINE)
    assert wrong == {site for site in sites if site.crosses(LINE)}
    offsets = by_kind(wrong & set(emulate.alpha()))
    assert offsets == {kind: TORN[kind] | {max(TORN[kind]) + 1, 63} for kind in KINDS}


@pytest.mark.parametrize("number", [1, 2], ids=["behind the int3", "behind the rest"])
def test_leaving_out_a_sync_is_wrong_everywhere_if_bytes_are_fetched_one_by_one(
    scene: Scenes, machine: Machine, number: int
) -> None:
    emulate = scene("emulate")
    sites = {site for site in emulate.recording.sites if site.kind == "cs call"}
    assert emulate.faulty(machine, sites, lambda _, steps: list(without_sync(steps, number)), BYTE) == sites


@pytest.mark.parametrize("protocol", ["lutomirski", "rel32", "block8"])
def test_one_store_without_its_sync_leaves_the_old_target_behind(
    scene: Scenes, machine: Machine, protocol: str
) -> None:
    """After the update a thread may still arrive where it must not any more, wherever there was a store."""

    def never(_site: Site, steps: Steps) -> Steps:
        return [step for step in steps if step.action != "sync"]

    one = scene(protocol)
    stored = {site for site, steps in one.histories.items() if any(step.action == "store" for step in steps)}
    assert stored
    assert one.faulty(machine, one.recording.sites, never, LINE) == stored


@pytest.mark.parametrize("protocol", ["torvalds", "lutomirski", "rel32"])
def test_a_protocol_that_rests_on_lines_is_wrong_exactly_across_smaller_units(
    scene: Scenes, machine: Machine, protocol: str
) -> None:
    """What a processor must do for these: with fetches of 8 bytes, rel32 has to lie within one such block."""
    one = scene(protocol)
    stored = {site for site, steps in one.histories.items() if any(step.action == "store" for step in steps)}
    wrong = one.faulty(machine, one.recording.sites, lambda _, steps: steps, BLOCK)
    assert wrong == {site for site in stored if site.crosses(BLOCK, site.displacement)}
    assert wrong


def answered(steps: Steps, answer: Callable[[Landing], Landing | None]) -> Steps:
    """The steps with another handler's answers."""
    return [
        step
        if step.trap is None or step.trap.landing is None
        else step._replace(trap=step.trap._replace(landing=answer(step.trap.landing)))
        for step in steps
    ]


def short_push(site: Site, steps: Steps) -> Steps:
    def answer(landing: Landing) -> Landing:
        return landing._replace(stack=arrives(site._replace(address=site.address - 1), 0, FLAGS[0]).stack)

    return answered(steps, answer)


def no_push(_site: Site, steps: Steps) -> Steps:
    return answered(steps, lambda landing: Landing(landing.address))


def always_taken(_site: Site, steps: Steps) -> Steps:
    taken = [step for step in steps if step.action == "func"]
    return answered(steps, lambda _: Landing(taken[-1].function))


def left_to_others(_site: Site, steps: Steps) -> Steps:
    return answered(steps, lambda _: None)


def forgets(_site: Site, steps: Steps) -> Steps:
    """Knows sites only for as long as an update lasts: a thread may come later than that."""
    changed: list[Step] = []
    for step in steps:
        changed.append(step)
        if step.action == "done":
            changed += [Step("trap", trap=Handled(0, flags, None)) for flags in FLAGS]
    return changed


def stale(_site: Site, steps: Steps) -> Steps:
    """Goes where the key led when the site was first seen."""
    end = next(at for at, step in enumerate(steps) if step.action == "done")
    return [step for at, step in enumerate(steps) if step.trap is None or at < end]


@pytest.mark.parametrize(
    ("handler", "kinds"),
    [
        (short_push, CALLS),
        (no_push, CALLS),
        (always_taken, KINDS),
        (left_to_others, KINDS),
        (forgets, KINDS),
        (stale, KINDS),
    ],
)
def test_a_wrong_handler_is_wrong_at_every_offset(
    scene: Scenes, machine: Machine, handler: Change, kinds: tuple[str, ...]
) -> None:
    emulate = scene("emulate")
    wrong = emulate.faulty(machine, emulate.alpha(), handler, LINE)
    assert by_kind(wrong) == dict.fromkeys(kinds, frozenset(range(LINE)))
