"""The runtime where things go wrong: calls that fail, bytes of somebody else, threads and libraries that end."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from tests.conftest import _unavailable
from tests.support.faults import (
    CALLS,
    DIRECT,
    FORMS,
    KEYS,
    PROTOCOLS,
    Workshop,
    faults,
    follow,
    missing_tools,
    run,
)
from tests.support.toolchain import sections, symbols
from tests.support.user_objects import run_tool

WAYS_TO_FAIL = [
    (),
    ("copied",),
    ("half",),
    ("onwards",),
    ("copied", "onwards"),
    ("half", "onwards"),
    ("withheld",),
    ("half", "withheld"),
]
SINGLE_STORE = ("lutomirski", "rel32", "block8")
CALL_FORMS = 4
CASES = (
    "bytes_of_somebody_else",
    "displacement_of_somebody_else",
    "key_twice_in_a_batch",
    "null_pointers",
    "jump_out_of_the_handler",
    "temporary_handler",
    "return_address_on_a_guard_page",
    "cancelled_update",
    "table_out_and_in",
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    if missing := missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")
    return Workshop(tmp_path_factory.mktemp("faults"))


# ---- calls that fail ----


@pytest.mark.parametrize("options", WAYS_TO_FAIL, ids="-".join)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_whatever_fails_an_update_is_whole_or_refused_and_the_next_one_heals(
    workshop: Workshop, protocol: str, options: tuple[str, ...]
) -> None:
    for fault in faults(workshop.injecting(), protocol, *options):
        assert fault.update <= 0, fault
        assert fault.led == (0 if fault.update else 1), fault
        assert fault.update == 0 or fault.phase in ("update", "later"), fault
        assert (fault.next, fault.led_next, fault.traps_next) == (0, 2, 0), fault
        assert fault.descriptors == 0, fault
        # Whoever may not make cores see what was written asks once, and stays with trampolines.
        no_sync = fault.phase == "init" and fault.failed == "syscall"
        assert fault.direct == KEYS * DIRECT[fault.protocol] or (no_sync and fault.direct == 0), fault


def test_everything_that_the_runtime_calls_has_failed(workshop: Workshop) -> None:
    seen = [
        (protocol, fault)
        for protocol in PROTOCOLS
        for options in ((), ("copied",))
        for fault in faults(workshop.injecting(), protocol, *options)
    ]

    assert {fault.failed for _, fault in seen} == set(CALLS)
    assert {fault.failed for protocol, fault in seen if protocol == "emulate" and fault.phase == "later"} >= {
        *("open", "pwrite", "syscall", "sigaction")
    }
    for protocol in SINGLE_STORE:
        failed = {fault.failed for name, fault in seen if name == protocol and fault.phase == "later"}
        assert failed >= {"mprotect", "mmap", "madvise", "memfd_create", "munmap", "syscall"}
    refused = {protocol for protocol, fault in seen if fault.update}
    assert refused == set(PROTOCOLS), "both outcomes are among what was seen"
    assert any(fault.traps for _, fault in seen), "and so is an int3 that an update had to leave"


# ---- one small thing each ----


@pytest.mark.parametrize("case", CASES)
def test_a_small_case(workshop: Workshop, case: str) -> None:
    run(workshop.link("cases", workshop.parts("cases")), case)


def test_a_trap_with_an_old_call_behind_its_prefix_leads_to_the_new_target(workshop: Workshop) -> None:
    parts = [workshop.object("stale"), workshop.object("staticcall", "-DSTATIC_CALL_OBSERVER=observe")]
    run(workshop.link("stale", parts, "-Wl,--wrap=pwrite"))


def test_a_key_whose_target_ends_in_the_bytes_of_a_trampoline(workshop: Workshop) -> None:
    parts = workshop.parts("follow", targets=workshop.object("targets", "-DAPART"))
    program = workshop.link("apart", parts, "-no-pie", "-Wl,--section-start=apart=0x6025ff")

    assert symbols(program)["alpha_old"].to_bytes(4, "little")[:2] == b"\xff\x25"
    seen = follow(program)
    assert (seen.updates, seen.led) == ([0, 0], [0, 1, 2])
    assert (seen.direct, seen.foreign) == (KEYS * FORMS, 0)


@pytest.mark.parametrize("odd", range(4))
def test_a_table_at_any_address(workshop: Workshop, odd: int) -> None:
    address = 0x600000 + odd
    placed = f"-Wl,--section-start=static_call_sites={address:#x}"
    program = workshop.link(f"odd-{odd}", workshop.parts("follow"), "-no-pie", placed)

    assert sections(program)["static_call_sites"].address == address
    seen = follow(program)
    assert (seen.updates, seen.led) == ([0, 0], [0, 1, 2])
    assert (seen.direct, seen.foreign) == (KEYS * FORMS, 0)


def test_sites_that_were_bound_before_linking_and_go_by_a_plt_follow_updates(workshop: Workshop) -> None:
    targets = workshop.link("targets.so", [workshop.object("targets")])
    program = workshop.link("by-plt", workshop.parts("follow", keys=workshop.bound(), targets=targets))

    listing = run_tool("objdump", "-d", "--no-show-raw-insn", program)
    by_plt = re.findall(r"\b(?:call|jmp|jne) +[0-9a-f]+ <(alpha|beta)_old@plt>", listing)
    assert sorted(by_plt) == ["alpha"] * FORMS + ["beta"] * FORMS
    for protocol in PROTOCOLS:
        seen = follow(program, protocol)
        assert (seen.updates, seen.led) == ([0, 0], [0, 1, 2]), protocol
        assert seen.foreign == 0


# ---- the choice of a protocol ----


@pytest.mark.parametrize("options", [(), ("-DOFFER",)], ids=["own", "offered"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_program_chooses_the_protocol_whatever_the_environment_says(
    workshop: Workshop, protocol: str, options: tuple[str, ...]
) -> None:
    program = _choosing(workshop, *options)
    for wish in PROTOCOLS:
        seen = follow(program, protocol, environment={"STATICCALL_PROTOCOL": wish})
        assert (seen.choice, seen.protocol, seen.direct) == (0, protocol, KEYS * DIRECT[protocol])
        assert seen.led == [0, 1, 2]


@pytest.mark.parametrize("options", [(), ("-DOFFER",)], ids=["own", "offered"])
def test_the_environment_chooses_where_the_program_does_not(workshop: Workshop, options: tuple[str, ...]) -> None:
    program = _choosing(workshop, *options)
    for wish, protocol in [*zip(PROTOCOLS, PROTOCOLS, strict=True), ("no such thing", "emulate"), ("", "emulate")]:
        seen = follow(program, environment={"STATICCALL_PROTOCOL": wish})
        assert (seen.protocol, seen.direct) == (protocol, KEYS * DIRECT[protocol])
        assert seen.led == [0, 1, 2]
    assert follow(program).protocol == "emulate"


def _choosing(workshop: Workshop, *options: str) -> Path:
    return workshop.link("".join(["chooses", *options]), workshop.parts("follow", keys=workshop.keys(*options)))


# ---- shadow stacks ----


def _with_shadow_stack(workshop: Workshop, keys: Path) -> Path:
    main, *others = workshop.parts("follow", keys=keys)
    parts = [workshop.object(main.stem, "-DSHADOW_STACK"), *others]
    return workshop.link(f"shadow-{keys.stem}", parts, "-Wl,--wrap=syscall")


def test_with_a_shadow_stack_emulated_calls_stay_with_trampolines_and_jumps_go_straight(workshop: Workshop) -> None:
    seen = follow(_with_shadow_stack(workshop, workshop.keys()), "emulate")

    assert (seen.init, seen.updates, seen.led) == (0, [0, 0], [0, 1, 2])
    assert seen.text == -errno.EOPNOTSUPP
    assert (seen.direct, seen.trampoline) == (KEYS * (FORMS - CALL_FORMS), KEYS * CALL_FORMS)


def test_with_a_shadow_stack_threads_that_trap_on_a_prefix_still_go_on_behind_it(workshop: Workshop) -> None:
    seen = follow(_with_shadow_stack(workshop, workshop.keys()), "torvalds")

    assert (seen.init, seen.updates, seen.led) == (0, [0, 0], [0, 1, 2])
    assert seen.text == -errno.EOPNOTSUPP, "where the displacement crosses a line they would have to be led"
    assert seen.direct == KEYS


@pytest.mark.parametrize("protocol", [*SINGLE_STORE, "out-of-line"])
def test_with_a_shadow_stack_what_sets_no_traps_works_as_ever(workshop: Workshop, protocol: str) -> None:
    seen = follow(_with_shadow_stack(workshop, workshop.keys()), protocol)

    assert (seen.init, seen.updates, seen.led, seen.text) == (0, [0, 0], [0, 1, 2], 0)
    assert seen.direct == KEYS * DIRECT[protocol]


@pytest.mark.parametrize("protocol", SINGLE_STORE)
def test_what_was_stored_is_led_back_by_a_store_where_no_trap_can_be_set(workshop: Workshop, protocol: str) -> None:
    seen = follow(_with_shadow_stack(workshop, workshop.keys()), protocol, "out-of-line")

    assert (seen.choice, seen.protocol, seen.direct, seen.text) == (0, "out-of-line", 0, 0)


def test_with_a_shadow_stack_calls_that_were_bound_in_the_file_cannot_be_updated(workshop: Workshop) -> None:
    seen = follow(_with_shadow_stack(workshop, workshop.bound()), "emulate")

    assert (seen.updates, seen.led) == ([-errno.EOPNOTSUPP] * 2, [0, 0, 0])
    assert seen.text == -errno.EOPNOTSUPP


# ---- libraries that come and go, and the end ----


@pytest.fixture(scope="module")
def using(workshop: Workshop) -> Path:
    return workshop.link("using.so", [workshop.object("using")])


@pytest.fixture(scope="module")
def own_with_runtime(workshop: Workshop) -> Path:
    return workshop.link("alone.so", [workshop.object("own"), workshop.object("staticcall")])


@pytest.mark.parametrize("offered_by", ["the program", "a library"])
def test_a_table_that_comes_back_follows_what_was_updated_meanwhile(
    workshop: Workshop, using: Path, offered_by: str
) -> None:
    runtime = workshop.link("runtime.so", [workshop.object("staticcall")])
    offering = workshop.object("offering")
    if offered_by == "a library":
        offering = workshop.link("offered.so", [offering])
    program = workshop.link(f"again-{offering.stem}", [workshop.object("again"), offering, using, runtime], "-rdynamic")

    run(program)


@pytest.mark.parametrize("registered", ["early", "late"])
def test_updates_at_exit_reach_a_library_or_are_refused(workshop: Workshop, using: Path, registered: str) -> None:
    own = workshop.link("own.so", [workshop.object("own")])
    parts = [workshop.object(name) for name in ("at_exit", "offering", "staticcall")]

    assert run(workshop.link("at_exit", parts, "-rdynamic"), registered, using, own) == "updated\n"


def test_processes_end_well_while_their_threads_call_and_update(workshop: Workshop, own_with_runtime: Path) -> None:
    program = workshop.link("leave", [workshop.object("leave"), own_with_runtime])

    assert int(run(program)) >= 200


@pytest.mark.parametrize("where", [(), ("apart",)], ids=["here", "in a namespace of its own"])
def test_a_library_with_the_runtime_stays_for_traps_when_it_is_unloaded(
    workshop: Workshop, own_with_runtime: Path, where: tuple[str, ...]
) -> None:
    run(workshop.link("stays", [workshop.object("stays")]), own_with_runtime, *where)
