"""Two runs on one output, files that change while they are read, links and strangers among the temporary files."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from staticcall.errors import InputError
from staticcall.read.source import FileSource, read_whole
from staticcall.verify import proof
from staticcall.verify.objects import annotation
from tests.support.archives import packed
from tests.support.tool import digest, names_in, patch, staticcall, staticcall_process, succeed
from tests.support.toolchain import TIMEOUT_SECONDS

FAST = ("--set", "alpha=alpha_fast")
PLAIN = ("--set", "alpha=alpha_plain")


# ---- a file that changes while it is read ----


def _change(path: Path, how: str) -> None:
    """Change the last byte, which belongs to a table of names or headers, or all of the file."""
    status = path.stat()
    if how == "truncated":
        os.truncate(path, status.st_size // 2)
    elif how == "replaced":
        other = path.with_name("other")
        shutil.copy2(path, other)
        other.replace(path)
    elif how == "removed":
        path.unlink()
    else:
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            last = stream.read(1)
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last[0] ^ 1]))
        if how == "changed and set back":
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


HOWS = ("truncated", "replaced", "removed", "changed", "changed and set back")


@pytest.mark.parametrize("moment", ["planning", "copying", "proving", "publishing"])
@pytest.mark.parametrize("how", HOWS)
def test_an_image_that_changes_meanwhile_is_not_patched(
    how: str, moment: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the others notice, the run says that the file was changed, and publishes nothing."""
    out, edits = program.with_name("out"), program.with_name("edits")
    out.write_text("old")

    def changing(function: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            _change(program, how)
            return function(*arguments, **options)

        return changed

    home, name = {
        "planning": ("staticcall.pipeline.patch", "make_plan"),
        "copying": ("staticcall.write.stage", "_copy_file"),
        "proving": ("staticcall.verify.proof", "prove"),
        "publishing": ("staticcall.pipeline.patch", "publish_together"),
    }[moment]
    module = import_module(home)
    monkeypatch.setattr(module, name, changing(getattr(module, name)))
    outcome = staticcall("patch", program, "-o", out, "--edits", edits, *FAST)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1), outcome
    assert "changed while it was read" in outcome.err or "cannot be" in outcome.err or "shorter" in outcome.err
    assert out.read_text() == "old"
    assert names_in(program.parent) <= {"program", "out"}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("in_place", [True, False])
def test_an_object_that_changes_meanwhile_is_not_annotated(
    how: str, in_place: bool, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = annotation.prove_annotation

    def changed(*arguments: Any, **options: Any) -> None:
        _change(plain, how)
        real(*arguments, **options)

    monkeypatch.setattr("staticcall.pipeline.annotate.prove_annotation", changed)
    where = ("--in-place",) if in_place else ("-o", str(plain.with_name("out.o")))
    outcome = staticcall("annotate", plain, *where)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1), outcome
    assert names_in(plain.parent) <= {"plain.o"}


def test_a_change_within_the_tick_of_the_last_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times may be the same then; the contents are not."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    status = path.stat()
    read = FileSource.read

    def changing(self: FileSource, offset: int, size: int) -> bytes:
        data = read(self, offset, size)
        path.write_bytes(b"new")
        return data

    monkeypatch.setattr(FileSource, "read", changing)
    monkeypatch.setattr("staticcall.read.source._stamp", lambda _: (status.st_ino,))
    monkeypatch.setattr("staticcall.read.source.time.time_ns", lambda: status.st_ctime_ns + 1)
    with pytest.raises(InputError, match="changed while it was read"):
        read_whole(path)


