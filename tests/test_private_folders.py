"""The folders below TMPDIR: for their owner alone, gone afterwards, and the next run removes what a killed one left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from staticcall.errors import OutputError
from staticcall.write.private import private_folder, put
from tests.support.objects import Objects
from tests.support.tool import names_in
from tests.support.toolchain import TIMEOUT_SECONDS

PLACES = 8


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    return room


def test_every_run_has_one_of_its_own(room: Path) -> None:
    with ExitStack() as stack:
        folders = [stack.enter_context(private_folder()) for _ in range(PLACES + 2)]
        for folder in folders:
            put(folder / "file", b"content")
        assert names_in(room) == {folder.name for folder in folders}
        assert len(set(folders)) == len(folders)
        assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    assert names_in(room) == set()


def test_what_a_killed_run_left_is_removed_by_the_next(made: Objects, room: Path) -> None:
    module = Path(shutil.copy(made("two_keys"), room.parent / "module.ko"))
    words = "sh -c 'kill -KILL $PPID'"
    run: list[str | Path] = [sys.executable, "-m", "staticcall", "patch", module, "--set", "one=target"]
    run += ["--sign-with", words, "-o", module.with_name("out")]
    killed = subprocess.run(run, env={**os.environ, "TMPDIR": str(room)}, check=False, timeout=TIMEOUT_SECONDS)
    assert killed.returncode == -signal.SIGKILL
    (left,) = names_in(room)
    assert names_in(room / left) == {"module.ko"}
    with private_folder() as folder:
        assert names_in(room) == {folder.name}
        assert names_in(folder) == set()
    assert names_in(room) == set()


@pytest.mark.parametrize("kind", ["file", "link", "folder of another name"])
def test_nothing_else_is_taken_for_one(kind: str, room: Path) -> None:
    with private_folder() as folder:
        name = folder
    elsewhere = room.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("kept")
    if kind == "file":
        name.write_text("kept")
    elif kind == "link":
        name.symlink_to(elsewhere)
    else:
        name = room / f"staticcall-{os.geteuid()}-bench"
        shutil.copytree(elsewhere, name)
    before = names_in(room)
    with private_folder() as folder:
        assert folder != name
    assert names_in(room) == before
    assert (elsewhere / "file").read_text() == "kept"
    assert (name if kind == "file" else name / "file").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(room: Path) -> None:
    room.rmdir()
    says = "no temporary folder can be made: No such file or directory, set TMPDIR"
    with pytest.raises(OutputError, match=says), private_folder():
        pytest.fail("there is no room for it")
