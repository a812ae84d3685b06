"""A short run of the fuzzer, and that it sees what it looks for."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Final

import pytest

from fuzz import judge as judging
from fuzz import runner
from fuzz import seeds as seeding
from fuzz.cases import BAD, FOLDER, OUT, Case, operations_of
from fuzz.findings import Findings, kind_of, load
from fuzz.judge import Judge
from fuzz.runner import Task, case_of
from fuzz.seed import Stock
from fuzz.tally import Tally
from tests.support import objects, toolchain
from tests.support.toolchain import TIMEOUT_SECONDS

ROOT = Path(__file__).parents[1]
SEED = 20_181_129


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    if missing := [*toolchain.missing_tools(), *objects.missing_tools()]:
        _unavailable(f"not installed: {', '.join(missing)}")
    return seeding.build(tmp_path_factory.mktemp("seeds"))


def _unavailable(reason: str) -> None:
    """Skip on a developer's machine; fail where every test is meant to run."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


# ---- the runs ----


def _fuzz(folder: Path, *options: str) -> str:
    """A run of its own process, which has to find nothing; what it prints names the seed and the findings."""
    where = ["--seed", str(SEED), "--findings", str(folder / "findings")]
    command = [sys.executable, "-m", "fuzz", "--jobs", "1", *where, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "findings").exists()
    return done.stdout


def test_a_short_structure_aware_run_finds_nothing(tmp_path: Path, stock: Stock) -> None:
    assert stock
    table = _fuzz(tmp_path, "--inputs", "1500", "--guided", "0")

    # Most inputs are refused for what is wrong with them, and not all: those would be too coarse to find anything.
    (row,) = [line for line in table.splitlines() if line.startswith("| **all** |")]
    inputs, *codes = (int(cell.replace(",", "") or 0) for cell in row.split("|")[2:9])
    assert inputs == 1500
    assert all(code > inputs / 100 for code in codes)


def test_a_short_run_by_coverage_finds_nothing(tmp_path: Path, stock: Stock) -> None:
    assert stock
    if importlib.util.find_spec("atheris") is None:
        _unavailable("not installed: atheris")
    table = _fuzz(tmp_path, "--inputs", "250", "--guided", "250")

    assert "By coverage, 250 inputs:" in table


