"""What -v logs on standard error: each thing that was done, in one line, and how long it took."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from staticcall.cli.entry import run
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import LOG, succeed

SECONDS = re.compile(r", \d+\.\d\d s$")


@pytest.fixture(scope="module")
def calls(built: Builder) -> Path:
    return built("calls", "exec")


def logged(*arguments: str | Path, code: int = 0) -> list[str]:
    """The lines of the log, each without what all of them have."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert run(list(map(str, arguments))) == code
    assert LOG not in out.getvalue()
    lines = [line for line in err.getvalue().splitlines() if line.startswith(LOG)]
    assert all(SECONDS.search(line) for line in lines)
    return [SECONDS.sub("", line.removeprefix(LOG)) for line in lines]


def told(lines: list[str], path: Path, *beginnings: str) -> None:
    """That the lines are about a file, and begin so."""
    assert [line.startswith(f"{path}: ") for line in lines] == [True] * len(lines)
    words = [line.removeprefix(f"{path}: ") for line in lines]
    assert [word[: len(beginning)] for word, beginning in zip(words, beginnings, strict=True)] == list(beginnings)


def test_a_report_tells_what_was_opened_found_and_judged(calls: Path) -> None:
    lines = logged("report", "-v", calls)

    told(
        lines, calls, f"opened, {calls.stat().st_size:,} bytes, ", "located: table", "judged by lutomirski: ", "written"
    )
    head = succeed("report", calls)
    sites, keys = (re.search(rf"([\d,]+) {what}", head) for what in ("sites", "keys"))
    assert sites is not None
    assert keys is not None
    assert f", {sites[1]} sites, {keys[1]} keys, " in lines[1]


def test_a_patch_tells_what_was_planned_proved_and_published(calls: Path, tmp_path: Path) -> None:
    output = tmp_path / "patched"
    lines = logged("patch", "-v", calls, "--bind", "-o", output)

    told(lines, calls, "opened", "located", "planned: ", "staged as ", "proved: ", f"published as {output}")
    told(logged("verify", "-v", calls, output), output, "opened beside ", "proved: ")


def test_annotate_tells_what_became_of_each_file(made: Objects, tmp_path: Path) -> None:
    source, output = made("two_keys"), tmp_path / "annotated.o"
    lines = logged("annotate", "-v", source, "-o", output)

    told(lines, source, f"{source.stat().st_size:,} bytes read, ", f"published as {output}")


def test_a_file_inside_of_others_is_told_with_them(calls: Path, tmp_path: Path) -> None:
    packed = tmp_path / "calls.gz"
    packed.write_bytes(subprocess.run(["gzip", "-c", calls], capture_output=True, check=True).stdout)

    assert "opened in gzip, " in logged("report", "-v", packed)[0]
    lines = logged("patch", "-v", packed, "--bind", "-o", tmp_path / "out.gz")
    told(lines, packed, "opened", "located", "planned", "proved", "packed in gzip, and read back", "published")


def test_workers_log_too(calls: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "staticcall", "report", "-v", "-j", "2", calls, calls],
        capture_output=True,
        text=True,
        check=True,
    )

    lines = done.stderr.splitlines()
    assert len(lines) == 8
    assert all(line.startswith(f"{LOG}{calls}: ") and SECONDS.search(line) for line in lines)


@pytest.mark.parametrize("options", [(), ("-v", "--quiet")], ids=["plain", "quiet"])
def test_nothing_is_logged_unasked(calls: Path, options: tuple[str, ...]) -> None:
    assert logged("report", *options, calls) == []


def test_an_error_is_still_one_line_behind_the_log(tmp_path: Path) -> None:
    err = io.StringIO()
    with redirect_stderr(err):
        assert run(["report", "-v", str(tmp_path / "missing")]) == 3

    assert err.getvalue().count("\n") == 1
    assert err.getvalue().startswith(f"staticcall: {tmp_path}")


def test_a_name_in_the_log_is_no_command_for_the_terminal(calls: Path, tmp_path: Path) -> None:
    evil = tmp_path / "a\x1b[2J\nb{0}%s"
    evil.write_bytes(calls.read_bytes())

    assert all("a\\x1b[2J\\nb{0}%s: " in line for line in logged("report", "-v", evil))


def test_whoever_calls_the_commands_finds_logging_as_it_was(calls: Path) -> None:
    logger = logging.getLogger("staticcall")
    before = logger.level, logger.propagate, list(logger.handlers)
    assert logged("report", "-v", calls)

    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert logged("report", calls) == []


def test_a_plain_report_in_a_pipe_imports_nothing_for_terminals_and_logs(calls: Path) -> None:
    code = (
        "import sys; from staticcall.cli.entry import run; run(['report', sys.argv[1]]);"
        "print(sorted({'logging', 'rich', 'threading', 'subprocess', 'staticcall.cli.progress'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, calls], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
