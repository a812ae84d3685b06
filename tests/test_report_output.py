"""The forms that a report takes, and the exit codes that go with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from staticcall import __version__
from staticcall.model.change import EditKind
from staticcall.model.form import Form
from staticcall.model.reasons import REASONS
from staticcall.model.sites import Answer, PolicyName, Severity, Source
from tests.support import toolchain
from tests.support.programs import Builder
from tests.support.tool import (
    digest,
    patch,
    report,
    report_document,
    schema,
    staticcall,
    staticcall_process,
    succeed,
    validate,
)

# ---- the schemas ----


def test_the_schemas_list_the_words_that_the_tool_knows() -> None:
    defined = schema("report")["$defs"]
    site, finding = defined["site"]["properties"], defined["finding"]["properties"]
    assert defined["form"]["enum"] == list(Form)
    assert site["verdict"]["enum"] == list(Answer)
    assert site["sources"]["items"]["enum"] == list(Source)
    assert finding["severity"]["enum"] == list(Severity)
    assert schema("report")["properties"]["policy"]["properties"]["name"]["enum"] == list(PolicyName)
    assert set(EditKind) <= set(schema("edits")["$defs"]["edit"]["properties"]["kind"]["enum"])
    assert all(re.fullmatch(defined["word"]["pattern"], reason) for reason in REASONS)


def _objects(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all objects in a document, one of each kind: of a list, the first."""
    if isinstance(node, dict):
        yield path
        for name, value in node.items():
            yield from _objects(value, (*path, name))
    elif isinstance(node, list) and node:
        yield from _objects(node[0], (*path, 0))


def _at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def _damaged(document: Any) -> Iterator[tuple[str, Any]]:
    """The document with one thing too many, or one too few, or one of another type, at every place."""
    for path in _objects(document):
        for name in (*_at(document, path), "another"):
            for what in ("lost", "typed"):
                copy = deepcopy(document)
                place = _at(copy, path)
                if what == "typed" or name == "another":
                    place[name] = {"of": ["another", "type"]}
                else:
                    del place[name]
                yield f"{what} {path} {name}", copy


OPTIONAL = re.compile(r"lost .*(sha256|'forms'\) \w+|'reasons'\) [a-z0-9-]+)$")


def test_the_schema_of_the_report_is_exact(built: Builder) -> None:
    document = report_document("--hash", built("calls", "exec"))
    wrong = [(what, damaged) for what, damaged in _damaged(document) if not OPTIONAL.match(what)]
    assert len(wrong) > 80
    for what, damaged in wrong:
        assert not jsonschema.Draft202012Validator(schema("report")).is_valid(damaged), what


def test_the_schema_of_the_edits_is_exact(built: Builder, tmp_path: Path) -> None:
    edits = patch(built("calls", "pie"), tmp_path / "bound", "--bind").edits_file
    for what, damaged in _damaged(json.loads(edits.read_text())):
        assert not jsonschema.Draft202012Validator(schema("edits")).is_valid(damaged), what


def test_schema_prints_the_reports_by_default() -> None:
    assert succeed("schema") == succeed("schema", "report") != succeed("schema", "edits")
    assert staticcall("schema", "nothing").code == 2


@pytest.mark.parametrize(
    "fixture", ["calls", "forms", "generations", "demo", *(f"broken/{name}" for name in ("overlap", "unrecorded"))]
)
def test_every_report_is_valid(fixture: str, built: Builder, tmp_path: Path) -> None:
    programs = [built(fixture, kind) for kind in ("exec", "pie", "static")]
    subprocess.run(["strip", "-o", tmp_path / "stripped", programs[0]], check=True)
    for options in ([], ["--hash", "--scan", "--policy", "kernel"], ["--key", "none"]):
        validate(report_document(*options, *programs, tmp_path / "stripped", sys.executable), "report")


# ---- JSON ----


