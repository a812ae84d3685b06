"""Runs that are ended at any system call of the write path: the old file or the new one, and nothing that stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.write_faults import Kind
from tests.support.write_scenes import SCENES, Stage, sweep, theatre

Stages = Callable[[str], Stage]
# One of each way to write.
FEW = ("patch", "patch-object-in-place", "annotate-in-place", "revert", "report")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, built: Builder, made: Objects) -> Iterator[Stages]:
    with theatre(tmp_path_factory.mktemp("faults"), built, made) as stages:
        yield stages


@pytest.mark.parametrize("scene", SCENES)
def test_a_run_killed_at_any_call_leaves_the_old_file_or_the_new_one(scene: str, stages: Stages) -> None:
    outcomes = sweep(stages(scene), Kind.SIGNAL, "SIGKILL")
    assert outcomes.keys() <= {"old", "old (stray)", "new", "new (stray)"}
    assert outcomes["old (stray)"]
    assert outcomes["new"]


@pytest.mark.parametrize("scene", FEW)
def test_a_run_asked_to_end_at_any_call_removes_what_it_began(scene: str, stages: Stages) -> None:
    outcomes = sweep(stages(scene), Kind.SIGNAL, "SIGTERM")
    assert outcomes.keys() == {"old", "new"}
