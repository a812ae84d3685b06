"""Would this kernel stop at these bytes? Kernels and a module with bytes changed by hand are booted, and show it.

A kernel that stops at a site has no console yet: it hangs without a word, so there are few of those. The rest of what
is said about sites is tried on the kernels' own code, in test_generations.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import guest, modules
from tests.support.booting import Places, boot_and_compare, changed_by_hand
from tests.support.modules import Development
from tests.support.tool import Json, report, staticcall
from tests.support.vmlinux import JCC, JMP, Call, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

SECONDS_OF_SILENCE = 15  # the first message takes one second
SECONDS_OF_WORK = 60  # what stops in the middle of an update may not come to an end
# No processor of the guests has what these are for, so nobody calls them or leads them elsewhere.
QUIET_CALLS, QUIET_TAILS = ("tp_func_xen_mc_entry",), ("amd_pmu_branch_add", "amd_pmu_branch_del", "x86_pmu_read")
# A tracepoint's static call is updated when its event is switched on.
UPDATED, UPDATE = "tp_func_xen_mc_entry", "echo 1 > /sys/kernel/debug/tracing/events/xen/xen_mc_entry/enable"
OBJECTIONS = ("unaccepted-bytes", "unaccepted-trampoline", "unknown-trampoline")


def _objections(path: Path) -> dict[int, Json]:
    """What the report has against the bytes at sites and in trampolines, by address."""
    findings = report("--fail-on", "never", path)["findings"]
    return {int(found["address"], 16): found for found in findings if found["code"] in OBJECTIONS}


def _sites(kernel: Vmlinux, keys: tuple[str, ...], *, tail: bool) -> list[Call]:
    return [call for call in kernel.calls if call.key in keys and call.stays and call.tail is tail]


def test_a_kernel_boots_with_every_form_that_is_said_to_be_accepted(slim: Vmlinux, tmp_path: Path) -> None:
    forms = {
        False: ("0f1f440000", "2e2e2e31c0"),
        True: ("c3cccccccc", "c390909090", "0f8400000000"),
    }
    changes: dict[int, bytes] = {}
    sites: list[Call] = []
    for tail, keys in ((False, QUIET_CALLS), (True, QUIET_TAILS)):
        found = [site for key in keys for site in _sites(slim, (key,), tail=tail)[: 2 if not tail else 1]]
        for site, form in zip(found, forms[tail], strict=True):
            changes[site.address] = bytes.fromhex(form)
            sites.append(site._replace(code=bytes.fromhex(form)) if form.startswith(f"{JCC:02x}8") else site)
    with changed_by_hand(slim, tmp_path, changes) as path:
        assert _objections(path) == {}
        assert "does not accept" not in staticcall("verify", slim.path, path).err
        places: Places = {site.address: changes[site.address][: len(site.code)] for site in sites}
        booted = boot_and_compare(path, tmp_path, places)
    memory = {**places, **booted.memory}
    for site in sites:
        # The kernel has written over them what it wants, for a jcc a jcc.
        assert memory[site.address] in slim.codes_for(site, slim.keys[site.key].func), hex(site.address)


@pytest.mark.parametrize(
    ("kernel", "code"),
    [("61", "66664831c0"), ("612", "67480fb93a")],
    indirect=["kernel"],
    ids=["6.1, an earlier xor", "6.12, a later trap"],
)
def test_a_kernel_stops_where_it_is_said_to_do_so_at_boot(slim: Vmlinux, tmp_path: Path, code: str) -> None:
    site, *_ = _sites(slim, QUIET_CALLS, tail=False)
    with changed_by_hand(slim, tmp_path, {site.address: bytes.fromhex(code)}) as path:
        assert _objections(path)[site.address]["message"].endswith("does not accept: BUG() at boot")
        assert "does not accept: BUG() at boot" in staticcall("verify", slim.path, path).err
        booted = guest.boot(path, tmp_path / "guest", seconds=SECONDS_OF_SILENCE)
    assert "Linux version" not in booted.log
    assert booted.problems[0] == f"guest: no end within {SECONDS_OF_SILENCE} s"


def test_a_kernel_stops_at_a_trampoline_when_its_static_call_is_updated(slim: Vmlinux, tmp_path: Path) -> None:
    trampoline = slim.keys[UPDATED].trampoline
    with changed_by_hand(slim, tmp_path, {trampoline + 5: b"SCT"}) as path:
        assert "BUG() when the static call is updated" in _objections(path)[trampoline]["message"]
        assert "BUG() when the static call is updated" in staticcall("verify", slim.path, path).err
        booted = guest.boot(path, tmp_path / "guest", commands=["dmesg", UPDATE], seconds=SECONDS_OF_WORK)
    assert booted.reached_user_space, booted.log
    before = booted.outputs[0]
    assert "BUG" not in before
    assert "trampoline signature fail" not in before
    assert any("trampoline signature fail" in line for line in booted.problems)
    assert any("kernel BUG at arch/x86/kernel/static_call.c" in line for line in booted.problems)


def test_a_module_stops_the_kernel_where_it_is_said_to_do_so_when_loaded(
    development: Development, tmp_path: Path
) -> None:
    original, bypass = (modules.packaged(development, name, tmp_path) for name in ("kvm", "irqbypass"))
    data = bytearray(modules.unsigned(original.read_bytes()))
    site = next(site for site in report(original)["sites"] if site["form"] == "call" and site["section"] == ".text")
    data[site["file_offset"]] = JMP
    changed = tmp_path / "changed.ko"
    changed.write_bytes(data)
    findings = report("--fail-on", "never", changed)["findings"]
    (finding,) = [found for found in findings if found["code"] in OBJECTIONS]
    assert finding["message"].startswith(f"record {site['record']} ")
    assert finding["message"].endswith("does not accept: BUG() when the module is loaded")
    files = {path.name: path for path in (bypass, changed)}
    booted = guest.boot(
        development.vmlinux,
        tmp_path / "guest",
        files=files,
        commands=[f"insmod /files/{bypass.name}", "dmesg", f"insmod /files/{changed.name}"],
        seconds=SECONDS_OF_WORK,
    )
    assert booted.reached_user_space
    assert "BUG" not in booted.outputs[1]
    assert any("unexpected static_call insn opcode 0xe9" in line for line in booted.problems)
    assert any("kernel BUG at arch/x86/kernel/static_call.c" in line for line in booted.problems)
