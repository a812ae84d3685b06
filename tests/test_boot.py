"""Patched kernels run: they boot, and their memory holds what the patched file holds.

The kernel patches all its static calls itself while it boots, from what the keys say, and leaves alone what is
there already. So whatever a patch got wrong it repairs, or it stops; and where memory still is what the file
was, the patch is what the kernel itself would have done. Some keys it leads elsewhere then, by the processor
and by its preemption model. Their sites have to follow, also those that were patched.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.support import guest, vmlinux
from tests.support.guest import Boot
from tests.support.tool import POLICIES, digest, succeed
from tests.support.vmlinux import CALL, RETURN0, Key, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

# In what a kernel that is bound by a policy is run: its preemption model leads some keys elsewhere, and its
# processor decides what a return is (here ret, and jumps to two other thunks than the file's).
SURROUNDINGS = [
    ("lutomirski", "full", "qemu64"),
    ("rel32", "voluntary", "Skylake-Client"),
    ("block8", "none", "qemu64"),
    ("kernel", "full", "EPYC"),
]

# What the first one does shows from outside: it counts hundredths of a second where nanoseconds are expected.
# The others are never called in the guest, and have many sites, RET0 as target, and sites in .init.text.
SETS = MappingProxyType(
    {
        "pv_sched_clock": "trace_clock_jiffies",
        "xen_hypercall": "xen_hypercall_amd",
        "intel_pmu_update_topdown_event": "RET0",
        "amd_pstate_enable": "cppc_enable",
    }
)

# An emulated time stamp counter may look unstable on a busy machine, and then the kernel takes another clock.
RELIABLE_CLOCK = "tsc=reliable"
ASK_CLOCK = "mknod /kmsg c 1 11; echo stamp > /kmsg; sleep 1; echo stamp > /kmsg; dmesg | grep ' stamp$'"
SECONDS_OF_SILENCE = 20  # the first message takes one second

Places = Mapping[int, bytes]


@pytest.fixture(scope="module")
def slim(kernel: Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> Vmlinux:
    """The kernel without its debug information, a sixth of the size: it need not be copied twenty times."""
    path = tmp_path_factory.mktemp("slim") / kernel.path.name
    subprocess.run(["strip", "--strip-debug", "-o", path, kernel.path], check=True)
    return vmlinux.read(path)


class Patched(NamedTuple):
    """A patched kernel and the edits that made it, as the public file has them."""

    path: Path
    edits_path: Path
    edits: tuple[dict[str, Any], ...]

    def sites(self, key: str | None = None) -> set[int]:
        """The addresses of the patched sites, of one key or of all."""
        return {
            int(edit["address"], 16) for edit in self.edits if edit["kind"] == "site" and key in (None, edit["key"])
        }


@contextmanager
def _patched(kernel: Vmlinux, folder: Path, *arguments: str) -> Iterator[Patched]:
    """A patched and verified kernel. It is hundreds of megabytes, so at the end it is gone."""
    path, edits = folder / "vmlinux", folder / "edits.json"
    try:
        succeed("patch", kernel.path, *arguments, "-o", path, "--edits", edits)
        succeed("verify", kernel.path, path)
        yield Patched(path, edits, tuple(json.loads(edits.read_text())["edits"]))
    finally:
        path.unlink(missing_ok=True)


def _assert_revert(kernel: Vmlinux, patched: Patched) -> None:
    succeed("revert", patched.path, "--edits", patched.edits_path, "--in-place")
    assert digest(patched.path) == digest(kernel.path)


# Memory


def _places(kernel: Vmlinux, path: Path, names: Iterable[str]) -> Places:
    """What a file of this kernel's layout holds for these static calls and a running kernel still has."""
    wanted = set(names)
    keys = [key for key in kernel.keys.values() if key.name in wanted]
    sizes = {call.address: len(call.code) for call in kernel.calls if call.key in wanted and call.stays}
    sizes |= {key.address: 8 for key in keys} | {key.trampoline: 5 for key in keys}
    with path.open("rb") as file:
        found = {}
        for address, size in sorted(sizes.items()):
            section = kernel.section(address)
            file.seek(section.offset + address - section.address)
            found[address] = file.read(size)
    return found


def _boot(
    path: Path, folder: Path, places: Places, *, options: str = "", commands: Sequence[str] = (), cpu: str = "qemu64"
) -> Boot:
    work = folder / "guest"
    booted = guest.boot(path, work, places=list(places.items()), commands=commands, kernel_options=options, cpu=cpu)
    assert booted.reached_user_space, booted.log
    assert booted.problems == ()
    assert booted.compared == len(places)
    assert booted.unmapped == ()
    return booted


def _func(memory: Places, key: Key) -> int:
    (func,) = struct.unpack("<Q", memory[key.address])
    return int(func)


def _incoherent(kernel: Vmlinux, memory: Places) -> list[str]:
    """The sites and trampolines that in memory do something else than the slots of their keys say there."""
    keys = [key for key in kernel.keys.values() if key.address in memory]
    funcs = {key.name: _func(memory, key) for key in keys}
    calls = [call for call in kernel.calls if call.address in memory]
    calls += (kernel.trampoline_of(key) for key in keys)
    return [
        f"{call.key} at {call.address:#x}: {memory[call.address].hex()}"
        for call in calls
        if memory[call.address] not in kernel.codes_for(call, funcs[call.key])
    ]


def _seconds_of_sleep(booted: Boot) -> float:
    """How far the kernel's clock moved while the guest slept for a second."""
    first, second = re.findall(r"^\[ *(\d+\.\d+)\] stamp", booted.outputs[0], re.MULTILINE)
    return float(second) - float(first)


