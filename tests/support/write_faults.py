"""Runs of the tool in which one system call of the write path goes wrong.

    with Faulty(build_shim(folder)) as faulty:
        done = faulty.run("patch", program, "-o", out, "--bind", folder=out.parent, fault=Fault(3, "SIGKILL"))

A process with the shim of `fixtures/write_faults` preloaded imports the tool once and forks for every run, so that a
run costs milliseconds. Calls are counted that name something in the folder, or a descriptor opened there.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from enum import Enum, IntFlag
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.support.runtime import FIXTURES
from tests.support.toolchain import TIMEOUT_SECONDS

SOURCE: Final = FIXTURES / "write_faults" / "shim.c"
_TRACEBACK: Final = 99


class Calls(IntFlag):
    """Which calls count: those that write (and lock, close, remove), that read, that only ask."""

    WRITING = 1
    READING = 2
    ASKING = 4


class Kind(Enum):
    """What happens at a call; the numbers are the shim's."""

    NOTHING = 0
    SIGNAL = 1
    ERROR = 2
    ERROR_FROM_HERE = 3
    """This call and all later ones that need room on the disk fail, as they do on a full one."""
    SHORT = 4
    """It does about half of what it was asked for."""


class Fault(NamedTuple):
    """The n-th call, from 1 on, meets a signal or an error: `SIGKILL`, `ENOSPC`, or nothing for a short write."""

    at: int
    kind: Kind
    name: str = ""

    @property
    def value(self) -> int:
        """The number of the signal or the error."""
        if self.kind is Kind.SIGNAL:
            return int(signal.Signals[self.name])
        return int(getattr(errno, self.name)) if self.name else 0


NO_FAULT: Final = Fault(0, Kind.NOTHING)


class Done(NamedTuple):
    """How a run ended: exit code, or the negative number of a signal; the calls that counted, if it lived to tell."""

    code: int
    out: str
    err: str
    calls: list[str]
    hit: bool


def build_shim(folder: Path) -> Path:
    """Compile the shim; raises `subprocess.CalledProcessError`."""
    shim = folder / "shim.so"
    flags = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
    command = ["gcc", *flags, str(SOURCE), "-o", str(shim), "-ldl", "-pthread"]
    subprocess.run(command, check=True, timeout=TIMEOUT_SECONDS)
    return shim


class Faulty:
    """A process that forks a run for every request."""

    def __init__(self, shim: Path) -> None:
        command = [sys.executable, "-m", "tests.support.write_faults", str(shim)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": str(shim)},
        )

    def warm(self, *arguments: str | Path) -> None:
        """One run in the process itself, so that those of its kind are quick; it has to go well."""
        done = self._ask({"arguments": [str(argument) for argument in arguments]})
        assert (done.code, done.err) == (0, ""), done

    def run(self, *arguments: str | Path, folder: Path, fault: Fault = NO_FAULT, calls: Calls = Calls.WRITING) -> Done:
        """One run of the tool."""
        arm = [str(folder), int(calls), fault.at, fault.kind.value, fault.value]
        return self._ask({"arguments": [str(argument) for argument in arguments], "arm": arm})

    def _ask(self, request: dict[str, Any]) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        done: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert done["code"] != _TRACEBACK, done["err"]
        return Done(**done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()


# ---- in the process with the shim ----


def _serve(shim: str) -> None:
    library = ctypes.CDLL(shim)
    library.faults_seen.restype = ctypes.c_char_p
    gc.disable()  # as in the program's entry
    for line in sys.stdin:
        request = json.loads(line)
        done = _forked(library, request) if "arm" in request else _warmed(request)
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


def _warmed(request: dict[str, Any]) -> dict[str, Any]:
    """Import what a run needs, so that no fork has to."""
    from staticcall.cli.entry import run  # noqa: PLC0415 - only in this process

    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(request["arguments"])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "calls": [], "hit": False}


def _forked(library: ctypes.CDLL, request: dict[str, Any]) -> dict[str, Any]:
    out, err, told = (os.memfd_create(name) for name in ("out", "err", "told"))
    child = os.fork()
    if child == 0:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os._exit(_run(library, request, told))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    calls, hit = _content(told).rpartition("\n")[::2]
    done = {"code": code, "out": _content(out), "err": _content(err), "calls": calls.split(), "hit": hit != "0"}
    for descriptor in (out, err, told):
        os.close(descriptor)
    return done


def _content(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()


def _run(library: ctypes.CDLL, request: dict[str, Any], told: int) -> int:
    import traceback  # noqa: PLC0415 - only in this process

    from staticcall.cli.entry import run  # noqa: PLC0415 - only in this process

    folder, calls, at, kind, value = request["arm"]
    try:
        library.faults_arm(os.fsencode(folder), calls, at, kind, value)
        code = run(request["arguments"])
        seen = library.faults_seen().decode()
        hit = library.faults_hit()
        library.faults_arm(b"", 0, 0, 0, 0)
        sys.stdout.flush()
        os.write(told, f"{seen}\n{hit}".encode())
    except BaseException:  # whatever a run lets through is what the test looks for
        traceback.print_exc()
        return _TRACEBACK
    return code


if __name__ == "__main__":
    _serve(sys.argv[1])