def test_json_says_what_made_it(built: Builder) -> None:
    program = built("calls", "pie")
    document = report_document("--policy", "rel32", "--line", "32", program)
    assert document["schema_version"] == 1
    assert document["tool"] == {"name": "staticcall", "version": __version__}
    assert document["policy"] == {"name": "rel32", "line": 32}
    image = document["images"][0]
    assert image["path"] == str(program)
    assert (image["elf_type"], image["machine"]) == ("DYN", "x86_64")
    notes = subprocess.run(["readelf", "-nW", program], capture_output=True, text=True, check=True).stdout
    assert f"Build ID: {image['build_id']}\n" in notes
    assert "sha256" not in image


def test_the_hash_is_there_when_asked_for(built: Builder) -> None:
    program = built("calls", "exec")
    image = report("--hash", program)
    assert image["sha256"] == digest(program)
    assert image["elf_type"] == "EXEC"
    assert digest(program) in succeed("report", "--hash", program)


def _many(built: Builder) -> list[Path]:
    return [built(fixture, kind) for fixture in ("calls", "forms", "demo") for kind in ("exec", "pie")]


def test_a_line_of_jsonl_is_an_image_of_json(built: Builder) -> None:
    programs = _many(built)
    lines = succeed("report", "--format", "jsonl", *programs).splitlines()
    images = report_document(*programs)["images"]
    assert [image["path"] for image in images] == [str(program) for program in programs]
    assert [json.loads(line) for line in lines] == images


@pytest.mark.parametrize("form", ["text", "json", "jsonl"])
def test_several_at_a_time_give_the_same(form: str, built: Builder) -> None:
    programs = _many(built)
    one = staticcall_process("report", "--format", form, "--scan", "-j", "1", *programs)
    two = staticcall_process("report", "--format", form, "--scan", "-j", "2", *programs)
    assert (one.code, one.err) == (0, "")
    assert two == one
    assert one == staticcall("report", "--format", form, "--scan", *programs)


# ---- text ----


def test_the_text_is_for_people(built: Builder) -> None:
    program = built("calls", "exec")
    table = toolchain.sections(program)["static_call_sites"]
    lines = succeed("report", program).splitlines()
    assert lines[0] == str(program)
    assert re.fullmatch(r"  EXEC x86_64, build id [0-9a-f]{40}", lines[1])
    assert lines[2] == f"  table at {table.address:#x} in static_call_sites (section static_call_sites)"
    assert lines[3] == "  27 sites, 4 keys (4 with sites), 4 trampolines"
    assert "policy lutomirski, cache line of 64 bytes" in lines
    assert "    fits-line                           9    opcode e8, and the instruction lies in one cache line" in lines
    assert "    crosses-line                        8    the instruction crosses a cache line" in lines
    assert "  tail_jmp                              6   22.2 %" in lines
    assert "  (crossing a line)                    13   48.1 %" in lines
    assert "  hook                                          4        1   NULL" in lines
    assert any("8 that cross a line: assemble with -Wa,-malign-branch-boundary=64" in line for line in lines)
    assert "findings (5)" in lines
    assert not any(line != line.rstrip() for line in lines)


def test_long_lists_are_cut_unless_all_is_wanted(built: Builder) -> None:
    program = built("generations", "exec")
    short, whole = succeed("report", program), succeed("report", "-v", program)
    assert "  and 2 more (-v shows all)" in short.splitlines()
    assert "more (-v" not in whole
    assert [line.split()[0] for line in whole.splitlines() if " plain_add" in line] == [
        *("posted_indirect", "posted_jmp", "posted_permanent", "posted_temporary", "sct_jmp", "ud1_jmp"),
    ]


def test_every_finding_is_a_line(built: Builder) -> None:
    outcome = staticcall("report", "--scan", built("broken/unrecorded", "pie"), built("broken/overlap", "pie"))
    assert outcome.code == 1
    for code, severity, count in (
        ("unrecorded-site", "warning", 3),
        ("overlapping-records", "error", 1),
        ("unaccepted-bytes", "note", 1),
    ):
        assert len(re.findall(rf"^  {severity}: .* \[{code}\]$", outcome.out, re.MULTILINE)) == count


