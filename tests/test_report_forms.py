"""Which form a report has: by name, by the end of the file's name, and for `patch --report` as well."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.markdown import read_page
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.sarif import notes_on_sites, parse_sarif
from tests.support.tool import patch, report, report_document, staticcall, succeed, validate


def is_text(text: str) -> bool:
    return "\npolicy lutomirski, cache line of 64 bytes\n" in text


def is_json(text: str) -> bool:
    document = json.loads(text)
    validate(document, "report")
    return len(document["images"]) == 1


def is_jsonl(text: str) -> bool:
    return text.count("\n") == 1 and "sites" in json.loads(text)


def is_html(text: str) -> bool:
    return text.lower().startswith("<!doctype html>")


def is_sarif(text: str) -> bool:
    return len(parse_sarif(text)["artifacts"]) == 1


def is_csv(text: str) -> bool:
    return all(row["verdict"] for row in csv.DictReader(text.splitlines(), strict=True))


def is_markdown(text: str) -> bool:
    return text.startswith("## ") and read_page(text).tables != []


SUFFIXES: dict[str, Callable[[str], bool]] = {
    ".txt": is_text,
    ".json": is_json,
    ".jsonl": is_jsonl,
    ".html": is_html,
    ".htm": is_html,
    ".HTML": is_html,
    ".sarif": is_sarif,
    ".csv": is_csv,
    ".md": is_markdown,
    ".out": is_text,
    "": is_text,
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_end_of_the_output_s_name_says_the_form(suffix: str, built: Builder, tmp_path: Path) -> None:
    output = tmp_path / f"report{suffix}"
    succeed("report", "--output", output, built("forms", "exec"))

    assert SUFFIXES[suffix](output.read_text("utf-8"))


@pytest.mark.parametrize("form", ["text", "json", "csv", "markdown"])
def test_a_form_that_is_named_wins(form: str, built: Builder, tmp_path: Path) -> None:
    program, output = built("forms", "exec"), tmp_path / "report.html"
    succeed("report", "--format", form, "--output", output, program)

    assert output.read_bytes().decode() == succeed("report", "--format", form, program)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_report_of_a_patch_has_the_form_that_its_name_says(suffix: str, program: Path, tmp_path: Path) -> None:
    output = tmp_path / f"report{suffix}"
    patched = patch(program, program.with_name("patched"), "--bind", "--report", output)
    text = output.read_text("utf-8")

    # Where the name says nothing it is JSON, as it always was.
    assert (SUFFIXES[suffix] if suffix not in ("", ".out") else is_json)(text)
    assert "patched" in text
    assert str(patched.output.name + ".") not in text  # nor the temporary name


def test_the_report_of_a_patched_object_has_its_form_too(made: Objects, tmp_path: Path) -> None:
    original = Path(shutil.copy(made("tail_calls"), tmp_path / "tail_calls.o"))
    succeed("annotate", "--in-place", original)
    log = tmp_path / "log.sarif"
    patch(original, tmp_path / "patched.o", "--set", "one=NULL", "--force", "null-returns-value", "--report", log)
    image = report(tmp_path / "patched.o")

    run = parse_sarif(log.read_text())
    notes = notes_on_sites(run)
    assert len(notes) == sum(site["verdict"] != "direct" for site in image["sites"])
    assert run["artifacts"][0]["properties"]["sites"] == len(image["sites"])


def test_json_lines_are_the_images_of_the_json_report(built: Builder, made: Objects, tmp_path: Path) -> None:
    archive = tmp_path / "lib.a"
    subprocess.run(["ar", "rcs", archive, made("calls"), made("tail_calls")], check=True)
    files = (archive, built("broken/duplicate", "pie"), made("inline_one"))
    outcome = staticcall("report", "--format", "jsonl", "--fail-on", "never", *files)

    assert [json.loads(line) for line in outcome.out.splitlines()] == report_document(*files)["images"]


def test_nothing_is_left_where_a_file_cannot_be_read(built: Builder, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        output = tmp_path / f"report{suffix}"
        assert staticcall("report", "--output", output, built("forms", "exec"), tmp_path / "missing").code == 3
        assert not output.exists()
