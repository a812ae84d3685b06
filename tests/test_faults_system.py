"""The write path on a real full disk, in folders that are read-only, under limits, and under strace."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import staticcall, succeed
from tests.support.toolchain import TIMEOUT_SECONDS
from tests.support.write_faults import Calls, Fault, Faulty, Kind, build_shim

FAST = ("--set", "alpha=alpha_fast")
NOBODY = 65534


def _unavailable(reason: str) -> NoReturn:
    """Skip on a developer's machine; fail in CI, where everything is installed."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _run(*command: str | Path, size: int | None = None) -> subprocess.CompletedProcess[str]:
    """A process, perhaps with a limit on the size of files in bytes."""

    def limit() -> None:
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        preexec_fn=limit,
    )


def _tool(*arguments: str | Path, size: int | None = None) -> subprocess.CompletedProcess[str]:
    return _run(sys.executable, "-m", "staticcall", *arguments, size=size)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- a full disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk).returncode == 0
    if not mounted:
        pytest.skip("only who may mount has a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True, timeout=TIMEOUT_SECONDS)


def test_on_a_full_disk_the_old_file_stays(program: Path, made: Objects, small_disk: Path) -> None:
    out = small_disk / "out"
    out.write_text("old")
    (small_disk / "filler").write_bytes(bytes(56 << 10))  # room for a page or two
    unannotated = made("combined-bfd")
    outcomes = [
        staticcall("patch", program, "-o", out, "--edits", small_disk / "edits", *FAST),
        staticcall("annotate", unannotated, "-o", out),
        staticcall("report", "--format", "json", "--output", out, program),
    ]
    for outcome in outcomes:
        assert (outcome.code, outcome.out) == (3, "")
        assert re.fullmatch(rf"staticcall: {out}: cannot be written: No space left on device, .*\n", outcome.err)
    assert out.read_text() == "old"
    assert _names(small_disk) == {"out", "filler"}
    (small_disk / "filler").unlink()
    succeed("patch", program, "-o", out, "--edits", small_disk / "edits", *FAST)
    assert _names(small_disk) == {"out", "edits"}


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_a_limit_on_the_size_of_files_is_told(size: int, program: Path, made: Objects) -> None:
    """It comes as a signal as well, SIGXFSZ."""
    out = program.with_name("out")
    for command in (
        ("patch", program, "-o", out, *FAST),
        ("patch", program, "-o", out, "--edits", program.with_name("edits"), *FAST),
        ("annotate", made("combined-bfd"), "-o", out),
        ("report", "--format", "json", "--output", out, program),
    ):
        done = _tool(*command, size=size)
        assert (done.returncode, done.stdout) == (3, ""), done
        assert done.stderr.count("\n") == 1, done
        assert "cannot be written: File too large" in done.stderr
        assert _names(program.parent) == {"program"}


# ---- folders and files that are read-only ----


@pytest.fixture
def plainly() -> list[str]:
    """A prefix that gives up root's rights, where there are any; the user stays, so that the folders do."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        _unavailable("not installed: setpriv")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


@pytest.fixture
def folder(program: Path) -> Iterator[Path]:
    """The program's folder, which can be removed again."""
    yield program.parent
    program.parent.chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o000])
def test_in_a_read_only_folder_nothing_is_written(mode: int, program: Path, folder: Path, plainly: list[str]) -> None:
    before = program.read_bytes()
    edits = ("--edits", folder / "edits")
    program.with_name("old").write_bytes(b"old")
    folder.chmod(mode)
    for where in (("-o", folder / "out"), ("-o", folder / "old"), ("--in-place",)):
        done = _run(*plainly, sys.executable, "-m", "staticcall", "patch", program, *where, *edits, *FAST)
        assert (done.returncode, done.stdout) == (3, ""), done
        assert done.stderr.count("\n") == 1, done
        assert "Permission denied" in done.stderr
    folder.chmod(0o755)
    assert _names(folder) == {"program", "old"}
    assert (program.read_bytes(), program.with_name("old").read_bytes()) == (before, b"old")


