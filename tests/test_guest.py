"""The guest is a measuring instrument: unpatched kernels show that it reads true and that it sees faults."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.support import guest

# Constants that every kernel has and none of them writes to.
_CONSTANTS = ("linux_banner", "linux_proc_banner", "hex_asc", "hex_asc_upper", "byte_rev_table", "_ctype")

# Half of the address space lies between the last address of user space and this one; no memory is there.
_NON_CANONICAL = 1 << 63

_HEALTHY = """\
Booting from ROM..[    0.000000] Linux version 6.12
[    0.500000] DEBUGGING nothing; the option warn_only stays unset
[    0.600000] RETBleed: WARNING: some processor models need other options
[    2.900000] Run /init as init process

::guest user-space::

::guest begin preempt::
none (voluntary) full

::guest end preempt 0::

::guest begin memory::
differs ffffffff81000000 e8000000
unmapped 8000000000000000
compared 3 differing 1 unmapped 1

::guest end memory 0::

::guest begin command-0000::
[    0.100000] BUG: quoted by a command

::guest end command-0000 0::

::guest begin messages::
[    0.000000] Linux version 6.12
[    2.900000] Run /init as init process

::guest end messages 0::
"""


def _constants(vmlinux: Path) -> list[tuple[int, bytes]]:
    """Find what the file holds where some constants start."""
    listing = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True).stdout
    symbols = {name: int(address, 16) for address, _, name in map(str.split, listing.splitlines())}
    with vmlinux.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".rodata")
        assert section is not None
        start, offset, size = section["sh_addr"], section["sh_offset"], section["sh_size"]
        places = []
        for name in _CONSTANTS:
            address = symbols[name]
            assert start <= address < start + size, name
            file.seek(offset + address - start)
            places.append((address, file.read(guest.LONGEST_PLACE)))
    return places


@pytest.mark.kernel
@pytest.mark.boot
@pytest.mark.usefixtures("guest_tools")
@pytest.mark.parametrize("series", ["612", "61"])
def test_unpatched_kernel_runs_well_and_holds_what_its_file_holds(
    series: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    vmlinux: Path = request.getfixturevalue(f"vmlinux_{series}")
    constants = _constants(vmlinux)
    wrong_address, right = constants[0]
    wrong = right[:-1] + bytes([right[-1] ^ 1])

    booted = guest.boot(
        vmlinux,
        tmp_path,
        places=[*constants[1:], (wrong_address, wrong), (_NON_CANONICAL, b"\0")],
        commands=["uname -r", "cat /proc/cmdline"],
        kernel_options="quiet",
    )

    assert booted.reached_user_space, booted.log
    assert booted.problems == ()
    assert "(" in booted.preempt
    assert booted.compared == len(constants) + 1
    assert booted.memory == {wrong_address: right}
    assert booted.unmapped == (_NON_CANONICAL,)
    assert booted.outputs[0] == vmlinux.name.removeprefix("vmlinux-") + "\n"
    assert booted.outputs[1].endswith(" quiet\n")


def test_a_healthy_log_is_taken_apart() -> None:
    booted = guest.read_log(_HEALTHY, expected_places=3)
    assert booted.reached_user_space
    assert booted.preempt == "none (voluntary) full"
    assert booted.problems == ()
    assert booted.compared == 3
    assert booted.memory == {0xFFFFFFFF81000000: b"\xe8\0\0\0"}
    assert booted.differing([0xFFFFFFFF81000000, 0xFFFFFFFF82000000]) == (0xFFFFFFFF81000000,)
    assert booted.unmapped == (1 << 63,)
    assert booted.outputs == ("[    0.100000] BUG: quoted by a command\n",)


@pytest.mark.parametrize(
    "complaint",
    [
        "kernel BUG at arch/x86/kernel/static_call.c:132!",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "WARNING: CPU: 0 PID: 1 at kernel/static_call_inline.c:1 f+0x1/0x2",
        "unexpected static_call insn opcode 0x2e at f+0x1/0x2",
        "static call site signature fail: ffffffff81000000: e9 00 00 00 00 0f b9 cd",
        "general protection fault, probably for non-canonical address 0x1: 0000 [#1]",
        "Oops: invalid opcode: 0000 [#1] PREEMPT SMP",
        "Call Trace:",
        "Kernel panic - not syncing: Attempted to kill init!",
    ],
)
def test_a_complaint_of_the_kernel_is_a_problem_once(complaint: str) -> None:
    line = f"[    1.234567] {complaint}"
    log = _HEALTHY.replace("[    2.900000]", f"{line}\n[    2.900000]")
    assert log.count(line) == 2
    assert guest.read_log(log, expected_places=3).problems == (line,)


def test_a_guest_that_dies_early_shows_no_results_and_a_problem() -> None:
    log = _HEALTHY[: _HEALTHY.index("differs")] + "[    3.100000] Kernel panic - not syncing: gone\n"
    booted = guest.read_log(log, expected_places=3)
    assert booted.reached_user_space
    assert booted.compared == 0
    assert booted.problems == (
        "[    3.100000] Kernel panic - not syncing: gone",
        "guest: it ended before its last answer",
    )


def test_a_comparison_that_stopped_short_is_a_problem() -> None:
    assert guest.read_log(_HEALTHY, expected_places=4).problems[0].startswith("guest: 3 of 4 places compared")


@pytest.mark.parametrize("expected", [b"", bytes(guest.LONGEST_PLACE + 1)])
@pytest.mark.usefixtures("guest_tools")
def test_a_place_of_impossible_length_is_refused(expected: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a place has 1 to 15 bytes"):
        guest.boot(tmp_path / "no-kernel", tmp_path, places=[(0, expected)])


@pytest.mark.usefixtures("guest_tools")
def test_a_file_that_is_no_kernel_is_an_error_not_a_boot(tmp_path: Path) -> None:
    broken = tmp_path / "vmlinux"
    broken.write_bytes(b"no kernel at all")
    with pytest.raises(guest.GuestError, match="qemu"):
        guest.boot(broken, tmp_path)


@pytest.mark.kernel
@pytest.mark.boot
@pytest.mark.usefixtures("guest_tools")
def test_a_kernel_that_panics_is_a_boot_with_problems(vmlinux_61: Path, tmp_path: Path) -> None:
    booted = guest.boot(vmlinux_61, tmp_path, commands=["echo c > /proc/sysrq-trigger"])
    assert booted.reached_user_space
    assert any("Kernel panic" in problem for problem in booted.problems)
    assert booted.problems[-1] == "guest: it ended before its last answer"


@pytest.mark.kernel
@pytest.mark.boot
@pytest.mark.usefixtures("guest_tools")
def test_a_kernel_that_never_ends_is_a_boot_with_a_problem(vmlinux_61: Path, tmp_path: Path) -> None:
    # Less time than any machine needs, so that it does not matter how fast this one is.
    booted = guest.boot(vmlinux_61, tmp_path, seconds=0.1)
    assert not booted.reached_user_space
    assert booted.problems[0] == "guest: no end within 0.1 s"