def test_an_unpatched_kernel_patches_every_call_itself(kernel: Vmlinux, tmp_path: Path) -> None:
    places = _places(kernel, kernel.path, kernel.keys)
    booted = _boot(kernel.path, tmp_path, places, options=RELIABLE_CLOCK, commands=[ASK_CLOCK])
    calls = {call.address for call in kernel.calls if call.code[0] == CALL and call.stays}
    assert len(calls) > len(kernel.calls) / 2
    assert calls <= booted.memory.keys()
    assert _incoherent(kernel, {**places, **booted.memory}) == []
    assert _seconds_of_sleep(booted) >= 1


@pytest.mark.parametrize(("policy", "model", "cpu"), SURROUNDINGS)
def test_a_bound_kernel_boots_with_the_code_that_is_in_its_file(
    policy: str, model: str, cpu: str, kernel: Vmlinux, tmp_path: Path
) -> None:
    with _patched(kernel, tmp_path, "--policy", policy, "--bind") as patched:
        assert {edit["kind"] for edit in patched.edits} == {"site"}
        assert patched.sites() == {call.address for call in kernel.calls if kernel.is_direct(call, policy)}
        places = _places(kernel, patched.path, kernel.keys)
        booted = _boot(patched.path, tmp_path, places, options=f"preempt={model}", cpu=cpu)
        if policy == "kernel":
            _assert_revert(kernel, patched)
    assert f"({model})" in booted.preempt
    memory = {**places, **booted.memory}
    assert _incoherent(kernel, memory) == []
    updated = {key.name for key in kernel.keys.values() if key.address in booted.memory}
    bound = {call.address for call in kernel.calls if call.key not in updated} & patched.sites() & places.keys()
    # Half of all sites belong to the preemption models and, in some series, to the security modules.
    assert len(bound) > len(kernel.calls) / 5
    assert booted.differing(bound) == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_kernel_whose_keys_were_set_goes_to_the_new_targets(policy: str, slim: Vmlinux, tmp_path: Path) -> None:
    wishes = [f"--set={key}={target}" for key, target in SETS.items()]
    with _patched(slim, tmp_path, "--policy", policy, *wishes) as patched:
        places = _places(slim, patched.path, SETS)
        booted = _boot(patched.path, tmp_path, places, options=RELIABLE_CLOCK, commands=[ASK_CLOCK])
        if policy == "kernel":
            _assert_revert(slim, patched)
    memory = {**places, **booted.memory}
    for name, target in SETS.items():
        key = slim.keys[name]
        assert _func(memory, key) == slim.address(RETURN0 if target == "RET0" else target) != key.func
        calls = [call for call in slim.calls if call.key == name]
        assert patched.sites(name) == {call.address for call in calls if slim.is_direct(call, policy)}
        assert {key.address, key.trampoline, *patched.sites(name)}.isdisjoint(booted.memory)
    # So the trampolines and all sites lead there too, whether the policy patched them or left them to the boot.
    assert _incoherent(slim, memory) == []
    assert _seconds_of_sleep(booted) < 0.001


# What these tests could not see, they would not guard against.


@contextmanager
def _changed_by_hand(kernel: Vmlinux, folder: Path, changes: Places) -> Iterator[Path]:
    """A kernel with other bytes at some addresses, and nothing that asks whether that is right."""
    path = folder / "vmlinux"
    try:
        shutil.copyfile(kernel.path, path)
        with path.open("r+b") as file:
            for address, code in changes.items():
                section = kernel.section(address)
                file.seek(section.offset + address - section.address)
                file.write(code)
        yield path
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("kernel", ["61"], indirect=True)
def test_half_a_change_shows_in_memory(slim: Vmlinux, tmp_path: Path) -> None:
    site_only, slot_only = slim.keys["amd_pstate_enable"], slim.keys["xen_hypercall"]
    site = next(call for call in slim.calls if call.key == site_only.name and call.stays)
    (wrong,) = slim.codes_for(site, slim.address(SETS[site_only.name]))
    new_func = slim.address(SETS[slot_only.name])
    changes = {site.address: wrong, slot_only.address: struct.pack("<Q", new_func)}
    with _changed_by_hand(slim, tmp_path, changes) as path:
        places = _places(slim, path, [site_only.name, slot_only.name])
        booted = _boot(path, tmp_path, places)
    memory = {**places, **booted.memory}
    # The kernel undoes a change that the key knows nothing of, and its sites follow a key that the trampoline does not.
    assert {memory[site.address]} == slim.codes_for(site, site_only.func) != {wrong}
    assert _func(memory, slot_only) == new_func
    assert [line.split(":")[0] for line in _incoherent(slim, memory)] == [
        f"{slot_only.name} at {slot_only.trampoline:#x}"
    ]


@pytest.mark.parametrize("kernel", ["61"], indirect=True)
def test_a_kernel_stops_at_a_site_that_it_would_not_have_written(slim: Vmlinux, tmp_path: Path) -> None:
    site = next(call for call in slim.calls if call.code[0] == CALL and call.stays)
    harmless = bytes.fromhex("0f1f400090")  # two nops, and not the one
    with _changed_by_hand(slim, tmp_path, {site.address: harmless}) as path:
        booted = guest.boot(path, tmp_path / "guest", seconds=SECONDS_OF_SILENCE)
    # It stops before it has a console.
    assert "Linux version" not in booted.log
    assert booted.problems[0] == f"guest: no end within {SECONDS_OF_SILENCE} s"
