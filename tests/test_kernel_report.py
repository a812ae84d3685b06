"""Reports on real kernels, against an independent reading of the same files and against objdump."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from tests.support import nameless, tool
from tests.support.tool import POLICIES, Json
from tests.support.vmlinux import (
    CALL,
    JMP,
    RETURN0,
    RETURN_THUNK,
    TABLE_START,
    TABLE_STOP,
    TRAMPOLINE,
    Call,
    Key,
    Vmlinux,
)

pytestmark = pytest.mark.kernel

MOST_MEMORY = 120 << 20
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")

Report = Callable[..., Json]

# Runs a command and says how much memory it took. The process between keeps that of the tests out of it:
# a child's peak starts at its parent's.
_MEASURE = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


@pytest.fixture(scope="session")
def report(kernel: Vmlinux) -> Report:
    """The report of the kernel with some options, each made only once."""

    @cache
    def made(*options: str) -> Json:
        return tool.report(*options, kernel.path)

    return made


def _facts(call: Call) -> Json:
    """What a report has to say of a site, whatever the policy."""
    return {
        "record": call.record,
        "address": f"{call.address:#x}",
        "section": call.section.name,
        "offset": call.address - call.section.address,
        "file_offset": call.file_offset,
        "key": call.key,
        "trampoline": call.key,
        "tail": call.tail,
        "form": {CALL: "call", JMP: "tail_jmp"}.get(call.code[0], "jcc"),
        "bytes": call.code.hex(),
        "length": len(call.code),
        "destination": TRAMPOLINE + call.key,
        "crosses_line": call.crosses(64),
        "sources": ["table"],
    }


def test_sites_are_what_an_independent_reading_of_the_table_and_the_code_finds(kernel: Vmlinux, report: Report) -> None:
    sites = report()["sites"]
    expected = [_facts(call) for call in sorted(kernel.calls, key=lambda call: call.address)]
    assert [{name: site[name] for name in expected[0]} for site in sites] == expected


def test_every_site_lies_in_the_function_that_it_names(kernel: Vmlinux, report: Report) -> None:
    extents = list(chain.from_iterable(kernel.functions.values()))
    for site in report()["sites"]:
        address = int(site["address"], 16)
        if site["function"] is None:
            # Code of a weak function that another one replaced: the linker drops its symbol.
            assert not any(address in extent for extent in extents), site
        else:
            name, _, offset = site["function"].rpartition("+")
            starts = [extent.start for extent in kernel.functions[name] if address in extent]
            assert address - int(offset, 16) in starts, site


def test_keys_lead_where_their_slots_and_trampolines_do(kernel: Vmlinux, report: Report) -> None:
    keys = report()["keys"]
    used = Counter(call.key for call in kernel.calls)
    assert {key["name"]: (key["address"], key["trampoline"], key["sites"]) for key in keys} == {
        key.name: (f"{key.address:#x}", key.name, used[key.name]) for key in kernel.keys.values()
    }
    for key in keys:
        func = kernel.keys[key["name"]].func
        assert func in kernel.symbols[key["func"]] if func else key["func"] is None, key


@pytest.mark.parametrize("policy", POLICIES)
def test_verdicts_are_those_of_the_policy(policy: str, kernel: Vmlinux, report: Report) -> None:
    image = report("--policy", policy)
    verdicts = {site["record"]: site["verdict"] for site in image["sites"]}
    direct = {call.record for call in kernel.calls if kernel.is_direct(call, policy)}
    assert {record for record, verdict in verdicts.items() if verdict == "direct"} == direct
    assert set(verdicts.values()) <= {"direct", "trampoline"}
    assert image["findings"] == []


@pytest.mark.parametrize("policy", ["lutomirski", "rel32"])
def test_verdicts_follow_the_size_of_the_line(policy: str, kernel: Vmlinux, report: Report) -> None:
    image = report("--policy", policy, "--line", "32")
    direct = {call.record for call in kernel.calls if kernel.is_direct(call, policy, 32)}
    assert {site["record"] for site in image["sites"] if site["verdict"] == "direct"} == direct


@pytest.mark.parametrize("kernel", ["61"], indirect=True)
def test_a_report_follows_its_schema(kernel: Vmlinux) -> None:
    tool.validate(tool.report_document("--scan", "--hash", kernel.path), "report")


def test_the_summary_counts_the_sites(kernel: Vmlinux, report: Report) -> None:
    image = report()
    direct = sum(kernel.is_direct(call, "lutomirski") for call in kernel.calls)
    facts = [_facts(call) for call in kernel.calls]
    summary = dict(image["summary"])
    reasons = summary.pop("reasons")
    assert summary == {
        "sites": len(kernel.calls),
        "direct": direct,
        "trampoline": len(kernel.calls) - direct,
        "undecided": 0,
        "crossing": sum(fact["crosses_line"] for fact in facts),
        "forms": dict(Counter(fact["form"] for fact in facts)),
        "keys": len(kernel.keys),
    }
    assert reasons == dict(Counter(site["reason"] for site in image["sites"]))


def test_a_search_of_the_code_finds_the_recorded_sites_and_no_others(kernel: Vmlinux, report: Report) -> None:
    image = report("--scan")
    assert {site["record"] for site in image["sites"]} == {call.record for call in kernel.calls}
    assert {tuple(site["sources"]) for site in image["sites"]} == {("table", "scan")}
    assert {finding["code"] for finding in image["findings"]} == {"in-kprobe-blacklist"}


def test_a_search_of_the_code_finds_every_site_without_the_table(kernel: Vmlinux, report: Report) -> None:
    nothing = f"{kernel.address(TABLE_START):#x}"
    image = report("--scan", "--table", f"{nothing}:{nothing}")
    assert [
        (site["address"], site["bytes"], site["key"], site["tail"], site["function"], site["sources"], site["reason"])
        for site in image["sites"]
    ] == [
        (site["address"], site["bytes"], site["key"], site["tail"], site["function"], ["scan"], "not-recorded")
        for site in report()["sites"]
    ]
    assert {finding["code"] for finding in image["findings"]} == {"unrecorded-site", "in-kprobe-blacklist"}


def test_a_kernel_without_names_has_the_same_sites(kernel: Vmlinux, report: Report, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "--strip-all", "-o", stripped, kernel.path], check=True)
    nameless.take_names(kernel, stripped, stripped)  # its own list of names, too
    table = f"{kernel.address(TABLE_START):#x}:{kernel.address(TABLE_STOP):#x}"
    sites = tool.report("--table", table, stripped)["sites"]
    trampolines = {key.name: f"{key.trampoline:#x}" for key in kernel.keys.values()}
    keys = {key.name: f"{key.address:#x}" for key in kernel.keys.values()}
    for site, named in zip(sites, report()["sites"], strict=True):
        same = ("record", "address", "section", "offset", "tail", "form", "bytes", "verdict", "reason")
        assert [site[name] for name in same] == [named[name] for name in same]
        assert (site["key"], site["destination"]) == (keys[named["key"]], trampolines[named["trampoline"]])
    stripped.unlink()


# Objdump


def _disassembled(path: Path, *options: str) -> dict[int, str]:
    """Every direct branch to the start of a trampoline, as objdump shows it."""
    with subprocess.Popen(["objdump", "-d", "--no-show-raw-insn", *options, path], stdout=subprocess.PIPE) as listing:
        # Millions of lines: grep is several times as fast as anything here.
        wanted = ["grep", "-F", f"<{TRAMPOLINE}"]
        chosen = subprocess.run(wanted, stdin=listing.stdout, capture_output=True, text=True, check=False)
    assert listing.returncode == 0
    branch = re.compile(rf"^([0-9a-f]+):\s+((?:call|j\w+) .*<{TRAMPOLINE}[^+>]*>)$", re.MULTILINE)
    return {int(address, 16): " ".join(text.split()) for address, text in branch.findall(chosen.stdout)}


def _shown(kernel: Vmlinux, site: Json) -> str:
    """A site's instruction as the report has it, in objdump's words."""
    condition = CONDITIONS[int(site["bytes"][3], 16)]
    mnemonic = {"call": "call", "tail_jmp": "jmp", "jcc": f"j{condition}"}[site["form"]]
    return f"{mnemonic} {kernel.address(site['destination']):x} <{site['destination']}>"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["612"], indirect=True)  # one is enough for objdump's quarter of a minute
def test_sites_are_all_the_branches_to_trampolines_that_objdump_shows(kernel: Vmlinux, report: Report) -> None:
    sites = report("--scan")["sites"]
    assert {int(site["address"], 16): _shown(kernel, site) for site in sites} == _disassembled(kernel.path)


@pytest.mark.parametrize("kernel", ["61"], indirect=True)
def test_sampled_sites_are_the_branches_to_trampolines_that_objdump_shows(kernel: Vmlinux, report: Report) -> None:
    sites = {int(site["address"], 16): site for site in report("--scan")["sites"]}
    reach, checked = 0x4000, 0
    for middle in sorted(sites)[:: len(sites) // 20]:
        start, stop = middle - reach, middle + reach
        # Neither end need be one of an instruction, so objdump starts early and what is near an end is left out.
        shown = _disassembled(kernel.path, f"--start-address={start}", f"--stop-address={stop}")
        inside = range(start + 256, stop - 256)
        expected = {address: _shown(kernel, sites[address]) for address in inside if address in sites}
        assert {address: text for address, text in shown.items() if address in inside} == expected
        checked += len(expected)
    assert checked >= 100


# Numbers


@pytest.mark.parametrize("kernel", ["612"], indirect=True)
def test_the_numbers_of_one_kernel_are_the_known_ones(kernel: Vmlinux, report: Report) -> None:
    if not kernel.release.startswith("6.12.117+deb12"):
        pytest.skip("the numbers are those of Debian's 6.12.117")
    image = report()
    summary, sites = image["summary"], image["sites"]
    assert (summary["sites"], summary["direct"], summary["trampoline"]) == (7872, 7131, 741)
    assert summary["forms"] == {"call": 7582, "tail_jmp": 290}
    assert Counter((site["form"], site["tail"]) for site in sites) == {("call", False): 7582, ("tail_jmp", True): 290}
    assert Counter(site["form"] for site in sites if site["crosses_line"]) == {"call": 451, "tail_jmp": 12}
    assert Counter(site["section"] for site in sites) == {".text": 7754, ".init.text": 118}
    assert (summary["keys"], sum(key["sites"] > 0 for key in image["keys"])) == (3855, 3701)
    func = {key["name"]: key["func"] for key in image["keys"]}
    targets = Counter(func[site["key"]] for site in sites if site["verdict"] == "direct")
    assert (targets[None], targets[RETURN0]) == (2752, 1215)
    # What the slots say, the trampolines do.
    ends = Counter(_end(kernel, kernel.keys[site["key"]]) for site in sites if site["verdict"] == "direct")
    assert (ends[RETURN_THUNK], ends[RETURN0]) == (2752, 1215)


def _end(kernel: Vmlinux, key: Key) -> str | None:
    ends = {kernel.address(name): name for name in (RETURN_THUNK, RETURN0)}
    return ends.get(key.trampoline_destination)


@pytest.mark.parametrize("options", ["--format=text", "--format=json", "--scan"])
def test_a_report_takes_little_memory(options: str, kernel: Vmlinux) -> None:
    command = [sys.executable, "-m", "staticcall", "report", options, str(kernel.path)]
    done = subprocess.run([sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= MOST_MEMORY
