"""What a type checker makes of programs that use the Python API: the right ones pass, slips of the pen are found."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import get_args

import pytest

import staticcall
from staticcall.api.requests import Danger, FormatWord, PolicyWord
from staticcall.pipeline.patch import FORCE_TYPE, FORCEABLE

USER = """\
import os
from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import staticcall
from staticcall import Verdict, open


def crossing(path: str | os.PathLike[str]) -> list[int]:
    with open(path) as file:
        report = file.report(policy="kernel", line=128)
    assert_type(report, staticcall.Report)
    assert_type(report.sites, tuple[staticcall.Site, ...])
    assert_type(report.keys, tuple[staticcall.Key, ...])
    assert_type(report.trampolines, tuple[staticcall.Trampoline, ...])
    assert_type(report.findings, tuple[staticcall.Finding, ...])
    assert_type(report.summary.forms, Mapping[str, int])
    assert_type(report.render("html"), str)
    assert_type(report.render(staticcall.Format.CSV), str)
    for site in report.sites:
        assert_type(site.address, int | None)
        assert_type(site.verdict, staticcall.Verdict)
        assert_type(site.code, bytes)
        assert_type(site.source_line, staticcall.SourceLine | None)
    return [site.address for site in report.sites if site.address and site.verdict is Verdict.TRAMPOLINE]


def patch(path: Path, output: Path) -> staticcall.Proof:
    with staticcall.open(path, "member.o", vmlinux="vmlinux") as file:
        assert_type(file, staticcall.File)
        plan = file.plan({"a": "NULL"}, bind=True, pins=["b"], force={"kaslr-slot"}, policy=staticcall.PolicyName.REL32)
        assert_type(plan.edits, tuple[staticcall.Edit, ...])
        assert_type(plan.changes, tuple[staticcall.Change, ...])
        try:
            proof = plan.apply(output, edits_file=output.with_suffix(".json"))
        except staticcall.UnsafeError as error:
            assert_type(error.code, str)
            raise
        except staticcall.StaticcallError as error:
            assert_type(error.offset, int | None)
            assert_type(error.exit_code, staticcall.ExitCode)
            raise
        assert_type(file.verify(output), staticcall.Proof)
    assert_type(staticcall.revert(output, "edits.json", "again"), int)
    assert_type(staticcall.annotate("a.o", in_place=True).records, int)
    assert_type(staticcall.diff(path, output).equal, bool)
    assert_type(list(staticcall.members("lib.a")), list[str])
    assert_type(staticcall.__version__, str)
    return proof
"""

# Each line is wrong, and the code of the error that says so.
SLIPS = (
    ("file.report(policy='lutomirsky')", "arg-type"),
    ("file.report('kernel')", "call-arg"),
    ("file.report().sites = ()", "misc"),
    ("file.report().sites[0].reason = ''", "misc"),
    ("file.report().summary.forms['call'] = 0", "index"),
    ("file.report().render('pdf')", "arg-type"),
    ("file.report().sites[0].address + 1", "operator"),
    ("file.plan({'log': None})", "dict-item"),
    ("file.plan(force=['everything'])", "list-item"),
    ("file.plan(bind=True).write('out')", "attr-defined"),
    ("staticcall.opne('demo')", "attr-defined"),
    ("staticcall.open(b'demo')", "arg-type"),
    ("staticcall.api.Report.sites + 1", "operator"),
)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each program, line by line."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    (folder / "user.py").write_text(USER)
    lines = ["import staticcall.api", "", "", "def slips(file: staticcall.File) -> None:"]
    (folder / "slips.py").write_text("\n".join([*lines, *(f"    {slip}" for slip, _ in SLIPS)]) + "\n")
    command = [sys.executable, "-m", "mypy", "--show-error-codes", "--hide-error-context", "user.py", "slips.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    said: dict[str, list[str]] = {"user.py": [], "slips.py": []}
    for line in done.stdout.splitlines():
        if ": error: " in line:
            said[line.split(":")[0]].append(line)
    return said


def test_a_program_that_is_right_passes_strictly_and_knows_all_types(checked: dict[str, list[str]]) -> None:
    assert checked["user.py"] == []


def test_slips_are_found_where_they_are(checked: dict[str, list[str]]) -> None:
    found = {int(line.split(":")[1]): line for line in checked["slips.py"]}
    codes = [re.sub(r".*\[([a-z-]+)\]$", r"\1", found.get(number, "")) for number in range(5, 5 + len(SLIPS))]

    assert list(zip((slip for slip, _ in SLIPS), codes, strict=True)) == list(SLIPS)
    assert len(found) == len(SLIPS)


def test_words_for_type_checkers_are_those_that_are_taken() -> None:
    assert set(get_args(PolicyWord)) == set(staticcall.PolicyName)
    assert set(get_args(FormatWord)) == set(staticcall.Format)
    assert set(get_args(Danger)) == {*FORCEABLE, FORCE_TYPE}