def test_a_name_of_any_bytes_can_be_shown(built: Builder, tmp_path: Path) -> None:
    program = tmp_path / "caf\udce9"
    program.write_bytes(built("calls", "exec").read_bytes())
    output = tmp_path / "report.json"
    succeed("report", "--format", "json", "--output", output, program)
    document = json.loads(output.read_text("utf-8"))
    assert document["images"][0]["path"].endswith("caf\\xe9")
    for form in ("text", "json"):
        outcome = subprocess.run(
            [sys.executable, "-m", "staticcall", "report", "--format", form, program],
            env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
            capture_output=True,
            check=False,
        )
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        assert b"caf\\xe9" in outcome.stdout.replace(b"\\\\", b"\\")


# ---- files and exit codes ----


def test_a_bad_file_does_not_take_the_others_along(built: Builder, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("no ELF file")
    programs = [built("calls", "exec"), bad, built("forms", "pie"), tmp_path / "missing"]
    for form in ("text", "json", "jsonl"):
        outcome = staticcall("report", "--format", form, *programs)
        assert outcome.code == 3
        assert [line.split(": ")[:2] for line in outcome.err.splitlines()] == [
            ["staticcall", str(bad)],
            ["staticcall", str(tmp_path / "missing")],
        ]
        if form == "json":
            assert [image["path"] for image in json.loads(outcome.out)["images"]] == [
                str(programs[0]),
                str(programs[2]),
            ]
        else:
            assert str(programs[0]) in outcome.out
            assert str(programs[2]) in outcome.out
    assert staticcall("report", bad).out == ""


@pytest.mark.parametrize(
    ("fixture", "codes"),
    [
        ("demo", (0, 0, 0, 0)),
        ("forms", (1, 0, 0, 0)),
        ("broken/stale_site", (1, 1, 0, 0)),
        ("broken/wrong_trampoline", (1, 1, 1, 0)),
    ],
)
def test_findings_fail_from_a_chosen_severity_on(fixture: str, codes: tuple[int, ...], built: Builder) -> None:
    program = built(fixture, "exec")
    for severity, code in zip(("note", "warning", "error", "never"), codes, strict=True):
        assert staticcall("report", "--fail-on", severity, program).code == code
    assert staticcall("report", program).code == codes[2]
    assert staticcall("report", program, program.with_name("missing")).code == 3


def test_a_report_goes_to_a_file(built: Builder, tmp_path: Path) -> None:
    program, output = built("broken/overlap", "exec"), tmp_path / "report"
    for form in ("text", "json", "jsonl"):
        outcome = staticcall("report", "--format", form, "--output", output, program)
        assert (outcome.code, outcome.out, outcome.err) == (1, "", "")
        assert output.read_text() == staticcall("report", "--format", form, program).out
    assert list(tmp_path.iterdir()) == [output]


def test_half_a_report_is_no_file(built: Builder, tmp_path: Path) -> None:
    output = tmp_path / "report"
    outcome = staticcall("report", "--output", output, built("demo", "exec"), tmp_path / "missing")
    assert outcome.code == 3
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_none_of_its_files(built: Builder, tmp_path: Path) -> None:
    program, link = tmp_path / "program", tmp_path / "link"
    program.write_bytes(built("demo", "exec").read_bytes())
    link.symlink_to(program)
    before = digest(program)
    for output in (program, link):
        assert staticcall("report", "--output", output, program).code == 2
    assert digest(program) == before
    assert link.is_symlink()


def test_a_report_can_be_written_to_a_device(built: Builder) -> None:
    outcome = staticcall_process("report", "--output", "/dev/stdout", built("demo", "exec"))
    assert outcome == staticcall("report", built("demo", "exec"))
    assert Path("/dev/stdout").is_symlink()


def test_quiet_prints_errors_only(built: Builder, tmp_path: Path) -> None:
    outcome = staticcall("report", "--quiet", built("broken/overlap", "exec"), tmp_path / "missing")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("staticcall: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["report"],
        ["report", "--policy", "nobody", "file"],
        ["report", "--line", "48", "file"],
        ["report", "--line", "4", "file"],
        ["report", "--line", "many", "file"],
        ["report", "--format", "xml", "file"],
        ["report", "--fail-on", "always", "file"],
        ["report", "-j", "0", "file"],
        ["rapport", "file"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_in_a_line(arguments: list[str]) -> None:
    outcome = staticcall(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"staticcall: .*\n", outcome.err)
