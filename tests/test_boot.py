"""Patched kernels run: they boot, and their memory holds what the patched file holds.

The kernel patches all its static calls itself while it boots, from what the keys say, and leaves alone what is
there already. So whatever a patch got wrong it repairs, or it stops; and where memory still is what the file
was, the patch is what the kernel itself would have done. Some keys it leads elsewhere then, by the processor
and by its preemption model. Their sites have to follow, also those that were patched.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support import guest
from tests.support.booting import (
    ASK_CLOCK,
    RELIABLE_CLOCK,
    SETS,
    assert_revert,
    boot_and_compare,
    changed_by_hand,
    func_in,
    incoherent,
    patched_kernel,
    places_of,
    seconds_of_sleep,
)
from tests.support.vmlinux import CALL, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

# In what a kernel that is bound by a policy is run: its preemption model leads some keys elsewhere, and its
# processor decides what a return is (here ret, and jumps to two other thunks than the file's).
SURROUNDINGS = [
    ("lutomirski", "full", "qemu64"),
    ("rel32", "voluntary", "Skylake-Client"),
    ("block8", "none", "qemu64"),
    ("kernel", "full", "EPYC"),
]

SECONDS_OF_SILENCE = 20  # the first message takes one second


def test_an_unpatched_kernel_patches_every_call_itself(kernel: Vmlinux, tmp_path: Path) -> None:
    places = places_of(kernel, kernel.path, kernel.keys)
    booted = boot_and_compare(kernel.path, tmp_path, places, options=RELIABLE_CLOCK, commands=[ASK_CLOCK])
    calls = {call.address for call in kernel.calls if call.code[0] == CALL and call.stays}
    assert len(calls) > len(kernel.calls) / 2
    assert calls <= booted.memory.keys()
    assert incoherent(kernel, {**places, **booted.memory}) == []
    assert seconds_of_sleep(booted) >= 1


@pytest.mark.parametrize(("policy", "model", "cpu"), SURROUNDINGS)
def test_a_bound_kernel_boots_with_the_code_that_is_in_its_file(
    policy: str, model: str, cpu: str, kernel: Vmlinux, tmp_path: Path
) -> None:
    with patched_kernel(kernel, tmp_path, "--policy", policy, "--bind") as patched:
        assert {edit["kind"] for edit in patched.edits} == {"site"}
        assert patched.sites() == {call.address for call in kernel.calls if kernel.is_direct(call, policy)}
        places = places_of(kernel, patched.path, kernel.keys)
        booted = boot_and_compare(patched.path, tmp_path, places, options=f"preempt={model}", cpu=cpu)
        if policy == "kernel":
            assert_revert(kernel, patched)
    assert f"({model})" in booted.preempt
    memory = {**places, **booted.memory}
    assert incoherent(kernel, memory) == []
    updated = {key.name for key in kernel.keys.values() if key.address in booted.memory}
    bound = {call.address for call in kernel.calls if call.key not in updated} & patched.sites() & places.keys()
    # Half of all sites belong to the preemption models and, in some series, to the security modules.
    assert len(bound) > len(kernel.calls) / 5
    assert booted.differing(bound) == ()


# What these tests could not see, they would not guard against.


@pytest.mark.parametrize("kernel", ["61"], indirect=True)
def test_half_a_change_shows_in_memory(slim: Vmlinux, tmp_path: Path) -> None:
    site_only, slot_only = slim.keys["amd_pstate_enable"], slim.keys["xen_hypercall"]
    site = next(call for call in slim.calls if call.key == site_only.name and call.stays)
    (wrong,) = slim.codes_for(site, slim.address(SETS[site_only.name]))
    new_func = slim.address(SETS[slot_only.name])
    changes = {site.address: wrong, slot_only.address: struct.pack("<Q", new_func)}
    with changed_by_hand(slim, tmp_path, changes) as path:
        places = places_of(slim, path, [site_only.name, slot_only.name])
        booted = boot_and_compare(path, tmp_path, places)
    memory = {**places, **booted.memory}
    # The kernel undoes a change that the key knows nothing of, and its sites follow a key that the trampoline does not.
    assert {memory[site.address]} == slim.codes_for(site, site_only.func) != {wrong}
    assert func_in(memory, slot_only) == new_func
    assert [line.split(":")[0] for line in incoherent(slim, memory)] == [
        f"{slot_only.name} at {slot_only.trampoline:#x}"
    ]


@pytest.mark.parametrize("kernel", ["61"], indirect=True)
def test_a_kernel_stops_at_a_site_that_it_would_not_have_written(slim: Vmlinux, tmp_path: Path) -> None:
    site = next(call for call in slim.calls if call.code[0] == CALL and call.stays)
    harmless = bytes.fromhex("0f1f400090")  # two nops, and not the one
    with changed_by_hand(slim, tmp_path, {site.address: harmless}) as path:
        booted = guest.boot(path, tmp_path / "guest", seconds=SECONDS_OF_SILENCE)
    # It stops before it has a console.
    assert "Linux version" not in booted.log
    assert booted.problems[0] == f"guest: no end within {SECONDS_OF_SILENCE} s"