def test_a_process_that_dies_or_hangs_is_a_finding_and_the_rest_is_done(
    tmp_path: Path, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(_task: Task, number: int, _judge: Judge, _findings: Findings, tally: Tally) -> None:
        if number == 5:
            os._exit(9)
        if number == 8:
            signal.pause()
        tally.add("done", 0, 0.0, 0)

    monkeypatch.setattr(runner, "_one", one)
    monkeypatch.setattr(runner, "warm_up", lambda *_: None)
    monkeypatch.setattr(runner, "SILENCE", 2.0)
    tally, findings = runner.run(Task(stock, SEED, 0, 20, 2, tmp_path, tmp_path / "findings"), lambda _: None)

    assert set(findings.counts) == {"crash: exit code 9", "hang"}
    assert tally.counts == {("done", 0): 18, ("(process lost)", -1): 2}
    kept = {load(folder).operation for folder in findings.folder.iterdir()}
    assert kept == {case_of(stock, SEED, number).operation for number in (5, 8)}


# ---- the inputs ----


def test_every_seed_is_sound_and_every_operation_succeeds_with_one(tmp_path: Path, stock: Stock) -> None:
    judge = Judge(tmp_path)
    done, asked = set(), set()
    for seed in stock.seeds:
        codes = set()
        for operation in set(operations_of(seed)):
            for number in range(2 if seed.kind == "container" else 6):
                case = operation(Random(number), seed, seed.content)  # noqa: S311 - nothing secret
                outcome = judge.run(case)
                assert not outcome.problems, (seed.name, case.arguments, outcome)
                asked.add(case.operation)
                codes.add(outcome.code)
                if outcome.code in (0, 1):
                    done.add(case.operation)
        assert codes & {0, 1}, seed.name
    # In archives are mostly objects, of which nothing can be pinned.
    assert asked - done <= {"patch, strange", "patch, --pin, of a member"}


def test_a_seed_and_a_number_are_the_same_input_anywhere(tmp_path: Path, stock: Stock) -> None:
    again = seeding.build(tmp_path)

    assert [case_of(stock, SEED, number) for number in range(200)] == [
        case_of(again, SEED, number) for number in range(200)
    ]
    assert case_of(stock, SEED, 1) != case_of(stock, SEED + 1, 1)


# ---- what the system sees ----

# Calls that start a program, and calls that change what is on the disk, with the names that they are given.
_STARTING = re.compile(r"^(\d+ +)?(execve|execveat|fork|vfork)\(")
_CHANGING = (
    "open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,symlink,symlinkat,link,linkat"
)
_NAMED = re.compile(r"(?:AT_FDCWD|<[^>]*>)?[(, ]\"((?:[^\"\\\\]|\\\\.)*)\"")


@pytest.mark.parametrize(
    "operation", ["report, text", "patch, --bind", "patch, --set", "annotate, --output-dir", "verify, with itself"]
)
def test_the_system_sees_no_program_started_and_nothing_written_elsewhere(
    operation: str, tmp_path: Path, stock: Stock
) -> None:
    """The same in processes of their own, under strace: libraries in C raise no audit events."""
    if shutil.which("strace") is None:
        _unavailable("not installed: strace")
    judge, log, ends = Judge(tmp_path), tmp_path / "log", set[bool]()
    for case in (case_of(stock, SEED, number) for number in range(3000)):
        if len(ends) == 2:
            break
        if case.operation != operation or (well := judge.run(case).code in (0, 1)) in ends:
            continue
        ends.add(well)
        judge.put(case)
        calls = f"trace=execve,execveat,fork,vfork,{_CHANGING}"
        command: list[str | Path] = ["strace", "-f", "-qq", "-s", "4096", "-e", calls, "-o", log]
        command += [sys.executable, "-B", "-m", "staticcall", *judge.arguments(case)]
        own = {**os.environ, "TMPDIR": str(judge.temporary)}
        done = subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        assert done.returncode in case.codes, done
        lines = log.read_text().splitlines()
        assert len([line for line in lines if _STARTING.match(line)]) == 1, "the interpreter itself"
        # What is removed by its name in an open folder is a temporary folder's.
        changing = [line for line in lines if not re.search(r"execve|O_RDONLY|O_PATH|= -1 |unlinkat\([0-9]", line)]
        names = [name for line in changing for name in _NAMED.findall(line) if name != "/dev/null"]
        places = [Path(name).resolve() for name in names]
        assert all(judge.folder in place.parents or judge.temporary in place.parents for place in places), changing
        assert not any(judge.temporary.iterdir())
        assert names or not well or not operation.endswith("--output-dir"), "what is written is seen"
    assert ends == {True, False}


# ---- what the judge sees ----

Tool = Callable[[Sequence[str]], int]


def _failing(text: str = "staticcall: bad: is bad\n", code: int = 3) -> int:
    sys.stderr.write(text)
    return code


def _raise(_: Sequence[str]) -> int:
    raise IndexError("tuple index out of range")


def _loop(_: Sequence[str]) -> int:
    while True:
        pass


def _allocate(_: Sequence[str]) -> int:
    try:
        return len(bytearray(500 << 20)) and 0
    except MemoryError:
        return _failing("staticcall: not enough memory for this file\n")


def _stray(arguments: Sequence[str]) -> int:
    Path(arguments[0]).with_name(".left").write_text("half")
    return _failing()


def _output(arguments: Sequence[str]) -> int:
    Path(arguments[0]).with_name(OUT).write_text("half")
    return _failing()


def _touch(arguments: Sequence[str]) -> int:
    Path(arguments[0]).write_text("other")
    return _failing()


def _elsewhere(arguments: Sequence[str]) -> int:
    Path(arguments[0]).parent.parent.joinpath("elsewhere").write_text("x")
    return _failing()


def _through_the_link(arguments: Sequence[str]) -> int:
    Path(arguments[0]).with_name("link").write_text("x")
    return _failing()


def _start(_: Sequence[str]) -> int:
    subprocess.run(["true"], check=True)
    return _failing()


def _compile(arguments: Sequence[str]) -> int:
    compile(Path(arguments[0]).read_bytes(), "file", "exec")
    return _failing()


MISTAKES: Final[dict[str, tuple[Tool, str]]] = {
    "raises": (_raise, "traceback: IndexError"),
    "exits": (lambda _: sys.exit(3), "traceback: SystemExit"),
    "hangs": (_loop, "stuck"),
    "takes memory": (_allocate, "memory"),
    "wrong code": (lambda _: _failing(code=7), "exit code 7"),
    "says nothing": (lambda _: _failing(""), "not one line"),
    "says two lines": (lambda _: _failing("staticcall: a\nstaticcall: b\n"), "not one line"),
    "controls the terminal": (lambda _: _failing("staticcall: \x1b[2J\n"), "unprintable line"),
    "prints and fails": (lambda _: sys.stdout.write("x") and _failing(), "output of a failure"),
    "leaves a file": (_stray, "stray files"),
    "leaves an output": (_output, "stray files"),
    "touches the input": (_touch, "touched"),
    "writes elsewhere": (_elsewhere, "writes elsewhere"),
    "follows a link": (_through_the_link, "writes elsewhere"),
    "starts a program": (_start, "forbidden event subprocess"),
    "compiles the input": (_compile, "forbidden event compile"),
    "complains and succeeds": (lambda _: _failing(code=0), "standard error of a success"),
}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Judge]:
    (tmp_path / "judge").mkdir()
    yield Judge(tmp_path / "judge", seconds=0.3)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_judge_sees(mistake: str, control: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, wanted = MISTAKES[mistake]
    monkeypatch.setattr(judging, "_entry", lambda: tool)

    outcome = control.run(_case())

    assert any(problem.startswith(wanted) for problem in outcome.problems), outcome


def test_the_judge_lets_pass_what_is_refused_properly(control: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_entry", lambda: lambda _: _failing())

    assert control.run(_case()).problems == ()


def test_the_judge_sees_a_link_out_of_an_output_folder_followed(
    control: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(arguments: Sequence[str]) -> int:
        Path(arguments[-1]).joinpath(BAD).write_text("x")
        return 0

    monkeypatch.setattr(judging, "_entry", lambda: follow)
    outcome = control.run(_case()._replace(arguments=(BAD, FOLDER)))

    assert any(problem.startswith("writes elsewhere") for problem in outcome.problems), outcome


def _case() -> Case:
    return Case("report", {BAD: b"x = 1"}, (BAD,), frozenset({0, 3}), frozenset({OUT}))


def test_a_finding_is_kept_once_and_made_small(tmp_path: Path, control: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_seven(arguments: Sequence[str]) -> int:
        return _failing(code=7 if Path(arguments[0]).read_bytes()[6:7] == b"!" else 3)

    monkeypatch.setattr(judging, "_entry", lambda: fails_at_seven)
    sound, bad = b"0123456789", b"??2345!78?++"
    case = _case()._replace(files={BAD: bad})
    findings = Findings(tmp_path / "findings")

    for _ in range(2):
        findings.add(case, "1:2", control.run(case).problems, control, sound)

    (folder,) = findings.folder.iterdir()
    kept = load(folder)
    assert kept.files == {BAD: b"012345!789"}
    assert kept == case._replace(files=kept.files)
    assert list(findings.counts.values()) == [2]
    assert [kind_of(problem) for problem in control.run(kept).problems] == list(findings.counts)
