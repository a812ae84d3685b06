"""Every policy, with each thing that a patch does, on every kernel series: all of them boot.

The log is free of BUG, WARN and oops (`booting.boot_and_compare` asks for that), the places that a patch decided hold
what it wrote, and everything else in memory agrees with its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.booting import (
    ASK_CLOCK,
    RELIABLE_CLOCK,
    SETS,
    assert_revert,
    boot_and_compare,
    func_in,
    incoherent,
    patched_kernel,
    places_of,
    seconds_of_sleep,
)
from tests.support.tool import POLICIES
from tests.support.vmlinux import RETURN0, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

# Their functions give numbers, and nobody asks for them in the guest.
ZEROED = (
    "amd_pmu_test_overflow",
    "amd_pstate_enable",
    "amd_pstate_init_perf",
    "intel_pmu_set_topdown_event_period",
    "pv_steal_clock",
)
# The preemption model leads it elsewhere, so that in memory pinned sites and others differ.
PINNED, OTHER_MODEL = "might_resched", "voluntary"


def _set(wishes: Mapping[str, str]) -> Sequence[str]:
    return [f"--set={key}={target}" for key, target in wishes.items()]


# One class for each thing done: they are spread over the machine's processors class by class.


@pytest.mark.parametrize("policy", POLICIES)
class TestBind:
    def test_a_bound_kernel_boots(self, policy: str, slim: Vmlinux, tmp_path: Path) -> None:
        with patched_kernel(slim, tmp_path, "--policy", policy, "--bind") as patched:
            assert patched.sites() == {call.address for call in slim.calls if slim.is_direct(call, policy)}
            places = places_of(slim, patched.path, slim.keys)
            booted = boot_and_compare(patched.path, tmp_path, places)
        assert incoherent(slim, {**places, **booted.memory}) == []


@pytest.mark.parametrize("policy", POLICIES)
class TestSet:
    def test_a_kernel_whose_keys_were_set_goes_to_the_new_targets(
        self, policy: str, slim: Vmlinux, tmp_path: Path
    ) -> None:
        with patched_kernel(slim, tmp_path, "--policy", policy, *_set(SETS)) as patched:
            places = places_of(slim, patched.path, SETS)
            booted = boot_and_compare(patched.path, tmp_path, places, options=RELIABLE_CLOCK, commands=[ASK_CLOCK])
            if policy == "kernel":
                assert_revert(slim, patched)
        memory = {**places, **booted.memory}
        for name, target in SETS.items():
            key = slim.keys[name]
            assert func_in(memory, key) == slim.address(target) != key.func
            calls = [call for call in slim.calls if call.key == name]
            assert patched.sites(name) == {call.address for call in calls if slim.is_direct(call, policy)}
            assert {key.address, key.trampoline, *patched.sites(name)}.isdisjoint(booted.memory)
        # So the trampolines and all sites lead there too, whether the policy patched them or left them to the boot.
        assert incoherent(slim, memory) == []
        assert seconds_of_sleep(booted) < 0.001


@pytest.mark.parametrize("policy", POLICIES)
class TestReturn0:
    def test_a_kernel_whose_keys_give_0_boots(self, policy: str, slim: Vmlinux, tmp_path: Path) -> None:
        wishes = dict.fromkeys(ZEROED, "RET0")
        with patched_kernel(slim, tmp_path, "--policy", policy, *_set(wishes)) as patched:
            places = places_of(slim, patched.path, wishes)
            booted = boot_and_compare(patched.path, tmp_path, places)
        memory = {**places, **booted.memory}
        for name in ZEROED:
            assert func_in(memory, slim.keys[name]) == slim.address(RETURN0) != slim.keys[name].func
            assert patched.sites(name).isdisjoint(booted.memory)
        assert incoherent(slim, memory) == []


@pytest.mark.parametrize("policy", POLICIES)
class TestPin:
    def test_pinned_sites_stay_where_the_boot_leads_the_others_away(
        self, policy: str, slim: Vmlinux, tmp_path: Path
    ) -> None:
        calls = [call for call in slim.calls if call.key == PINNED and call.stays]
        pinned = {call.address for call in calls if slim.is_direct(call, policy)}
        with patched_kernel(slim, tmp_path, "--policy", policy, "--pin", PINNED) as patched:
            places = places_of(slim, patched.path, [PINNED])
            booted = boot_and_compare(patched.path, tmp_path, places, options=f"preempt={OTHER_MODEL}")
            if policy == "kernel":
                assert_revert(slim, patched)
        assert f"({OTHER_MODEL})" in booted.preempt
        memory = {**places, **booted.memory}
        assert func_in(memory, slim.keys[PINNED]) != slim.keys[PINNED].func
        # The file has them go straight to where their key led before the boot changed it.
        assert booted.differing(pinned) == ()
        for call in calls:
            if call.address in pinned:
                assert memory[call.address] in slim.codes_for(call, slim.keys[PINNED].func)
        others = {address: code for address, code in memory.items() if address not in pinned}
        assert {call.address for call in calls} - pinned <= booted.memory.keys()
        assert _incoherent_beside(slim, others, pinned) == []


def _incoherent_beside(kernel: Vmlinux, memory: dict[int, bytes], pinned: set[int]) -> list[str]:
    """What does not agree with its key, the pinned sites apart."""
    rest = kernel._replace(calls=tuple(call for call in kernel.calls if call.address not in pinned))
    return incoherent(rest, memory)
