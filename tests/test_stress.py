"""Threads call while others update: every answer is the old or a newer target's, whatever else goes on.

STATICCALL_STRESS=10 in the environment makes ten times the updates.
"""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from tests.conftest import _unavailable
from tests.support.stress import (
    FORMS,
    LINE,
    PROTOCOLS,
    UNAVAILABLE,
    Stress,
    build,
    missing_tools,
    see_right_answers,
    see_sites,
    see_trap_paths,
    updates,
)
from tests.support.toolchain import Compiler

PLAIN = 200_000
SOME = 5_000
FEW = 1_000
ALL_AROUND = ("--forks", "--signals", "--maps", "--library")
TRAPPING = ("emulate", "torvalds")


def _build(folder: Path, cc: Compiler, *, shared_runtime: bool = False) -> Stress:
    if missing := missing_tools(cc):
        _unavailable(f"not installed: {', '.join(missing)}")
    return build(folder, cc, shared_runtime=shared_runtime)


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Stress:
    return _build(tmp_path_factory.mktemp("stress"), "gcc")


@pytest.fixture(scope="module")
def stress_by_clang(tmp_path_factory: pytest.TempPathFactory) -> Stress:
    return _build(tmp_path_factory.mktemp("stress-clang"), "clang")


@pytest.fixture(scope="module")
def stress_with_library(tmp_path_factory: pytest.TempPathFactory) -> Stress:
    return _build(tmp_path_factory.mktemp("stress-shared"), "gcc", shared_runtime=True)


def test_there_is_a_site_of_every_form_at_every_offset_of_a_line(stress: Stress) -> None:
    sites = stress.sites_in_assembly()
    for form in FORMS:
        of_form = [site for site in sites if site.form == form]
        assert {site.address % LINE for site in of_form} == set(range(LINE))
        assert {site.address % LINE for site in of_form if not site.lies_in_one(LINE, displacement=False)} == set(
            range(LINE - of_form[0].length + 1, LINE)
        )
        assert any(not site.lies_in_one(4096) for site in of_form), "some cross a page as well"
    in_c = [site.form for site in stress.sites() if site not in sites]
    assert "prefixed" in in_c, "as the linker makes them"


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_call_is_answered_by_the_old_or_the_new_target(stress: Stress, protocol: str) -> None:
    wanted = updates(PLAIN)
    result = stress.run(protocol, "--hold", "64", updates=wanted)
    see_right_answers(result)
    assert result["update_calls"] >= wanted
    assert result["updates"] == result["runtime_updates"] > 1.2 * wanted, "some update several keys"
    assert result["refused"] == 0
    assert result["nothing"] > 0
    see_trap_paths(result, protocol, at_least=10_000)
    see_sites(result, protocol, stress)
    if protocol in TRAPPING:
        assert result["syncs"] >= 2 * wanted, "three for each update that rewrites a site"
        assert result["held_calls"] > 1000


def test_what_is_spoiled_is_found(stress: Stress) -> None:
    result = stress.run("out-of-line", "--spoil", updates=FEW)
    assert result["wrong"] > 0
    assert result["disturbed"] > 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_forks_signals_a_library_and_a_trap_handler_of_its_own(stress: Stress, protocol: str) -> None:
    _see_all_around(stress, protocol)


@pytest.mark.parametrize("protocol", [*TRAPPING, "lutomirski"])
def test_by_another_compiler(stress_by_clang: Stress, protocol: str) -> None:
    _see_all_around(stress_by_clang, protocol)
    plain = stress_by_clang.run(protocol, updates=updates(FEW))
    see_right_answers(plain)
    see_sites(plain, protocol, stress_by_clang)


@pytest.mark.parametrize("protocol", [*TRAPPING, "lutomirski"])
def test_with_the_runtime_in_a_library_of_its_own(stress_with_library: Stress, protocol: str) -> None:
    _see_all_around(stress_with_library, protocol)


def _see_all_around(stress: Stress, protocol: str) -> None:
    result = stress.run(protocol, *ALL_AROUND, stress.library, "--handler", "before", updates=updates(SOME))
    see_right_answers(result)
    see_trap_paths(result, protocol, at_least=500)
    assert result["forks"] >= 32
    assert result["loads"] >= 32
    assert result["plugin_calls"] > 0
    assert result["maps_read"] >= 32
    assert result["signals_seen"] >= 512
    assert result["in_handlers"] > result["signals_seen"]
    assert result["own_traps"] > 0
    assert result["asked_traps"] == 0


