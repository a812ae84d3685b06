"""The programs of `examples/python`, run as a user runs them, and a kernel as the API tells it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import staticcall
from tests.support import vmlinux
from tests.support.examples import EXAMPLES
from tests.support.programs import Builder
from tests.support.tool import POLICIES, Outcome, report


def _run(script: str, *arguments: str | Path) -> Outcome:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "python" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_gate_holds_up_to_its_limit(built: Builder) -> None:
    program = built("calls", "exec")
    summary = report("--line", "8", program)["summary"]["reasons"]
    crossing = summary["crosses-line"]
    assert crossing

    held = _run("gate.py", program, "--line", "8", "--most", str(crossing))
    failed = _run("gate.py", program, "--line", "8", "--most", str(crossing - 1))

    assert held == (0, f"{crossing} sites cross a line of 8 bytes, {crossing} may\n", "")
    assert (failed.code, failed.err) == (1, "")
    assert sum(int(line.split()[0]) for line in failed.out.splitlines()[1:]) == crossing


def test_the_programs_say_in_a_line_what_they_cannot_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    gate, table = _run("gate.py", missing), _run("functions.py", missing)

    assert (gate.code, table.code) == (staticcall.ExitCode.INPUT, 1)
    assert gate.err == table.err
    assert gate.err.startswith(f"{missing}: cannot be opened")
    assert gate.err.count("\n") == 1
    assert _run("functions.py") == (1, "", "usage: functions.py FILE\n")


def test_the_table_of_functions_adds_up(built: Builder) -> None:
    program = built("forms", "pie")
    outcome = _run("functions.py", program)
    rows = list(csv.DictReader(outcome.out.splitlines()))

    assert (outcome.code, outcome.err) == (0, "")
    sites = Counter(site["function"].rpartition("+")[0] for site in report(program)["sites"])
    assert {row["function"]: int(row["sites"]) for row in rows} == sites
    for policy in POLICIES:
        direct = report("--policy", policy, program)["summary"]["direct"]
        assert sum(int(row[policy]) for row in rows) == direct


@pytest.mark.kernel
def test_a_kernel_is_told_as_it_is(vmlinux_612: Path) -> None:
    known = vmlinux.read(vmlinux_612)
    with staticcall.open(vmlinux_612) as file:
        told = file.report()
        plan = file.plan(bind=True)

    assert [
        (s.record, s.address, s.key, s.tail, s.code) for s in sorted(told.sites, key=lambda site: site.record or 0)
    ] == [(call.record, call.address, call.key, call.tail, call.code) for call in known.calls]
    assert {key.name: key.address for key in told.keys} == {name: key.address for name, key in known.keys.items()}
    assert {home.name: home.address for home in told.trampolines} == {
        name: key.trampoline for name, key in known.keys.items()
    }
    direct = {call.address for call in known.calls if known.is_direct(call, "lutomirski")}
    assert {site.address for site in told.sites if site.verdict is staticcall.Verdict.DIRECT} == direct
    assert {edit.address for edit in plan.edits} <= direct
    # What gate.py counts.
    crossing = {call.address for call in known.calls if call.code[0] == vmlinux.CALL and call.crosses(64)}
    assert {site.address for site in told.sites if site.reason == "crosses-line"} == crossing
