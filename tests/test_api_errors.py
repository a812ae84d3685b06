"""What goes wrong in the Python API is an exception that says where, and leaves nothing behind."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import staticcall
from staticcall import StaticcallError
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import digest, names_in
from tests.support.tool import staticcall as tool


def _as_the_command(error: StaticcallError, *arguments: str | Path) -> None:
    """See that the command says the same of the same, and exits with the error's code."""
    outcome = tool(*arguments)
    assert (outcome.code, outcome.err) == (error.exit_code, f"staticcall: {error}\n")


# ---- what cannot be read ----


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(staticcall.InputError) as caught:
        staticcall.open(path)

    assert caught.value.path == path
    assert caught.value.exit_code is staticcall.ExitCode.INPUT
    assert caught.value.advice
    _as_the_command(caught.value, "report", path)


def test_a_file_that_ends_too_early_says_where(demo: Path) -> None:
    data = demo.read_bytes()
    sections = int.from_bytes(data[40:48], "little")  # e_shoff
    demo.write_bytes(data[: sections + 10])
    with pytest.raises(staticcall.MalformedError) as caught:
        staticcall.open(str(demo))

    assert caught.value.offset == sections
    assert str(caught.value.path) == str(demo)
    assert f"(offset {sections:#x})" in str(caught.value)
    _as_the_command(caught.value, "report", demo)


def test_a_damaged_table_is_an_error_of_the_report_and_names_the_file(demo: Path, built: Builder) -> None:
    overlap = shutil.copy(built("broken/overlap", "exec"), demo)
    with staticcall.open(overlap) as file:
        report = file.report()
        assert {finding.severity for finding in report.findings} >= {staticcall.Severity.ERROR}
    with staticcall.open(overlap, table="0x10:0x20") as file, pytest.raises(StaticcallError) as caught:
        file.report()

    assert caught.value.path == demo
    _as_the_command(caught.value, "report", "--table", "0x10:0x20", demo)


def test_an_archive_wants_the_name_of_a_member(tmp_path: Path) -> None:
    archive = tmp_path / "lib.a"
    archive.write_bytes(b"!<arch>\n")
    with pytest.raises(staticcall.UnsupportedError, match="name one of its members"):
        staticcall.open(archive)
    with pytest.raises(staticcall.InputError, match=r"x\.o"):
        staticcall.open(archive, "x.o")
    with pytest.raises(staticcall.InputError):
        list(staticcall.members(__file__))


# ---- what cannot be meant ----


def _report_with_table_1(file: staticcall.File) -> staticcall.Report:
    with staticcall.open(file.path, table="1") as other:
        return other.report()


