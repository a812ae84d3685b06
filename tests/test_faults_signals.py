"""Signals: what is being written is removed, publishing comes to its end, and no process outlives the first one."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from staticcall.write import signals
from tests.support.tool import names_in, staticcall, succeed
from tests.support.toolchain import TIMEOUT_SECONDS


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_outlives_the_first_one(number: signal.Signals, plain: Path, tmp_path: Path) -> None:
    """With `-j`, and whatever happens to the one that was started; the next run leaves no stray behind."""
    folder = tmp_path / "built"
    folder.mkdir()
    files = [
        shutil.copy(plain, tmp_path / f"{n}.o") for n in range(1500)
    ]  # it must not be done before the signal comes
    succeed("annotate", plain, "-o", tmp_path / "whole.o")
    # The processes inherit the pipe: it ends when the last one does.
    reading, writing = os.pipe()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "staticcall",
        "annotate",
        "-j",
        "3",
        "--quiet",
        "--output-dir",
        folder,
        *files,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[writing]) as process:
        os.close(writing)
        _wait_for(lambda: any(path.suffix == ".o" for path in folder.iterdir()), process)
        process.send_signal(number)
        _, said = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, said) == (-number, b"")
    with os.fdopen(reading, "rb") as stream:
        assert stream.read() == b""
    whole = (tmp_path / "whole.o").read_bytes()
    assert all(path.read_bytes() == whole for path in folder.glob("*.o"))
    assert {path.suffix for path in folder.iterdir()} <= {".o"}
    succeed("annotate", "--quiet", "--output-dir", folder, *files)
    assert names_in(folder) == {Path(file).name for file in files}


def test_a_signal_somebody_ignores_stays_ignored() -> None:
    """As `nohup` does, or a program that uses the package and has handlers of its own."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
        assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hangup)


def test_no_signal_comes_while_its_handler_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would drop it, with a traceback on stderr: seen once in some thousand runs with `-j`."""
    change, changed = signal.signal, []

    def watched(number: int, handler: object) -> object:
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
        changed.append(number)
        return change(number, handler)  # type: ignore[arg-type]  # what it was called with

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(signal, "signal", watched)
    with signals.held():
        pass
    assert sorted(changed) == sorted(2 * [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_an_interruption_while_publishing_waits_for_its_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_report_into_a_pipe_that_nobody_empties_can_be_stopped(
    number: signal.Signals, program: Path, tmp_path: Path
) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # The report is longer than the smallest pipe.
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
        command: list[str | Path] = [sys.executable, "-m", "staticcall", "patch", program, "-o", out, "--quiet"]
        command += ["--set", "alpha=alpha_fast", "--report", pipe]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            _wait_for(lambda: bool(select.select([reading], [], [], 0.1)[0]), process)
            process.send_signal(number)
            try:
                process.communicate(timeout=TIMEOUT_SECONDS)
            finally:
                process.kill()
    finally:
        os.close(reading)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert names_in(tmp_path) == {"home", "pipe"}


def test_without_a_thread_for_the_copy_nothing_is_written(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit on a user's processes."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    outcome = staticcall("patch", program, "-o", program.with_name("out"), "--set", "alpha=alpha_fast")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1), outcome
    assert "can't start new thread" in outcome.err
    assert names_in(program.parent) == {"program"}


@pytest.mark.parametrize("missing", ["first", "second", "thread"])
def test_where_not_all_processes_can_be_started_none_is_waited_for(missing: str, plain: Path, tmp_path: Path) -> None:
    """As under a limit on a user's processes, which is met at any of them."""
    folder = tmp_path / "built"
    folder.mkdir()
    script = f"""
import os, sys, threading
started, fork = [], os.fork
def limited(*_):
    started.append(None)
    if {missing!r} == "thread" or {missing!r} == "first" or len(started) > 1:
        raise RuntimeError("none left") if {missing!r} == "thread" else BlockingIOError(11, "none left")
    return fork()
if {missing!r} == "thread":
    threading.Thread.start = limited
else:
    os.fork = limited
from staticcall.__main__ import main
main()
"""
    files = [shutil.copy(plain, tmp_path / f"{n}.o") for n in range(2)]
    command: list[str | Path] = [sys.executable, "-c", script, "annotate", "-j", "2", "--output-dir", folder, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done
    assert "processes of -j cannot be started" in done.stderr
    assert names_in(folder) == set()