def test_a_read_only_file_in_a_writable_folder_is_replaced_with_its_mode(
    program: Path, folder: Path, plainly: list[str]
) -> None:
    """A rename asks the folder; the undo file, which is new, can be had as well."""
    program.chmod(0o555)
    done = _run(
        *plainly, sys.executable, "-m", "staticcall", "patch", program, "--in-place", "--edits",
        folder / "edits", "--quiet", *FAST,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert program.stat().st_mode & 0o777 == 0o555
    assert _names(folder) == {"program", "edits"}


def test_in_a_folder_that_cannot_be_read_all_goes_well(program: Path, folder: Path, plainly: list[str]) -> None:
    """Neither listed nor locked nor flushed: a name in it can be made and found all the same."""
    folder.chmod(0o333)
    command: list[str | Path] = [
        *plainly,
        sys.executable,
        "-m",
        "staticcall",
        "patch",
        program,
        "--in-place",
        "--quiet",
        *FAST,
    ]
    done = _run(*command)
    folder.chmod(0o755)
    assert (done.returncode, done.stderr) == (0, "")
    assert _names(folder) == {"program"}


def test_where_others_keep_their_files_theirs_cannot_be_replaced(
    program: Path, folder: Path, plainly: list[str]
) -> None:
    """In a folder like /tmp the output's rename is what fails, when its undo file has its name already."""
    if not plainly:
        pytest.skip("only root has files of others")
    (folder / "edits").write_text("old")
    (folder / "out").write_text("another's")
    for path in (folder, folder / "out"):
        os.chown(path, NOBODY, NOBODY)
    folder.chmod(0o1777)
    done = _run(
        *plainly, sys.executable, "-m", "staticcall", "patch", program, "-o", folder / "out", "--edits",
        folder / "edits", *FAST,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, ""), done
    assert done.stderr.endswith("out: cannot be written: Operation not permitted, nothing was published\n")
    assert (folder / "edits").read_text() == "old"
    assert (folder / "out").read_text() == "another's"
    assert _names(folder) == {"program", "out", "edits"}


# ---- what the shim sees, and what strace sees ----

# strace's names, by the shim's.
_SEEN = {"create": "openat", **{name: name for name in ("write", "pwrite64", "fsync", "fchmod", "fchown", "flock")}}
_SEEN |= {name: name for name in ("unlink", "rename", "renameat2", "copy_file_range", "ftruncate")}
# Whatever else could change a file or a name, and the shim does not know.
_OTHERS = {"creat", "truncate", "fallocate", "pwritev", "pwritev2", "writev", "sendfile", "splice", "link", "linkat"}
_OTHERS |= {"symlink", "symlinkat", "unlinkat", "renameat", "mkdir", "mkdirat", "rmdir", "chmod", "fchmodat", "chown"}
_OTHERS |= {"fchownat", "setxattr", "fsetxattr", "utimensat", "io_uring_setup", "sync_file_range", "mknod", "mknodat"}


def test_the_shim_misses_no_call_that_strace_sees(built: Builder, tmp_path: Path) -> None:
    """An independent recorder: the calls that can be made to fail are all those that write."""
    if shutil.which("strace") is None:
        _unavailable("not installed: strace")
    folder, log = tmp_path / "arena", tmp_path / "log"

    def arguments() -> list[str | Path]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        program = shutil.copy(built("calls", "pie"), folder / "program")
        (folder / "edits").write_text("old")
        texts = ("--edits", folder / "edits", "--report", folder / "report")
        return ["patch", program, "--in-place", "--quiet", *texts, *FAST]

    trace = ("strace", "-f", "-y", "-qq", "-e", f"trace={','.join({*_SEEN.values(), *_OTHERS})}", "-o", log)
    done = _run(*trace, sys.executable, "-B", "-m", "staticcall", *arguments())
    if "ptrace" in done.stderr:
        _unavailable("strace may not trace here")
    assert (done.returncode, done.stderr) == (0, "")
    by_strace: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        name, _, rest = line.partition(" ")[2].strip().partition("(")
        reading = name == "openat" and "O_CREAT" not in rest
        if f"{folder}" in rest and not reading:
            by_strace[name] += 1
    with Faulty(build_shim(tmp_path)) as faulty:
        faulty.warm(*arguments())
        calls = faulty.run(*arguments(), folder=folder, calls=Calls.WRITING).calls
    by_shim = Counter(_SEEN[name] for name in calls if name in _SEEN)
    assert by_strace == by_shim
    assert by_strace["rename"] + by_strace["renameat2"] == 3


def test_strace_kills_at_every_rename_as_the_shim_does(built: Builder, tmp_path: Path) -> None:
    """The whole program, from its start, killed by another means, where it matters most."""
    if shutil.which("strace") is None:
        _unavailable("not installed: strace")
    program, out, edits = (tmp_path / name for name in ("program", "out", "edits"))
    shutil.copy(built("calls", "pie"), program)
    options = ("-o", out, "--edits", edits, "--quiet", *FAST)
    command: list[str | Path] = [sys.executable, "-B", "-m", "staticcall", "patch", program, *options]
    inject = "inject=rename,renameat2:signal=KILL:when="
    for number, there in ((1, set[str]()), (2, {"edits"})):
        done = _run("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"{inject}{number}", *command)
        if "ptrace" in done.stderr:
            _unavailable("strace may not trace here")
        assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done
        now = _names(tmp_path)
        assert now - {".out.0.staticcall", ".edits.0.staticcall"} == {"program", *there}
    assert _run(*command).returncode == 0
    assert _names(tmp_path) == {"program", "out", "edits"}


# ---- a kernel ----


@pytest.mark.kernel
@pytest.mark.slow
def test_a_kernel_on_its_way_is_removed_or_swept(vmlinux_612: Path, tmp_path: Path) -> None:
    """Hundreds of megabytes are under way when the run is ended or the disk is full."""
    folder = tmp_path / "arena"
    folder.mkdir()
    out, edits = folder / "vmlinux", folder / "edits"
    command = ("patch", vmlinux_612, "-o", out, "--edits", edits, "--bind", "--key", "might_resched", "--quiet")
    with Faulty(build_shim(tmp_path)) as faulty:
        # The file is made and locked, and some of it is copied.
        done = faulty.run(*command, folder=folder, fault=Fault(4, Kind.SIGNAL, "SIGTERM"))
        assert (done.code, done.err, _names(folder)) == (-signal.SIGTERM, "", set())
        done = faulty.run(*command, folder=folder, fault=Fault(4, Kind.ERROR_FROM_HERE, "ENOSPC"))
        assert (done.code, done.err.count("\n"), _names(folder)) == (3, 1, set())
        assert f"{out}: cannot be written: No space left on device" in done.err
        done = faulty.run(*command, folder=folder, fault=Fault(4, Kind.SIGNAL, "SIGKILL"))
        assert done.code == -signal.SIGKILL
        assert _names(folder) == {".vmlinux.0.staticcall"}
        assert 0 < (folder / ".vmlinux.0.staticcall").stat().st_size < vmlinux_612.stat().st_size
    succeed(*command)
    assert _names(folder) == {"vmlinux", "edits"}
    out.unlink()
