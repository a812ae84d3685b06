"""The stress program of `fixtures/stress`: how it is built, what its runs come to, and what they have to come to.

stress = build(tmp_path, "gcc")
result = stress.run("torvalds", updates=200_000)
assert result["wrong"] == 0
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.runtime import FIXTURES, INCLUDE, RUNTIME
from tests.support.tool import succeed
from tests.support.toolchain import TIMEOUT_SECONDS, Compiler, bytes_at, records, symbols
from tests.support.user_objects import run_tool

PROTOCOLS: Final = ("emulate", "torvalds", "lutomirski", "rel32", "block8", "out-of-line")
FORMS: Final = ("call", "prefixed", "jmp", "jcc")
LINE: Final = 64
BLOCK: Final = 8
UNAVAILABLE: Final = 77
"""What the program ends with where the system does not know how to forbid what it was asked to forbid."""

_FOLDER: Final = FIXTURES / "stress"
_PARTS: Final = ("check", "targets", "updates", "traps", "around", "loader", "stress")
_WITH_SITES: Final = ("targets", "sites")
_FLAGS: Final = (
    *("-std=gnu11", "-g", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", "-fno-plt"),
    *("-I", str(INCLUDE), "-DSTATIC_CALL_OBSERVER=stress_hold"),
)
_LINK: Final = ("-Wl,-z,call-nop=prefix-0x2e", "-Wl,--fatal-warnings")
_UPDATES_PER_SECOND: Final = 100  # a tenth of what a machine with two busy cores does


def missing_tools(cc: Compiler) -> list[str]:
    """What the builds need and this machine does not have."""
    return [program for program in (cc, "ld.bfd", "nm", "readelf") if shutil.which(program) is None]


def updates(default: int) -> int:
    """How many updates a test makes: `default`, times STATICCALL_STRESS of the environment if it is set."""
    return int(default * float(os.environ.get("STATICCALL_STRESS", "1")))


class Site(NamedTuple):
    """A site as the linked program holds it: its address, and its form as its first bytes tell."""

    address: int
    form: str

    @property
    def length(self) -> int:
        return 5 if self.form in ("call", "jmp") else 6

    def lies_in_one(self, size: int, *, displacement: bool = True) -> bool:
        """Whether its displacement, or else all of it, lies in one aligned block of `size` bytes."""
        first, last = self.address + (self.length - 4 if displacement else 0), self.address + self.length - 1
        return first // size == last // size

    def goes_straight(self, protocol: str) -> bool:
        """Whether the protocol leads it straight to a target, by the rules as the header states them."""
        called = self.form in ("call", "prefixed")
        return {
            "emulate": True,
            "torvalds": self.form == "prefixed",
            "lutomirski": called and self.lies_in_one(LINE, displacement=False),
            "rel32": called and self.lies_in_one(LINE),
            "block8": called and self.lies_in_one(BLOCK),
            "out-of-line": False,
        }[protocol]


class Stress(NamedTuple):
    """The program, and the libraries that come and go."""

    program: Path
    library: Path
    independent_library: Path
    """The same with a runtime of its own, whose SIGTRAP handler others hand on to: so it stays once it is loaded."""

    def start(self, protocol: str, *options: str | Path, updates: int) -> subprocess.CompletedProcess[str]:
        """One run, however it ended."""
        command = [str(self.program), protocol, "--updates", str(updates), *map(str, options)]
        timeout = TIMEOUT_SECONDS + updates / _UPDATES_PER_SECOND
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def run(self, protocol: str, *options: str | Path, updates: int) -> dict[str, int]:
        """What a run counted; it ended with exit code 0, and complained only of what it was to find."""
        done = self.start(protocol, *options, updates=updates)
        assert done.returncode == 0, done
        assert bool(done.stderr) == ("--spoil" in options), done
        result = json.loads(done.stdout)
        assert result.pop("protocol") == protocol
        assert isinstance(result, dict)
        return result

    def sites(self) -> Iterator[Site]:
        """All sites of the program, by its table and its bytes."""
        for record in records(self.program):
            code = bytes_at(self.program, record.site, 6)
            forms = {0x2E: "prefixed", 0xE8: "call", 0xE9: "jmp", 0x0F: "jcc"}
            yield Site(record.site, forms[code[0]])

    def sites_in_assembly(self) -> list[Site]:
        """Those that stand where the fixture wants them."""
        known = {value for name, value in symbols(self.program).items() if name.startswith("site_")}
        return [site for site in self.sites() if site.address in known]


def build(folder: Path, cc: Compiler, *, shared_runtime: bool = False) -> Stress:
    """Build it into an empty folder; the runtime is compiled in, or a library of its own."""
    made = {name: folder / f"{name}.o" for name in (*_PARTS, "plugin", "sites", "staticcall")}
    for name in (*_PARTS, "plugin"):
        run_tool(cc, *_FLAGS, "-c", _FOLDER / f"{name}.c", "-o", made[name])
    run_tool(cc, "-c", _FOLDER / "sites.S", "-o", made["sites"])
    run_tool(cc, *_FLAGS, "-c", RUNTIME, "-o", made["staticcall"])
    with_sites = [made[name] for name in (*_WITH_SITES, "plugin")]
    succeed("annotate", "--quiet", "--in-place", "--section", "static_call_sites", *with_sites)
    stress = Stress(folder / "stress", folder / "plugin.so", folder / "independent.so")
    runtime = made["staticcall"]
    if shared_runtime:
        runtime = folder / "libstaticcall.so"
        run_tool(cc, "-shared", made["staticcall"], "-o", runtime)
    parts = [made[name] for name in (*_PARTS, "sites")]
    place = f"-Wl,-rpath,{folder}"
    run_tool(cc, "-pie", "-rdynamic", "-pthread", *_LINK, place, *parts, runtime, "-ldl", "-o", stress.program)
    run_tool(cc, "-shared", *_LINK, made["plugin"], "-o", stress.library)
    alone = ("-Wl,-Bsymbolic", "-Wl,-z,nodelete")
    run_tool(cc, "-shared", *_LINK, *alone, made["plugin"], made["staticcall"], "-o", stress.independent_library)
    return stress


def see_right_answers(result: Mapping[str, int]) -> None:
    """See that every call was answered rightly, that there were enough of them, and that they tell something."""
    wrong = ("wrong", "disturbed", "children_wrong", "maps_wrong", "stray_traps", "lost", "foreign")
    assert {name: result[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert result["callers"] >= 8
    assert result["least_calls"] > 0, "every thread called"
    assert all(result[form] > 0 for form in FORMS)
    assert result["exact"] > result["calls"] / 2, "mostly there was only one right answer"
    assert result["wide"] < result["calls"] / 100, "there hardly ever was no wrong answer of the same key"
    assert result["own_traps_seen"] == result["own_traps"]


def see_trap_paths(result: Mapping[str, int], protocol: str, at_least: int) -> None:
    """See that threads ran into what updates left half done, where a protocol has such states, and else never."""
    if protocol == "emulate":
        assert result["emulated"] >= at_least
    if protocol == "torvalds":
        assert result["resumed"] >= at_least
        # Not at a displacement that crosses a line.
        assert 0 < result["emulated"] < result["resumed"]
    assert (result["emulated"] > 0) == (protocol in ("emulate", "torvalds"))
    assert (result["resumed"] > 0) == (protocol == "torvalds")
    assert (result["syncs"] > 0) == (protocol != "out-of-line")


def see_sites(result: Mapping[str, int], protocol: str, stress: Stress) -> None:
    """See that exactly those sites lead straight to their targets that a protocol's rule allows, in the end."""
    in_assembly = stress.sites_in_assembly()
    straight = sum(site.goes_straight(protocol) for site in in_assembly)
    assert (result["straight"], result["around"]) == (straight, len(in_assembly) - straight)
    everywhere = [site.goes_straight(protocol) for site in stress.sites()]
    assert (result["sites"], result["direct"]) == (len(everywhere), sum(everywhere))
