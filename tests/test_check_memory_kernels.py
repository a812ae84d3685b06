"""The memory of kernels in an emulator, moved as they like, against the allow-list.

What is changed by hand in the memory has to be found, and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import kernels, memory_dump, vmlinux
from tests.support.integrity import UNKNOWN, branch, check, codes, memory, offset_in, one_line, poked
from tests.support.memory_dump import PAUSE, Monitor
from tests.support.runtime import FIXTURES
from tests.support.tool import Json, staticcall
from tests.support.vmlinux import RETURN0, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

EVENTS = "/sys/kernel/debug/tracing/events/sched"
PREEMPT = "/sys/kernel/debug/sched/preempt"
ONE_MODEL, OTHER_MODEL = "voluntary", "full"


class Guest(NamedTuple):
    """A kernel that moved itself, its memory at two moments, and what it said of itself.

    `first` are cores of virtual and of physical addresses, `later` one of physical addresses, with another preemption
    model and with events switched on. `kcore` is what /proc/kcore had of the ranges, as a small core.
    """

    kernel: Vmlinux
    slide: int
    physical: int
    first: Mapping[bool, Path]
    later: Path
    kcore: Path

    def place(self, core: Path, address: int) -> int:
        """Where a core of physical addresses has a linked address, by what the kernel said."""
        return offset_in(core, self.physical + address - self.kernel.address("_text"), physical=True)


def _packed(kernel: Vmlinux) -> Path:
    """The kernel as it is installed, which unpacks and moves itself."""
    return kernels.image(kernel.path) / "boot" / kernel.path.name.replace("vmlinux", "vmlinuz")


def _parts(kernel: Vmlinux, path: Path) -> Path:
    """What kcore_copy shall copy: every site, trampoline and key, and what the kernel is recognized by."""
    parts = {call.address: len(call.code) for call in kernel.calls if call.stays}
    parts |= {key.trampoline: 8 for key in kernel.keys.values()} | {key.address: 8 for key in kernel.keys.values()}
    parts |= {kernel.address("linux_banner"): 256}
    notes = next(section for section in kernel.sections if section.name == ".notes")
    parts |= {notes.address: notes.size}
    path.write_bytes(b"".join(struct.pack("<QQ", *part) for part in sorted(parts.items())))
    return path


def _kcore_copy(folder: Path) -> Path:
    program = folder / "kcore_copy"
    source = FIXTURES / "guest" / "kcore_copy.c"
    subprocess.run(["gcc", "-static", "-O2", "-D_GNU_SOURCE", "-o", program, source], check=True)
    return program


@pytest.fixture(scope="module")
def guest(kernel: Vmlinux, slim: Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("memory")
    first = {paging: folder / f"first-{paging}" for paging in (True, False)}
    later = folder / "later"

    def look(number: int, monitor: Monitor) -> None:
        if number:
            monitor.dump(later, paging=False)
        else:
            for paging, path in first.items():
                monitor.dump(path, paging=paging)

    (folder / "guest").mkdir()
    boot = memory_dump.run(
        _packed(kernel),
        folder / "guest",
        commands=[
            "grep ' _text$' /proc/kallsyms; grep 'Kernel code' /proc/iomem",
            "/files/kcore_copy /files/parts | gzip -c | base64",
            PAUSE,
            f"echo {OTHER_MODEL} > {PREEMPT}; echo 1 > {EVENTS}/enable; cat {PREEMPT} {EVENTS}/sched_switch/enable",
            PAUSE,
            f"echo 0 > {EVENTS}/enable; echo {ONE_MODEL} > {PREEMPT}; cat {PREEMPT}",
        ],
        at_pause=look,
        files={"kcore_copy": _kcore_copy(folder), "parts": _parts(kernel, folder / "parts")},
    )
    assert boot.problems == (), boot.log[-3000:]
    assert f"({OTHER_MODEL})" in boot.outputs[3]
    kcore = folder / "kcore"
    kcore.write_bytes(gzip.decompress(base64.b64decode(boot.outputs[1])))
    virtual, physical = boot.outputs[0].splitlines()
    slide = int(virtual.split()[0], 16) - kernel.address("_text")
    yield Guest(slim, slide, int(physical.partition("-")[0], 16), first, later, kcore)
    for path in (*first.values(), later):
        path.unlink()


@pytest.fixture(scope="module")
def started(guest: Guest) -> Mapping[bool, Json]:
    """What is said of the first cores."""
    return {paging: check(guest.kernel.path, core) for paging, core in guest.first.items()}


def _stay(kernel: Vmlinux) -> int:
    return sum(call.stays for call in kernel.calls)


def _unknown(document: Json) -> set[str]:
    return {one["key"] for one in document["ranges"] if one["judgement"] == "unknown"}


class TestKernels:
    @pytest.mark.parametrize("paging", [True, False])
    def test_a_kernel_is_found_where_it_says_it_is(
        self, guest: Guest, started: Mapping[bool, Json], paging: bool
    ) -> None:
        core = started[paging]["core"]

        assert int(core["slide"], 16) == guest.slide != 0
        assert core["addresses"] == ("virtual" if paging else "physical")

    @pytest.mark.parametrize("paging", [True, False])
    def test_everything_is_legal_after_a_start(self, guest: Guest, started: Mapping[bool, Json], paging: bool) -> None:
        document = started[paging]
        sites, trampolines = document["summary"]["sites"], document["summary"]["trampolines"]

        assert set(codes(document)) <= {"unknown-target"}
        assert _unknown(document) <= UNKNOWN
        assert sites["legal"] + sites["unknown"] == _stay(guest.kernel)
        assert sites["freed"] + sites["absent"] == len(guest.kernel.calls) - _stay(guest.kernel)
        assert trampolines["legal"] + trampolines["unknown"] == len(guest.kernel.keys)
        # What is unknown is where its key says.
        assert all(one["agrees_with_key"] for one in document["ranges"])

    def test_what_is_unknown_can_be_named(self, guest: Guest, started: Mapping[bool, Json]) -> None:
        named = (f"--target={key}=native_apic_mem_eoi" for key in _unknown(started[True]))

        assert not codes(check(guest.kernel.path, guest.kcore, *named))

    def test_everything_is_legal_after_switches(self, guest: Guest) -> None:
        document = check(guest.kernel.path, guest.later, "-v")

        assert set(codes(document)) <= {"unknown-target"}
        assert _unknown(document) <= UNKNOWN
        # Every site of a key that was led to a return of 0 says so; in memory it is as the kernel's source has it.
        for call in guest.kernel.calls:
            if call.key in ("cond_resched", "might_resched") and call.stays:
                code = memory(guest.later, guest.place(guest.later, call.address), len(call.code))
                assert {code} == guest.kernel.codes_for(call, guest.kernel.address(RETURN0))
        stay = [one for one in document["ranges"] if one["judgement"] == "legal"]
        assert {one["state"] for one in stay if one["key"] in ("cond_resched", "might_resched")} == {"ret0"}
        assert {one["state"] for one in stay if one["key"] == "tp_func_sched_switch"} == {"function"}

    def test_proc_kcore_says_itself_how_far_it_moved(self, guest: Guest) -> None:
        document = check(guest.kernel.path, guest.kcore)

        assert document["core"]["origin"] == "VMCOREINFO"
        assert int(document["core"]["slide"], 16) == guest.slide
        assert document["summary"]["sites"]["legal"] >= _stay(guest.kernel) - len(UNKNOWN)
        assert document["summary"]["sites"]["corrupt"] == 0
        assert _unknown(document) <= UNKNOWN

    def test_a_slide_can_be_said(self, guest: Guest) -> None:
        right = check(guest.kernel.path, guest.first[True], "--slide", hex(guest.slide))
        # A multiple of 2 MiB could be the physical slide, which is chosen at random too, and may be said as well.
        wrong = staticcall(
            "check-memory", guest.kernel.path, "--core", guest.first[True], "--slide", hex(guest.slide + (1 << 20))
        )

        assert right["core"]["origin"] == "as --slide says"
        assert one_line(wrong) == 3

    def test_another_kernels_memory_is_refused(
        self, guest: Guest, kernel: Vmlinux, request: pytest.FixtureRequest
    ) -> None:
        other = next(
            path for name in ("vmlinux_612", "vmlinux_61") if (path := request.getfixturevalue(name)) != kernel.path
        )
        outcome = staticcall("check-memory", other, "--core", guest.first[False])

        assert one_line(outcome) == 3
        assert "does not hold the memory of this image" in outcome.err


# Kernels, changed


class Changed(NamedTuple):
    """A kernel whose memory was changed in many places at once: where, by what was done there, and what is said."""

    places: Mapping[str, int]
    document: Json
    text: str

    def range(self, change: str) -> Json:
        (one,) = (one for one in self.document["ranges"] if int(one["address"], 16) == self.places[change])
        assert isinstance(one, dict)
        return one

    def judgement(self, change: str) -> str:
        return str(self.range(change)["judgement"])


def _changes(guest: Guest, core: Path) -> Iterator[tuple[str, int, int, bytes]]:
    """What is done, the address of the range, that of the bytes, and the bytes."""
    kernel = guest.kernel

    def sites(key: str) -> Iterator[vmlinux.Call]:
        return (call for call in kernel.calls if call.key == key and call.stays and call.code[0] == vmlinux.CALL)

    probed = (next(sites(key)) for key in sorted(kernel.keys) if key.startswith("tp_func_sched_") and any(sites(key)))
    for byte, call in zip(range(5), probed, strict=False):
        wrong = bytearray(memory(core, guest.place(core, call.address), 5))
        wrong[byte] ^= 0x80 if byte == 4 else 0x40  # 2 GiB away there is nothing
        yield f"byte {byte}", call.address, call.address, bytes(wrong)
    might, cond = sites("might_resched"), sites("cond_resched")
    for change, name in (("function", "commit_creds"), ("data", "linux_banner")):
        call = next(might)
        yield change, call.address, call.address, branch(call.code, call.address, kernel.address(name))
    call = next(might)
    # Behind a kernel's own code and data there is nothing before its modules.
    yield "gap", call.address, call.address, branch(call.code, call.address, kernel.address("_end") + (16 << 20))
    call = next(might)
    yield "nop", call.address, call.address, vmlinux.NOP
    for change in ("call xor", "xor call", "int3 call", "int3 xor", "int3 call xor"):
        call = next(cond)
        code = branch(call.code, call.address, kernel.address("__cond_resched"))
        xor = vmlinux.XOR
        torn = {
            "call xor": code[:3] + xor[3:],
            "xor call": xor[:3] + code[3:],
            "int3 call": b"\xcc" + code[1:],
            "int3 xor": b"\xcc" + xor[1:],
            "int3 call xor": b"\xcc" + code[1:3] + xor[3:],
        }
        yield change, call.address, call.address, torn[change]
    one, other = (kernel.keys[key].trampoline for key in ("preempt_schedule", "preempt_schedule_notrace"))
    yield "signature", one, one + 5, b"\x0f\xb9\xcd"
    yield "jump", other, other, b"\xe8"


@pytest.fixture(scope="module")
def changed(guest: Guest) -> Changed:
    core = guest.first[False]
    changes = list(_changes(guest, core))
    with ExitStack() as stack:
        for _, _, address, data in changes:
            stack.enter_context(poked(core, guest.place(core, address), data))
        document = check(guest.kernel.path, core, code=1)
        outcome = staticcall("check-memory", guest.kernel.path, "--core", core, "-v")
    assert outcome.code == 1
    return Changed({change: place for change, place, _, _ in changes}, document, outcome.out)


class TestChangedKernels:
    def test_only_what_was_changed_is_listed(self, changed: Changed) -> None:
        listed = {int(one["address"], 16) for one in changed.document["ranges"] if one["key"] not in UNKNOWN}

        assert listed == set(changed.places.values())

    @pytest.mark.parametrize("byte", range(5))
    def test_one_wrong_byte_is_found(self, guest: Guest, changed: Changed, byte: int) -> None:
        # A displacement may by chance still lead to code.
        wanted = {"corrupt"} if byte in (0, 4) else {"corrupt", "unknown"}
        assert changed.judgement(f"byte {byte}") in wanted
        (call,) = (call for call in guest.kernel.calls if call.address == changed.places[f"byte {byte}"])
        assert changed.range(f"byte {byte}")["key"] == call.key

    def test_a_call_of_another_function_is_unknown_and_named(self, guest: Guest, changed: Changed) -> None:
        one = changed.range("function")

        assert (one["judgement"], one["agrees_with_key"]) == ("unknown", False)
        assert int(one["destination"], 16) == guest.kernel.address("commit_creds")
        assert "might_resched" in changed.text
        assert "leads to commit_creds, its key elsewhere" in changed.text

    @pytest.mark.parametrize("change", ["call xor", "xor call", "int3 call xor"])
    def test_halves_of_two_contents_are_corrupt(self, changed: Changed, change: str) -> None:
        assert changed.judgement(change) == "corrupt"

    def test_every_step_of_an_update_is_legal(self, changed: Changed) -> None:
        assert {changed.judgement("int3 call"), changed.judgement("int3 xor")} == {"legal"}
        assert changed.document["summary"]["int3"] == 2

    def test_another_legal_function_than_the_keys_is_told(self, changed: Changed) -> None:
        one = changed.range("nop")

        assert (one["judgement"], one["state"], one["agrees_with_key"]) == ("legal", "null", False)
        assert "not-as-key" in codes(changed.document)

    @pytest.mark.parametrize("change", ["signature", "jump"])
    def test_a_trampolines_signature_and_jump_are_looked_at(self, changed: Changed, change: str) -> None:
        one = changed.range(change)

        assert (one["kind"], one["judgement"]) == ("trampoline", "corrupt")

    @pytest.mark.parametrize("change", ["data", "gap"])
    def test_a_call_of_what_is_no_code_is_corrupt(self, changed: Changed, change: str) -> None:
        assert changed.judgement(change) == "corrupt"


def test_calls_that_a_processor_has_counted_are_legal(vmlinux_612: Path, tmp_path: Path) -> None:
    """Such a kernel enters functions by nine bytes of accounting in front of them."""
    core = tmp_path / "core"
    (tmp_path / "guest").mkdir()
    boot = memory_dump.run(
        _packed(vmlinux.read(vmlinux_612)),
        tmp_path / "guest",
        commands=["cat /sys/devices/system/cpu/vulnerabilities/retbleed", PAUSE],
        at_pause=lambda _, monitor: monitor.dump(core, paging=False),
        kernel_options="retbleed=stuff spectre_v2=retpoline",
        cpu="Skylake-Client",
    )
    assert "Stuffing" in boot.outputs[0]
    document = check(vmlinux_612, core)
    core.unlink()

    assert document["summary"]["states"]["accounted"] > 3000
    assert _unknown(document) <= UNKNOWN
    assert set(codes(document)) <= {"unknown-target"}
