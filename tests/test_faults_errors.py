"""Calls of the write path that fail: one line, exit code 3, nothing published; or all goes well all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.write_faults import Calls, Kind
from tests.support.write_scenes import SCENES, Stage, sweep, theatre

Stages = Callable[[str], Stage]
# One of each way to write: a copy with an undo file, a whole file from memory, a text.
FEW = ("patch-in-place", "annotate-in-place", "report")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, built: Builder, made: Objects) -> Iterator[Stages]:
    with theatre(tmp_path_factory.mktemp("faults"), built, made) as stages:
        yield stages


@pytest.mark.parametrize("scene", ("patch", *FEW))
def test_on_a_disk_that_gets_full_the_old_file_stays(scene: str, stages: Stages) -> None:
    """Where not even a rename finds room, an undo file may be the new one already; that is said."""
    outcomes = sweep(stages(scene), Kind.ERROR_FROM_HERE, "ENOSPC")
    assert outcomes["refused"] >= 3
    assert outcomes.keys() <= {"refused", "done", "half done"}
    assert outcomes["half done"] <= 3


@pytest.mark.parametrize("scene", ("patch", "patch-object-in-place", "annotate-archive", "revert", *FEW[1:]))
def test_an_error_of_the_disk_at_any_call_is_told(scene: str, stages: Stages) -> None:
    outcomes = sweep(stages(scene), Kind.ERROR, "EIO")
    assert outcomes["refused"] >= 3
    assert outcomes.keys() <= {"refused", "done", "refused (stray)", "done (stray)"}


@pytest.mark.parametrize("error", ["EROFS", "EINTR", "EDQUOT"])
@pytest.mark.parametrize("scene", FEW)
def test_no_error_of_the_system_tears_a_file(scene: str, error: str, stages: Stages) -> None:
    outcomes = sweep(stages(scene), Kind.ERROR, error)
    assert outcomes["refused"] >= 2
    assert outcomes.keys() <= {"refused", "done", "refused (stray)", "done (stray)"}


@pytest.mark.parametrize("scene", FEW)
def test_an_error_while_reading_is_told(scene: str, stages: Stages) -> None:
    outcomes = sweep(stages(scene), Kind.ERROR, "EIO", Calls.READING)
    assert outcomes["refused"]
    assert outcomes.keys() <= {"refused", "done"}


@pytest.mark.parametrize("scene", SCENES)
def test_calls_that_do_less_than_asked_are_made_again(scene: str, stages: Stages) -> None:
    assert sweep(stages(scene), Kind.SHORT).keys() == {"done"}
