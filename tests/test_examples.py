"""The examples of the build systems: what they make is annotated, what is bound is direct, and rebuilds stay right.

The build tools are the machine's own; objdump, readelf and the programs themselves say what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.examples import SYSTEMS, Story, System, calls_of, destinations, need, prints, tell


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]


@pytest.fixture(scope="module")
def story(system: System, tmp_path_factory: pytest.TempPathFactory) -> Story:
    need(*system.needs)
    return tell(system, tmp_path_factory.mktemp(system.folder))


def test_every_call_is_recorded_and_goes_by_its_trampoline(story: Story) -> None:
    leads = story.first.leads("app")
    assert leads == ["__SCT__hash"] * calls_of(story.first.programs["app"], "__SCT__hash")
    assert len(leads) == 2
    assert story.first.prints["app"] == prints(3)


def test_a_bound_program_calls_its_target_directly(system: System, story: Story) -> None:
    bound = story.first.programs[system.bound]
    assert destinations(bound) == [system.bound_target] * 2
    assert calls_of(bound, "__SCT__hash") == 0


def test_a_bound_program_can_be_updated_still(system: System, story: Story) -> None:
    at_first, updated = prints(3).splitlines()
    if system.bound_target == "hash_turn":
        at_first = updated.replace("updated", "at first")
    assert story.first.prints[system.bound].splitlines() == [at_first, updated]


def test_a_build_of_what_is_built_does_nothing(story: Story) -> None:
    assert story.again.remade(story.first) == set()


def test_a_changed_source_is_annotated_again_and_nothing_else_is(system: System, story: Story) -> None:
    remade = story.edited.remade(story.again)
    assert {Path(name).name.partition(".")[0] for name in remade} == {"work", "app"}
    assert story.edited.leads("app") == ["__SCT__hash"] * 2
    assert story.edited.leads(system.bound) == [system.bound_target] * 2
    assert story.edited.prints["app"] == prints(5)


def test_a_changed_header_makes_all_that_include_it_anew(system: System, story: Story) -> None:
    remade = story.touched.remade(story.edited)
    compiled = {Path(name).name.partition(".")[0] for name in remade}
    # The annotated objects come out as they were, and there the link is spared.
    assert compiled == {"main", "work", "hash", *([] if system.folder == "ninja" else ["app"])}
    if system.folder == "ninja":
        assert {Path(name).parts[0] for name in remade} == {"raw"}
    assert story.touched.leads("app") == ["__SCT__hash"] * 2
    assert story.touched.prints == story.edited.prints


def test_the_gate_lets_an_annotated_build_through(story: Story) -> None:
    assert story.gate.code == 0, story.gate


def test_the_gate_stops_a_build_that_nobody_annotated(story: Story) -> None:
    assert story.idle_gate.code != 0
    assert "no table of sites" in story.idle_gate.out + story.idle_gate.err


def test_the_cost_is_recorded(system: System, story: Story, record_property: Callable[[str, object], None]) -> None:
    record_property(f"{system.folder}_seconds", round(story.seconds, 3))
    record_property(f"{system.folder}_seconds_without", round(story.idle_seconds, 3))
    # The tool runs a handful of times: a build that takes a minute longer waits for something.
    assert story.seconds < story.idle_seconds + 60
