"""Every byte image that a processor may fetch at a site during an update is run in an emulator, for every protocol.

The steps are the real runtime's, recorded by a real program; so are the trap handler's answers. The model and the rule
stand in tests/support/protocol_images.py; that the check finds what is wrong, in test_protocol_controls.py.
"""

import struct
from collections import defaultdict
from types import MappingProxyType
from typing import Final

import pytest

from tests.support import toolchain
from tests.support.protocol_images import FLAGS, check, moments
from tests.support.protocol_machine import JUMPS, DisagreementError, Machine
from tests.support.protocol_recording import PROTOCOLS, Landing, Site
from tests.support.protocol_scenes import BLOCK, BYTE, CALLS, KINDS, LINE, Scenes, first_three, old_and_new

INT3 = 0xCC
RESTS_ON: Final = MappingProxyType(
    {"emulate": BYTE, "torvalds": LINE, "lutomirski": LINE, "rel32": LINE, "block8": BLOCK, "out-of-line": BYTE}
)
"""The largest unit of which a processor must see a store in whole for the protocol to be right."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return Scenes(tmp_path_factory.mktemp("recorder"))


@pytest.fixture(scope="module")
def machine() -> Machine:
    """One for all: it remembers what it ran."""
    return Machine()


# ---- the program is what it is meant to be, and so is the recording ----


def test_each_form_is_there_at_every_offset_and_across_pages(scene: Scenes) -> None:
    places, pages = defaultdict(set), defaultdict(set)
    recording = scene("emulate").recording
    for site in recording.sites:
        assert toolchain.bytes_at(scene.program, site.address, len(site.code)) == site.code
        places[site.kind].add(site.address % LINE)
        if site.crosses(4096):
            pages[site.kind].add(-site.address % 4096)
    assert {kind: places[kind] for kind in KINDS} == {kind: set(range(LINE)) for kind in KINDS}
    assert pages == {kind: {1, 2, 3, 4} | ({5} if kind not in ("call", "jmp") else set()) for kind in KINDS}
    assert set(JUMPS) < set(places)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_recorded_steps_are_all_that_was_written(scene: Scenes, protocol: str) -> None:
    recording, steps_of = scene(protocol)
    for site, steps in steps_of.items():
        code, after = bytearray(site.code), []
        for step in steps:
            if step.action in ("write", "store"):
                for at, byte in enumerate(step.data, step.address - site.address):
                    if 0 <= at < len(code):
                        code[at] = byte
            elif step.action == "done":
                after.append(bytes(code))
        assert after == [now[site.address][: len(code)] for now in recording.now]


def goes_straight(protocol: str, site: Site) -> bool:
    """Each protocol's rule, from its documentation."""
    call = site.kind in CALLS
    match protocol:
        case "emulate":
            return True
        case "torvalds":
            return call and site.kind != "call"
        case "lutomirski":
            return call and not site.crosses(LINE)
        case "rel32":
            return call and not site.crosses(LINE, site.displacement)
        case "block8":
            return call and not site.crosses(BLOCK, site.displacement)
    return False


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_leads_straight_what_it_says_and_no_more(scene: Scenes, protocol: str) -> None:
    recording, steps_of = scene(protocol)
    for site in recording.sites:
        code = recording.now[-1][site.address]
        (rel32,) = struct.unpack_from("<i", code, site.displacement)
        *_, function = (step.function for step in steps_of[site] if step.action == "func")
        straight = goes_straight(protocol, site)
        assert site.end + rel32 == (function if straight else recording.trampolines[site.key]), site


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_trampolines_go_where_the_key_leads(scene: Scenes, protocol: str) -> None:
    recording = scene(protocol).recording
    for key, trampoline in recording.trampolines.items():
        functions = {step.function for step in recording.steps if step.action == "func" and step.key == key}
        assert len(functions) >= 5
        for function in functions:
            machine = Machine()
            machine.write(key, struct.pack("<Q", function))
            ran = machine.run(trampoline, toolchain.bytes_at(scene.program, trampoline, 8), FLAGS[0])
            assert ran == ("lands", Landing(function))


# ---- the proof ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_whatever_is_fetched_leads_to_the_old_or_the_new_target(
    scene: Scenes, machine: Machine, protocol: str, kind: str
) -> None:
    recording, steps_of = scene(protocol)
    sites = [site for site in recording.sites if site.kind == kind]
    assert len(sites) > LINE
    for site in sites:
        trampoline = recording.trampolines[site.key]
        assert list(check(site, steps_of[site], trampoline, machine, RESTS_ON[protocol])) == [], site


def test_a_finer_unit_shows_all_that_a_line_shows(scene: Scenes) -> None:
    for site, steps in scene("emulate").histories.items():
        if site.kind != "cs call":
            continue
        pairs = zip(moments(site, steps, BYTE), moments(site, steps, LINE), strict=True)
        assert all(fine.images >= coarse.images for fine, coarse in pairs)


def test_every_mix_of_old_and_new_bytes_is_among_the_images(scene: Scenes) -> None:
    """Old, int3 before each of the 16 mixes of the displacement's bytes, new."""
    for site, steps in scene("emulate").histories.items():
        while_updating = (moment for moment in moments(site, first_three(steps), LINE))
        targets = frozenset(old_and_new(steps))
        images = {image for moment in while_updating if moment.allowed == targets for image in moment.images}
        assert len(images) == 2 + 2**4, site
        assert len({image[site.displacement :] for image in images if image[0] == INT3}) == 2**4, site


@pytest.mark.parametrize("protocol", ["emulate", "torvalds"])
def test_a_thread_goes_on_behind_the_int3_only_where_rel32_is_in_one_line(scene: Scenes, protocol: str) -> None:
    for site, steps in scene(protocol).histories.items():
        landings = {step.trap.landing for step in steps if step.trap is not None}
        goes_on = protocol == "torvalds" and site.kind in CALLS[1:] and not site.crosses(LINE, site.displacement)
        assert (landings == {Landing(site.address + 1)}) is goes_on, site


def test_the_handler_decides_conditions_as_the_processor_does(scene: Scenes, machine: Machine) -> None:
    """Each of the 16, with each of the 64 combinations of the flags that arithmetic sets."""
    recording = scene("emulate").recording
    kinds = {site.address: site.kind for site in recording.sites}
    seen = defaultdict(set)
    for asked in recording.conditions:
        code = recording.now[-1][asked.site]
        assert ("lands", asked.landing) == machine.run(asked.site, code, asked.flags), kinds[asked.site]
        seen[kinds[asked.site]].add(asked.flags)
    assert {len(seen[jump]) for jump in JUMPS} == {64}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_handler_leaves_traps_that_are_no_sites_to_others(scene: Scenes, protocol: str) -> None:
    assert scene(protocol).recording.strangers == 0


def test_two_decoders_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.protocol_machine.holds", lambda *_: True)
    with pytest.raises(DisagreementError):
        Machine().run(0x401000, bytes.fromhex("0f8400000001"), FLAGS[0])


def test_a_place_is_run_anew_when_its_bytes_change() -> None:
    """The emulator keeps what it translated, and does not look at memory again unless it is told to."""
    machine, address = Machine(), 0x401FFD
    for low in range(3):
        for opcode, end in (("e8", "lands"), ("cc", "traps"), ("e9", "lands"), ("0f0b", "faults")):
            image = bytes.fromhex(opcode) + struct.pack("<i", low)
            ran = machine.run(address, image, FLAGS[0])
            assert ran == Machine().run(address, image, FLAGS[0])
            assert ran.end == end
