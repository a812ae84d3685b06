"""The tool as a user runs it, in this process: a process for every run would cost most of the tests' time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from hashlib import file_digest
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema

from staticcall.cli.entry import run
from tests.support.toolchain import TIMEOUT_SECONDS

POLICIES = ("lutomirski", "rel32", "block8", "torvalds", "kernel")

Json = dict[str, Any]


LOG = "staticcall: info: "


class Outcome(NamedTuple):
    """What a run came to: its exit code and all it wrote but the log of -v, whose seconds no two runs share."""

    code: int
    out: str
    err: str


def staticcall(*arguments: str | Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), without_log(err.getvalue()))


def staticcall_process(*arguments: str | Path) -> Outcome:
    """The same in a process of its own, for what only shows there."""
    command = [sys.executable, "-m", "staticcall", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    return Outcome(done.returncode, done.stdout, without_log(done.stderr))


def without_log(text: str) -> str:
    """Standard error without the lines that -v logs."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(LOG))


def succeed(*arguments: str | Path) -> str:
    """Run the tool, see that all went well, and return what it printed."""
    outcome = staticcall(*arguments)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome.out


def refused(*arguments: str | Path, code: str) -> str:
    """Run the tool, see that it refuses for one reason and in one line, and return that line."""
    outcome = staticcall(*arguments)
    assert outcome.code == 4, outcome
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert f"[{code}]" in outcome.err, outcome.err
    return outcome.err


@cache
def schema(name: str) -> Mapping[str, Any]:
    document = json.loads(succeed("schema", name))
    jsonschema.Draft202012Validator.check_schema(document)
    assert isinstance(document, dict)
    return document


def validate(document: object, name: str) -> None:
    """See that a document is what the schema promises; raises `jsonschema.ValidationError`."""
    _validator(name).validate(document)


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(name))


def report_document(*arguments: str | Path) -> Json:
    """A whole JSON report; findings are no failure here."""
    outcome = staticcall("report", "--format", "json", "--fail-on", "never", *arguments)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    document = json.loads(outcome.out)
    assert isinstance(document, dict)
    return document


def report(*arguments: str | Path) -> Json:
    """The one image of a JSON report."""
    (image,) = report_document(*arguments)["images"]
    assert isinstance(image, dict)
    return image


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


class Patch(NamedTuple):
    """A patch that went well: the files, the edits and what was printed."""

    original: Path
    output: Path
    edits_file: Path
    edits: list[Json]
    out: str

    def revert(self) -> Path:
        """The original again, by the tool."""
        back = self.output.with_name(self.output.name + ".back")
        succeed("revert", self.output, "--edits", self.edits_file, "-o", back)
        assert back.read_bytes() == self.original.read_bytes()
        return back


def patch(original: Path, output: Path, *options: str | Path) -> Patch:
    """Patch a file, and hold the result against the edits file, byte by byte."""
    edits_file = output.with_name(output.name + ".edits.json")
    out = succeed("patch", original, "-o", output, "--edits", edits_file, *options)
    document = json.loads(edits_file.read_text())
    validate(document, "edits")
    assert document["original_sha256"] == digest(original)
    assert document["patched_sha256"] == digest(output)
    _compare(original.read_bytes(), output.read_bytes(), document["edits"])
    return Patch(original, output, edits_file, document["edits"], out)


def _compare(before: bytes, after: bytes, edits: list[Json]) -> None:
    """See that two files differ exactly where edits say so, and as they say; the last may lengthen the file."""
    expected, end = bytearray(before), 0
    for edit in edits:
        old, new, offset = bytes.fromhex(edit["old"]), bytes.fromhex(edit["new"]), edit["file_offset"]
        assert offset >= end, "edits stand in file order and do not overlap"
        end = offset + len(old)
        assert len(old) == len(new) or (edit is edits[-1] and end == len(before))
        assert old != new
        assert before[offset:end] == old
        expected[offset:end] = new
    assert expected == after


def names_in(folder: Path) -> set[str]:
    """What is in a folder, by name."""
    return {path.name for path in folder.iterdir()}
