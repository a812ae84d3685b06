"""The report as CSV: what Python's own reader finds in it is what the JSON report says."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from staticcall.report.csv import COLUMNS
from tests.support.hostile import NAMES, objects_named
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import Json, report_document, staticcall, succeed

HEADER = (
    "path,record,address,section,offset,file_offset,function,key,trampoline,tail,form,bytes,length,destination,"
    "crosses_line,verdict,reason,sources,pinned,placement"
)

# Of full width too, which spreadsheets take where people write so.
FORMULAS = {"=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"}


def rows(text: str) -> list[dict[str, str]]:
    assert text.startswith(HEADER + "\r\n")
    assert text.endswith("\r\n")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def cell(value: object) -> str:
    """A value of the JSON report as it is in a cell, by the words of the documentation."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(value)
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
    begins = text[:1] in {"\t", "\r", "\n"} or text.strip()[:1] in FORMULAS | {"'"}
    return "'" + text if begins else text


def expected(document: Json) -> list[dict[str, str]]:
    return [
        {column: cell((site | {"path": image["path"]}).get(column)) for column in COLUMNS}
        for image in document["images"]
        for site in image["sites"]
    ]


def test_the_columns_are_documented_and_stay_in_their_order(built: Builder) -> None:
    assert ",".join(COLUMNS) == HEADER
    assert succeed("report", "--format", "csv", built("calls", "exec")).split("\r\n")[0] == HEADER


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_row_is_a_site_of_the_json_report(jobs: str, built: Builder, made: Objects, tmp_path: Path) -> None:
    archive, empty = tmp_path / "lib.a", tmp_path / "empty.a"
    subprocess.run(["ar", "rcs", archive, made("calls"), made("no_sites"), made("tail_calls")], check=True)
    subprocess.run(["ar", "rcs", empty], check=True)
    files = (built("forms", "pie"), archive, empty, made("inline_one"))
    found = rows(succeed("report", "--format", "csv", "-j", jobs, *files))

    assert found == expected(report_document(*files))
    assert len({row["path"] for row in found}) == 4
    assert {row["reason"] for row in found} > {"opcode-not-e8"}


def test_a_kernel_s_sites_are_all_there(vmlinux_612: Path) -> None:
    options = ("--policy", "rel32", "--key", "tp_func_*", vmlinux_612)
    found = rows(succeed("report", "--format", "csv", *options))

    assert found == expected(report_document(*options))


def test_a_tree_is_one_table(made: Objects, tmp_path: Path) -> None:
    shutil.copy(made("calls"), tmp_path / "a.o")
    subprocess.run(["as", "-o", tmp_path / "b.o", "-"], input=b"nop\n", check=True)
    shutil.copy(made("tail_calls"), tmp_path / "c.o")
    found = rows(succeed("report", "--format", "csv", tmp_path))

    assert [Path(path).name for path in dict.fromkeys(row["path"] for row in found)] == ["a.o", "c.o"]


def test_a_file_without_sites_is_a_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "none.o"
    subprocess.run(["as", "-o", path, "-"], input=b"nop\n", check=True)

    assert succeed("report", "--format", "csv", path) == HEADER + "\r\n"


def test_a_file_that_cannot_be_read_is_no_table(tmp_path: Path) -> None:
    outcome = staticcall("report", "--format", "csv", tmp_path / "missing")

    assert (outcome.code, outcome.out) == (3, "")


def test_a_spreadsheet_finds_no_formula_in_a_name(tmp_path: Path) -> None:
    paths = objects_named(tmp_path)
    document = report_document(*paths.values())
    found = rows(succeed("report", "--format", "csv", *paths.values()))

    assert [site["trampoline"] for image in document["images"] for site in image["sites"][:1]] == list(NAMES)
    assert found == expected(document)
    names = {str(path): name for name, path in paths.items()}
    assert {row["path"] for row in found} == names.keys()
    for row in found:
        assert not any(value[:1].isspace() or value[:1] in FORMULAS for value in row.values() if value != "a b")
        assert row["trampoline"] in (names[row["path"]], "'" + names[row["path"]])


def test_a_path_is_guarded_too(made: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(made("calls"), "=HYPERLINK(1).o")

    assert {row["path"] for row in rows(succeed("report", "--format", "csv", "=HYPERLINK(1).o"))} == {
        "'=HYPERLINK(1).o"
    }