def test_a_file_that_shrinks_at_any_time_is_no_bus_error(program: Path, tmp_path: Path) -> None:
    """Truncated and filled again all the time, by another process than the one that reads."""
    whole = program.read_bytes()
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            os.truncate(program, len(whole) // 3)
            program.write_bytes(whole)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(3):
            for command in (("report", program), ("patch", program, "-o", tmp_path / "out", "--quiet", *FAST)):
                done = staticcall_process(*command)
                assert done.code in (0, 3), done
                assert done.err.count("\n") == (1 if done.code else 0), done
    finally:
        stop.set()
        thread.join()
    assert names_in(tmp_path) <= {"home", "out"}


# ---- two runs on one output ----


def test_two_runs_on_one_output_keep_output_and_edits_together(program: Path, tmp_path: Path) -> None:
    """All at once, some with one wish and some with another; what is there in the end belongs together."""
    out, edits = tmp_path / "out", tmp_path / "edits"
    wishes = (FAST, (*FAST, "--bind"))
    made = {digest(patch(program, tmp_path / f"good{n}", *wish).output) for n, wish in enumerate(wishes)}
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "staticcall",
        "patch",
        program,
        "-o",
        out,
        "--edits",
        edits,
        "--quiet",
    ]
    runs = [subprocess.Popen([*command, *wishes[n % 2]], stderr=subprocess.PIPE) for n in range(6)]
    said = [run.communicate(timeout=TIMEOUT_SECONDS)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 6, said
    assert digest(out) in made
    assert json.loads(edits.read_text())["patched_sha256"] == digest(out)
    succeed("revert", out, "--edits", edits, "-o", tmp_path / "back")
    assert digest(tmp_path / "back") == digest(program)
    assert not [name for name in names_in(tmp_path) if name.endswith(".staticcall")]


def test_of_two_runs_in_place_one_gives_way(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one has read a file that is no longer there: its edits must not replace those of the quicker one."""
    edits, before, real = program.with_name("edits"), digest(program), proof.prove

    def overtaken(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(proof, "prove", real)
        done = staticcall_process("patch", program, "--in-place", "--edits", edits, "--quiet", *FAST, "--bind")
        assert done.code == 0, done
        return real(*arguments, **options)

    monkeypatch.setattr(proof, "prove", overtaken)
    outcome = staticcall("patch", program, "--in-place", "--edits", edits, *FAST)
    assert (outcome.code, outcome.out) == (3, "")
    assert "changed while it was read" in outcome.err
    succeed("revert", program, "--edits", edits, "--in-place")
    assert digest(program) == before
    assert names_in(program.parent) == {"program", "edits"}


def test_a_run_waits_for_another_that_publishes(program: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        command: list[str | Path] = [sys.executable, "-m", "staticcall", "patch", program, "-o", out, "--quiet", *FAST]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as run:
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(2)
            assert not out.exists()
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            _, said = run.communicate(timeout=TIMEOUT_SECONDS)
        assert (run.returncode, said) == (0, b"")
    finally:
        os.close(descriptor)
    assert out.exists()


def test_edits_of_another_run_are_not_taken_back(program: Path, tmp_path: Path) -> None:
    """Even if both named the same undo file for different outputs: the hashes tell."""
    edits = tmp_path / "edits"
    for name, wish in (("one", FAST), ("two", (*FAST, "--bind"))):
        succeed("patch", program, "-o", tmp_path / name, "--edits", edits, *wish)
    outcome = staticcall("revert", tmp_path / "one", "--edits", edits, "-o", tmp_path / "back")
    assert (outcome.code, outcome.out) == (4, "")
    assert "[other-file]" in outcome.err


# ---- strangers and the dead among the temporary files ----


def _place(target: Path, number: int = 0) -> Path:
    return target.with_name(f".{target.name}.{number:x}.staticcall")


def test_what_a_killed_run_left_is_removed_and_nothing_else(plain: Path) -> None:
    folder, out = plain.parent, plain.with_name("out.o")
    other = _place(plain.with_name("other.o"))
    for path in (*(_place(out, number) for number in range(8)), other, folder / ".out.o.staticcall"):
        path.write_text("half")
    _place(out, 3).chmod(0)
    succeed("annotate", plain, "-o", out)
    left = names_in(folder) - {"plain.o", "out.o", other.name, ".out.o.staticcall"}
    assert left <= ({_place(out, 3).name} if os.geteuid() else set())


def test_what_a_living_run_has_stays(plain: Path) -> None:
    out = plain.with_name("out.o")
    living = _place(out)
    living.write_text("half")
    with living.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        succeed("annotate", plain, "-o", out)
        assert living.read_text() == "half"
    succeed("annotate", plain, "-o", out)
    assert names_in(plain.parent) == {"plain.o", "out.o"}


def test_with_all_places_taken_there_is_still_one(plain: Path) -> None:
    out = plain.with_name("out.o")
    streams = [_place(out, number).open("wb") for number in range(8)]
    try:
        for stream in streams:
            fcntl.flock(stream, fcntl.LOCK_EX)
        succeed("annotate", plain, "-o", out)
        assert len(names_in(plain.parent)) == 10
    finally:
        for stream in streams:
            stream.close()
    succeed("annotate", plain, "-o", out)
    assert names_in(plain.parent) == {"plain.o", "out.o"}


def test_strangers_of_a_temporary_name_are_left_alone(plain: Path, tmp_path: Path) -> None:
    """A link is not followed, a pipe is not waited for, a folder is not entered."""
    out, outside = plain.with_name("out.o"), tmp_path / "outside"
    outside.write_text("somebody else's")
    _place(out, 0).symlink_to(outside)
    os.mkfifo(_place(out, 1))
    _place(out, 2).mkdir()
    _place(out, 3).symlink_to(tmp_path / "missing")
    succeed("annotate", plain, "-o", out)
    assert outside.read_text() == "somebody else's"
    assert not (tmp_path / "missing").exists()
    assert names_in(plain.parent) == {"plain.o", "out.o", *(_place(out, number).name for number in range(4))}


def test_an_object_that_needs_nothing_is_swept_around_too(plain: Path) -> None:
    succeed("annotate", "--in-place", plain)
    _place(plain).write_text("half")
    assert "has its table already" in succeed("annotate", "--in-place", plain)
    assert names_in(plain.parent) == {"plain.o"}


# ---- out of the output's folder ----


def test_a_link_in_the_output_folder_is_replaced_and_not_followed(plain: Path, tmp_path: Path) -> None:
    folder, outside = tmp_path / "built", tmp_path / "outside"
    for target in (outside, tmp_path / "missing", Path("/dev/null"), tmp_path):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        outside.write_text("somebody else's")
        (folder / "plain.o").symlink_to(target)
        succeed("annotate", "--output-dir", folder, plain)
        assert not (folder / "plain.o").is_symlink()
        assert (folder / "plain.o").read_bytes() != plain.read_bytes()
        assert outside.read_text() == "somebody else's"
        assert names_in(tmp_path) == {"objects", "built", "outside"}
    (tmp_path / "link").symlink_to(folder)
    succeed("annotate", "--output-dir", tmp_path / "link", plain)
    assert (tmp_path / "link").is_symlink()
    assert names_in(folder) == {"plain.o"}


def test_an_input_is_no_output_of_another_under_any_name(plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "built"
    folder.mkdir()
    other = shutil.copy(plain, tmp_path / "other.o")
    (folder / "plain.o").symlink_to(other)
    outcome = staticcall("annotate", "--output-dir", folder, plain, folder / "plain.o")
    assert (outcome.code, outcome.out) == (2, "")
    assert (folder / "plain.o").is_symlink()


def test_names_in_files_never_become_paths(plain: Path, tmp_path: Path) -> None:
    """Members of an archive may be called anything; so may the input, whose line breaks stay out of what is said."""
    folder = tmp_path / "built"
    folder.mkdir()
    content = plain.read_bytes()
    names = (b"../../outside/", b"../", b"a\nb/", b"./")
    archive = plain.with_name("lib\nstaticcall: done.a")
    archive.write_bytes(packed(*((name, content) for name in names)))
    done = staticcall("annotate", "--output-dir", folder, archive, plain)
    assert (done.code, done.err) == (0, ""), done
    assert names_in(folder) == {archive.name, plain.name}
    assert names_in(tmp_path) == {"objects", "built"}
    assert not [line for line in done.out.splitlines() if line.startswith("staticcall: ")]