@pytest.mark.parametrize("around", [("--forks",), ("--signals",), ("--maps",), ("--library",)])
def test_with_one_thing_going_on(stress: Stress, around: tuple[str, ...]) -> None:
    library = (stress.library,) if around == ("--library",) else ()
    result = stress.run("emulate", *around, *library, updates=updates(SOME))
    see_right_answers(result)
    see_trap_paths(result, "emulate", at_least=500)


@pytest.mark.parametrize("protocol", TRAPPING)
def test_a_trap_handler_installed_later_is_stood_in_front_of(stress: Stress, protocol: str) -> None:
    result = stress.run(protocol, "--handler", "after", updates=updates(SOME))
    see_right_answers(result)
    see_trap_paths(result, protocol, at_least=500)
    assert result["own_traps"] > 0
    assert result["asked_traps"] == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_protocol_may_change_meanwhile(stress: Stress, protocol: str) -> None:
    result = stress.run(protocol, "--change", "--forks", "--signals", updates=updates(SOME))
    see_right_answers(result)
    assert result["changes_made"] >= 32
    assert result["emulated"] > 0
    assert result["resumed"] > 0
    see_sites(result, protocol, stress)


@pytest.mark.parametrize("handler", ["before", "after", "asks"])
def test_a_trap_handler_may_be_left_by_a_jump(stress: Stress, handler: str) -> None:
    result = stress.run("emulate", "--handler", handler, "--jump", "--signals", updates=updates(SOME))
    see_right_answers(result)
    assert result["own_traps"] > 0


@pytest.mark.parametrize("protocol", TRAPPING)
def test_two_runtimes_hand_on_to_each_other(stress: Stress, protocol: str) -> None:
    library = stress.independent_library
    result = stress.run(protocol, "--handler", "before", "--separate", "--library", library, updates=updates(SOME))
    see_right_answers(result)
    see_trap_paths(result, protocol, at_least=500)
    assert result["own_traps"] > 0


@pytest.mark.parametrize("protocol", TRAPPING)
def test_main_may_end_while_others_go_on(stress: Stress, stress_with_library: Stress, protocol: str) -> None:
    for program in (stress, stress_with_library):
        for _ in range(10):
            done = program.start(protocol, "--leave", updates=100)
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", TRAPPING)
def test_a_trap_handler_may_ask_the_runtime(stress: Stress, protocol: str) -> None:
    result = stress.run(protocol, "--handler", "asks", "--signals", updates=updates(SOME))
    see_right_answers(result)
    see_trap_paths(result, protocol, at_least=500)
    assert result["handlers_installed"] > 1
    assert result["own_traps"] > 0
    assert result["asked_traps"] > 0


@pytest.mark.parametrize("handler", [(), ("before",), ("after",), ("asks",)], ids=["none", "before", "after", "asks"])
def test_an_int3_of_nobody_ends_the_program_as_ever(stress: Stress, handler: tuple[str, ...]) -> None:
    done = stress.start("emulate", *(f"--handler={name}" for name in handler), "--die", updates=FEW)
    assert done.returncode == -signal.SIGTRAP
    assert done.stdout, "not before it was executed"


@pytest.mark.parametrize("protocol", PROTOCOLS[:-1])
@pytest.mark.parametrize(
    ("denied", "reason"), [("files", errno.EACCES), ("descriptors", errno.EMFILE), ("barriers", errno.EACCES)]
)
def test_where_text_is_forbidden_all_go_by_trampolines(stress: Stress, protocol: str, denied: str, reason: int) -> None:
    result = stress.run(protocol, "--deny", denied, updates=updates(FEW))
    see_right_answers(result)
    assert result["text"] == -reason
    assert result["refused"] == result["direct"] == result["straight"] == 0
    assert result["emulated"] == result["resumed"] == 0


@pytest.mark.parametrize("protocol", PROTOCOLS[:-1])
@pytest.mark.parametrize("denied", ["gains", "memory"])
def test_text_is_rewritten_without_gaining_rights_and_without_proc_mem(
    stress: Stress, protocol: str, denied: str
) -> None:
    done = stress.start(protocol, "--deny", denied, updates=0)
    if done.returncode == UNAVAILABLE:
        _unavailable(done.stderr)
    result = stress.run(protocol, "--deny", denied, "--maps", updates=updates(FEW))
    see_right_answers(result)
    assert result["text"] == 0
    see_trap_paths(result, protocol, at_least=100)
    see_sites(result, protocol, stress)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("denied", ["files", "descriptors", "barriers"])
def test_where_text_is_forbidden_later_updates_are_whole_or_refused(stress: Stress, protocol: str, denied: str) -> None:
    result = stress.run(protocol, "--deny", denied, "--late", updates=updates(FEW))
    see_right_answers(result)
    assert result["updates"] > 0
    see_sites(result, protocol, stress)
