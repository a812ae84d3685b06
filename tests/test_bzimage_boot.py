"""A bzImage rewritten as a whole and booted three times with KASLR: it is elsewhere, and all of it is right.

The older kernel, whose payload is compressed with lz4, is booted once: a boot takes ten seconds.

The new kernel is packed into the boot image, its decompressor unpacks it and relocates it by the list behind it. Keys
that were NULL have functions and the other way round, so the list gained and lost slots, and the whole became longer.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from tests.support import bzimage, guest
from tests.support.booting import ASK_CLOCK, RELIABLE_CLOCK, incoherent, seconds_of_sleep
from tests.support.tool import succeed
from tests.support.vmlinux import Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

BOOTS = 3
LZ4 = b"\x02\x21\x4c\x18"
# It counts hundredths of a second where nanoseconds are expected.
CLOCK = ("pv_sched_clock", "trace_clock_jiffies")
# NULL in the file, and for a processor that the emulator does not have, so that nobody sets them at boot.
FILLED = {"amd_pmu_branch_reset": "amd_brs_reset", "amd_pmu_branch_add": "amd_pmu_brs_add"}
EMPTIED = "amd_pstate_update_perf"
SETS = (CLOCK, *FILLED.items(), (EMPTIED, "NULL"))
ASK_PLACE = "grep -m 1 ' T _text$' /proc/kallsyms"


class Rewritten(NamedTuple):
    """A boot image with another kernel in it, that kernel, and how often to boot it."""

    path: Path
    inside: Path
    boots: int


@pytest.fixture(scope="module")
def rewritten(vmlinuz: Path, tmp_path_factory: pytest.TempPathFactory) -> Rewritten:
    folder = tmp_path_factory.mktemp("rewritten")
    sets = [f"--set={key}={target}" for key, target in SETS]
    out = folder / "vmlinuz"
    succeed("patch", vmlinuz, "-o", out, "--strip-signature", "--bind", *sets)
    boots = 1 if bzimage.payload(vmlinuz.read_bytes()).startswith(LZ4) else BOOTS
    return Rewritten(out, bzimage.unpack(out, folder / "vmlinux.bin.all"), boots)


def _held(path: Path, sizes: Mapping[int, int]) -> dict[int, bytes]:
    """What a stripped kernel's file holds at linked addresses."""
    with path.open("rb") as file:
        loads = [load for load in ELFFile(file).iter_segments() if load["p_type"] == "PT_LOAD"]
        found = {}
        for address, size in sorted(sizes.items()):
            (load,) = (load for load in loads if 0 <= address - load["p_vaddr"] < load["p_filesz"])
            file.seek(load["p_offset"] + address - load["p_vaddr"])
            found[address] = file.read(size)
    return found


def _sizes(kernel: Vmlinux) -> dict[int, int]:
    """The places of all static calls that a running kernel still has."""
    sizes = {call.address: len(call.code) for call in kernel.calls if call.stays}
    for key in kernel.keys.values():
        sizes |= {key.address: 8, key.trampoline: 5}
    return sizes


def _unmoved(memory: Mapping[int, bytes], slots: Iterable[int], distance: int) -> dict[int, bytes]:
    """Memory with its slots as they would be in a kernel that had not moved; NULL does not move."""
    found = dict(memory)
    for slot in slots:
        (func,) = struct.unpack("<Q", memory[slot])
        found[slot] = struct.pack("<Q", func - distance if func else 0)
    return found


def test_the_list_gained_and_lost_slots(kernel: Vmlinux, unpacked: Path, rewritten: Rewritten) -> None:
    before, after = (bzimage.relocated(path.read_bytes()) for path in (unpacked, rewritten.inside))
    filled = {kernel.keys[name].address for name in FILLED}

    assert after.wide == before.wide - {kernel.keys[EMPTIED].address} | filled
    assert not before.wide & filled
    assert (after.inverse, after.narrow) == (before.inverse, before.narrow)
    assert rewritten.inside.stat().st_size == unpacked.stat().st_size + 4


def test_it_boots_wherever_it_is_loaded(kernel: Vmlinux, rewritten: Rewritten, tmp_path: Path) -> None:
    slots = [key.address for key in kernel.keys.values()]
    places = _held(rewritten.inside, _sizes(kernel))
    distances = set()
    for number in range(rewritten.boots):
        booted = guest.boot(
            rewritten.path,
            tmp_path / str(number),
            places=list(places.items()),
            commands=[ASK_CLOCK, ASK_PLACE, "cat /proc/version"],
            kernel_options=RELIABLE_CLOCK,
        )
        assert booted.reached_user_space, booted.log
        assert (booted.problems, booted.compared, booted.unmapped) == ((), len(places), ())
        assert re.search(rf"^Linux version {re.escape(kernel.path.name.removeprefix('vmlinux-'))} ", booted.outputs[2])
        distance = int(booted.outputs[1].split()[0], 16) - kernel.address("_text")
        distances.add(distance)
        memory = _unmoved({**places, **booted.memory}, slots, distance)

        for name, target in (CLOCK, *FILLED.items()):
            assert memory[kernel.keys[name].address] == struct.pack("<Q", kernel.address(target))
        assert memory[kernel.keys[EMPTIED].address] == bytes(8)
        assert incoherent(kernel, memory) == []
        assert seconds_of_sleep(booted) < 0.001
    assert len(distances) > 1 or rewritten.boots == 1
