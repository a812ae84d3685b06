"""Patches a kernel, boots it, and holds its memory against the file: what the tests that boot kernels share."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.support import guest
from tests.support.guest import Boot
from tests.support.tool import digest, succeed
from tests.support.vmlinux import Key, Vmlinux

# What the first one does shows from outside: it counts hundredths of a second where nanoseconds are expected.
# The others are never called in the guest, and have many sites, and sites in .init.text.
SETS: Mapping[str, str] = MappingProxyType(
    {
        "pv_sched_clock": "trace_clock_jiffies",
        "xen_hypercall": "xen_hypercall_amd",
        "amd_pstate_enable": "cppc_enable",
    }
)

# An emulated time stamp counter may look unstable on a busy machine, and then the kernel takes another clock.
RELIABLE_CLOCK = "tsc=reliable"
ASK_CLOCK = "mknod /kmsg c 1 11; echo stamp > /kmsg; sleep 1; echo stamp > /kmsg; dmesg | grep ' stamp$'"

Places = Mapping[int, bytes]


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
def patched_kernel(kernel: Vmlinux, folder: Path, *arguments: str) -> Iterator[Patched]:
    """A patched and verified kernel. It is hundreds of megabytes, so at the end it is gone."""
    path, edits = folder / "vmlinux", folder / "edits.json"
    try:
        succeed("patch", kernel.path, *arguments, "-o", path, "--edits", edits)
        succeed("verify", kernel.path, path)
        yield Patched(path, edits, tuple(json.loads(edits.read_text())["edits"]))
    finally:
        path.unlink(missing_ok=True)


def assert_revert(kernel: Vmlinux, patched: Patched) -> None:
    succeed("revert", patched.path, "--edits", patched.edits_path, "--in-place")
    assert digest(patched.path) == digest(kernel.path)


# Memory


def places_of(kernel: Vmlinux, path: Path, names: Iterable[str]) -> Places:
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


def boot_and_compare(
    path: Path, folder: Path, places: Places, *, options: str = "", commands: Sequence[str] = (), cpu: str = "qemu64"
) -> Boot:
    work = folder / "guest"
    booted = guest.boot(path, work, places=list(places.items()), commands=commands, kernel_options=options, cpu=cpu)
    assert booted.reached_user_space, booted.log
    assert booted.problems == ()
    assert booted.compared == len(places)
    assert booted.unmapped == ()
    return booted


def func_in(memory: Places, key: Key) -> int:
    (func,) = struct.unpack("<Q", memory[key.address])
    return int(func)


def incoherent(kernel: Vmlinux, memory: Places) -> list[str]:
    """The sites and trampolines that in memory do something else than the slots of their keys say there."""
    keys = [key for key in kernel.keys.values() if key.address in memory]
    funcs = {key.name: func_in(memory, key) for key in keys}
    calls = [call for call in kernel.calls if call.address in memory]
    calls += (kernel.trampoline_of(key) for key in keys)
    return [
        f"{call.key} at {call.address:#x}: {memory[call.address].hex()}"
        for call in calls
        if memory[call.address] not in kernel.codes_for(call, funcs[call.key])
    ]


def seconds_of_sleep(booted: Boot) -> float:
    """How far the kernel's clock moved while the guest slept for a second."""
    first, second = re.findall(r"^\[ *(\d+\.\d+)\] stamp", booted.outputs[0], re.MULTILINE)
    return float(second) - float(first)


@contextmanager
def changed_by_hand(kernel: Vmlinux, folder: Path, changes: Places) -> Iterator[Path]:
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
