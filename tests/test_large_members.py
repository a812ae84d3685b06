"""Large members and large files: unpacked once, in memory once, and only where there is something to unpack."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

import pytest

from staticcall.read.containers import members
from staticcall.read.containers.members import find_member
from staticcall.read.inputs import open_input
from tests.support.containers import package
from tests.support.tool import staticcall

pytestmark = pytest.mark.usefixtures("packers")

LARGE: Final = 24 << 20
TICK_NS: Final = 20_000_000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A package with a large member, in a file that was not changed within the last tick of the file system's clock."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "zeros").write_bytes(bytes(LARGE))
    path = package(folder, tmp_path / "large.deb", "gzip")
    while time.time_ns() - path.stat().st_ctime_ns < TICK_NS:
        pass
    return path


def test_a_large_member_is_in_memory_once(large: Path) -> None:
    with open_input(Path(f"{large}(zeros)")):
        pass  # what is imported late
    (large.parent / "large").joinpath("zeros").write_bytes(bytes([1]) * LARGE)
    other = package(large.parent / "large", large.with_name("other.deb"), "gzip")
    tracemalloc.start()
    try:
        with open_input(Path(f"{other}(zeros)")) as (source, _):
            peak = tracemalloc.get_traced_memory()[1]
            assert source.read(LARGE - 1, 1) == b"\1"
    finally:
        tracemalloc.stop()
    assert LARGE <= peak < 2 * LARGE


def test_a_member_is_unpacked_once_for_all_that_asks_for_it(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def find(*arguments: Any) -> Any:
        found.append(arguments)
        return find_member(*arguments)

    monkeypatch.setattr(members, "find_member", find)
    staticcall("report", "--hash", f"{large}(zeros)")

    assert len(found) == 1


def test_a_member_of_another_file_of_the_same_name_is_read_anew(large: Path, tmp_path: Path) -> None:
    with open_input(Path(f"{large}(zeros)")) as (source, _):
        assert source.read(0, 1) == b"\0"
    (tmp_path / "large" / "zeros").write_bytes(b"other")
    package(tmp_path / "large", large, "gzip")
    with open_input(Path(f"{large}(zeros)")) as (source, _):
        assert source.whole() == b"other"


def test_what_is_no_container_is_not_read_to_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(5 << 30)

    assert "is not an ELF file (offset 0x0)" in staticcall("patch", path, "--bind", "--dry-run").err