WRONG: dict[str, tuple[Callable[[staticcall.File], object], type[Exception], str]] = {
    "policy": (lambda f: f.report(policy="fast"), staticcall.UsageError, "known are lutomirski"),  # type: ignore[arg-type]
    "line": (lambda f: f.report(line=48), staticcall.UsageError, "no power of two from 8 to 4096"),
    "format": (lambda f: f.report().render("pdf"), staticcall.UsageError, "known are text"),  # type: ignore[arg-type]
    "nothing": (lambda f: f.plan(), staticcall.UsageError, "nothing"),
    "force": (lambda f: f.plan(bind=True, force=["all"]), staticcall.UsageError, "known are kaslr"),  # type: ignore[list-item]
    "build id": (lambda f: f.plan(bind=True, build_id="new"), staticcall.UsageError, "recompute"),
    "one pin": (lambda f: f.plan(pins="log"), TypeError, r"give \['log'\]"),
    "one force": (lambda f: f.plan(bind=True, force="type"), TypeError, r"give \['type'\]"),  # type: ignore[arg-type]
    "pairs": (lambda f: f.plan([("log", "NULL")]), TypeError, "a mapping from names to names"),  # type: ignore[arg-type]
    "None": (lambda f: f.plan({"log": None}), TypeError, "NULL and RET0 are names"),  # type: ignore[dict-item]
    "bytes": (lambda f: f.verify(b"demo"), TypeError, "not bytes"),  # type: ignore[arg-type]
    "empty": (lambda f: f.plan(bind=True).apply(""), staticcall.UsageError, "without a name"),
    "table": (_report_with_table_1, staticcall.UsageError, "START:STOP"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_cannot_be_meant_is_refused_in_words(case: str, demo: Path) -> None:
    use, kind, says = WRONG[case]
    with staticcall.open(demo) as file, pytest.raises(kind, match=says) as caught:
        use(file)

    if isinstance(caught.value, StaticcallError):
        assert caught.value.exit_code is staticcall.ExitCode.USAGE
    assert names_in(demo.parent) == {"demo"}


# ---- what is refused ----


def test_a_danger_has_its_code_and_nothing_is_written(demo: Path) -> None:
    with staticcall.open(demo) as file, pytest.raises(staticcall.UnsafeError) as caught:
        file.plan({"chekcsum": "checksum_fast"})

    assert (caught.value.code, caught.value.exit_code) == ("unknown-key", staticcall.ExitCode.UNSAFE)
    assert "checksum" in caught.value.advice
    assert names_in(demo.parent) == {"demo"}
    _as_the_command(caught.value, "patch", demo, "--set", "chekcsum=checksum_fast", "--dry-run")


def test_the_input_is_never_written_to_by_any_of_its_names(demo: Path) -> None:
    before, digested = demo.stat(), digest(demo)
    link, hard = demo.with_name("link"), demo.with_name("hard")
    link.symlink_to("demo")
    hard.hardlink_to(demo)
    with staticcall.open(demo) as file:
        plan = file.plan({"log": "log_print"})
    for name in (demo, link, hard):
        with pytest.raises(staticcall.UsageError):
            plan.apply(name)
        with pytest.raises(staticcall.UsageError):
            plan.apply(demo.with_name("out"), edits_file=name)
        with pytest.raises(staticcall.UsageError):
            staticcall.annotate(demo, name)
    plan.apply(demo.with_name("out"))

    after = demo.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_mode) == (before.st_mtime_ns, before.st_size, before.st_mode)
    assert digest(demo) == digested
    assert names_in(demo.parent) == {"demo", "link", "hard", "out"}


def test_a_plan_alone_writes_nothing(demo: Path) -> None:
    with staticcall.open(demo) as file:
        file.plan({"log": "log_print"}).describe(verbose=True)

    assert names_in(demo.parent) == {"demo"}


@pytest.mark.parametrize("missing", ["output", "edits_file", "report_file"])
def test_a_failure_leaves_nothing_behind(missing: str, demo: Path) -> None:
    names: dict[str, Any] = {name: demo.with_name(name) for name in ("output", "edits_file", "report_file")}
    names[missing] = demo.parent / "no-such-folder" / missing
    with staticcall.open(demo) as file:
        plan = file.plan({"log": "log_print"})
    with pytest.raises(staticcall.OutputError) as caught:
        plan.apply(**names)

    assert Path(caught.value.path or "") == names[missing]
    assert caught.value.exit_code is staticcall.ExitCode.INPUT
    assert names_in(demo.parent) == {"demo"}


def test_only_what_was_looked_at_is_written(demo: Path, built: Builder) -> None:
    """A file that was built anew meanwhile gets no patch that nobody has seen."""
    with staticcall.open(demo) as file:
        plan = file.plan({"checksum": "checksum_fast"})
    shutil.copy(built("demo", "pie"), demo)
    with pytest.raises(staticcall.InputError, match="is not what it was when it was planned"):
        plan.apply(demo.with_name("out"))

    assert names_in(demo.parent) == {"demo"}


def test_an_object_that_was_built_anew_gets_no_patch_either(made: Objects, tmp_path: Path) -> None:
    path = tmp_path / "two.o"
    staticcall.annotate(made("two_keys"), path)
    with staticcall.open(path) as file:
        plan = file.plan({"two": "elsewhere"})
    assert plan.undefined == ("elsewhere",)
    plan.apply(tmp_path / "good.o")
    shutil.copy(made("two_keys"), path)  # without a table
    with pytest.raises(staticcall.InputError, match="is not what it was when it was planned"):
        plan.apply(tmp_path / "bad.o")

    assert names_in(tmp_path) == {"two.o", "good.o"}


def test_an_open_file_that_changes_is_not_told_of_as_it_was(demo: Path, built: Builder) -> None:
    with staticcall.open(demo) as file:
        report = file.report()
        shutil.copy(built("demo", "pie"), demo)
        for use in (file.report, lambda: file.plan(bind=True), lambda: file.verify(demo)):
            with pytest.raises(staticcall.InputError, match="was changed"):
                use()
    with pytest.raises(staticcall.InputError, match="was changed since it was reported"):
        report.render("text")
    assert report.to_json() == report.render("json")


def test_what_is_no_legal_patch_is_not_proved(demo: Path) -> None:
    other = demo.with_name("other")
    with staticcall.open(demo) as file:
        file.plan({"log": "log_print"}).apply(other, edits_file=demo.with_name("edits"))
        data = bytearray(other.read_bytes())
        site = file.report(keys="checksum").sites[0]
        data[site.file_offset + 1] ^= 1
        other.write_bytes(data)
        with pytest.raises(staticcall.VerificationError) as caught:
            file.verify(other)
    with pytest.raises(staticcall.UnsafeError) as another:
        staticcall.revert(other, demo.with_name("edits"), demo.with_name("back"))

    assert caught.value.exit_code is staticcall.ExitCode.UNVERIFIED
    assert caught.value.path == other
    assert another.value.code == "other-file"
    assert names_in(demo.parent) == {"demo", "other", "edits"}
    _as_the_command(caught.value, "verify", demo, other)


# ---- errors are values too ----


@pytest.mark.parametrize(
    "error",
    [
        staticcall.MalformedError("is short", path="x", offset=16, advice="give another"),
        staticcall.UnsafeError("would crash", code="kaslr-slot", advice="do not", path="x"),
        staticcall.UsageError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_processes_whole(error: StaticcallError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own

    assert type(again) is type(error)
    assert (str(again), vars(again), again.exit_code) == (str(error), vars(error), error.exit_code)
