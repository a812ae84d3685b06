"""A patched program is a program: it can be patched again, and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import calls_model, toolchain
from tests.support.calls_model import COUNT, KEYS, TARGETS
from tests.support.programs import Builder, Toolchain
from tests.support.tool import POLICIES, digest, patch, refused, report, staticcall, succeed
from tests.support.toolchain import Kind

BACK = ("--set", "alpha=alpha_plain", "--set", "beta=beta_plain", "--set", "zero=RET0")


def _homes_and_slots(program: Path) -> list[object]:
    """The trampolines' bytes, and what the keys hold by their relocation or their own bytes."""
    names, addends = toolchain.symbols(program), toolchain.relative_addends(program)
    return [
        *(toolchain.bytes_at(program, names[f"__SCT__{key}"], 8) for key in KEYS),
        *(toolchain.bytes_at(program, names[f"__SCK__{key}"], 16) for key in KEYS),
        *(addends.get(names[f"__SCK__{key}"]) for key in KEYS),
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_patch_again_changes_nothing(policy: str, built: Builder, tmp_path: Path) -> None:
    for options in (["--bind"], ["--set", "alpha=alpha_fast", "--set", "zero=zero_plus"]):
        once = patch(built("calls", "pie"), tmp_path / "once", *options, "--policy", policy)
        twice = patch(once.output, tmp_path / "twice", *options, "--policy", policy)
        assert twice.edits == []
        assert once.output.read_bytes() == twice.output.read_bytes()


@pytest.mark.parametrize(("kind", "relr"), [("exec", False), ("pie", False), ("pie", True)])
@pytest.mark.parametrize("first", POLICIES)
@pytest.mark.parametrize("second", ["lutomirski", "kernel"])
def test_bound_sites_follow_when_their_key_is_set(
    first: str, second: str, kind: Kind, relr: bool, built: Builder, tmp_path: Path
) -> None:
    original = built("calls", kind, relr=relr)
    bound = patch(original, tmp_path / "bound", "--bind", "--policy", first)
    fast = patch(
        bound.output, tmp_path / "fast", "--set", "alpha=alpha_fast", "--set", "beta=beta_fast", "--policy", second
    )
    assert toolchain.run(fast.output) == calls_model.prints(alpha="alpha_fast", beta="beta_fast")
    back = patch(fast.output, tmp_path / "back", *BACK, "--policy", second)
    assert toolchain.run(back.output) == calls_model.prints()
    assert _homes_and_slots(back.output) == _homes_and_slots(original)
    assert back.revert().read_bytes() == fast.output.read_bytes()
    assert fast.revert().read_bytes() == bound.output.read_bytes()
    assert digest(bound.revert()) == digest(original)
    assert staticcall("verify", original, back.output).code == 0


def test_a_patched_site_stays_patched_under_a_stricter_policy(built: Builder, tmp_path: Path) -> None:
    """It no longer goes by its trampoline, so leaving it alone would leave it behind."""
    loose = patch(built("calls", "pie"), tmp_path / "loose", "--bind", "--policy", "kernel")
    before = {site["address"]: site for site in report("--policy", "kernel", loose.original)["sites"]}
    for site in report("--policy", "lutomirski", loose.output)["sites"]:
        if before[site["address"]]["verdict"] == "direct":
            assert (site["verdict"], site["reason"]) == ("direct", "already-direct")
    strict = patch(loose.output, tmp_path / "strict", "--set", "beta=beta_fast", "--policy", "lutomirski")
    assert toolchain.run(strict.output) == calls_model.prints(beta="beta_fast")
    assert {edit["address"] for edit in strict.edits if edit["kind"] == "site"} >= {
        address for address, site in before.items() if site["key"] == "beta" and site["verdict"] == "direct"
    }


def test_a_report_tells_of_a_patch(built: Builder, tmp_path: Path) -> None:
    bound = patch(built("calls", "exec"), tmp_path / "bound", "--bind").output
    image = report(bound)
    assert image["summary"]["reasons"]["already-direct"] == 9
    assert "fits-line" not in image["summary"]["reasons"]
    assert not [one for one in image["findings"] if one["severity"] != "note"]


def test_the_way_back_is_for_one_file_only(built: Builder, tmp_path: Path) -> None:
    one = patch(built("calls", "exec"), tmp_path / "one", "--bind")
    other = patch(built("calls", "exec"), tmp_path / "other", "--set", "alpha=alpha_fast")
    for wrong in (other.output, one.original):
        refused("revert", wrong, "--edits", one.edits_file, "-o", tmp_path / "back", code="other-file")
    assert not (tmp_path / "back").exists()
    succeed("revert", one.output, "--edits", one.edits_file, "--in-place")
    assert digest(one.output) == digest(one.original)


class Step(NamedTuple):
    """One patch: some keys set, the rest bound or not, by a policy."""

    policy: str
    sets: dict[str, str]
    bind: bool


def _steps(null: bool) -> st.SearchStrategy[list[Step]]:
    targets = st.sampled_from(sorted(TARGETS))
    hooks = st.sampled_from([*sorted(TARGETS), COUNT, "NULL"]) if null else st.just("NULL")
    keys = st.fixed_dictionaries({}, optional={**dict.fromkeys(("alpha", "beta", "zero"), targets), "hook": hooks})
    step = st.builds(Step, st.sampled_from(POLICIES), keys, st.booleans()).filter(lambda one: one.bind or one.sets)
    return st.lists(step, min_size=1, max_size=4)


def _walk(program: Path, steps: list[Step], folder: Path) -> None:
    """Patch step by step; after each the program does what the model says, and at the end there is a way back."""
    targets, current, made = dict(KEYS), program, []
    for number, step in enumerate(steps):
        sets = [option for key, target in step.sets.items() for option in ("--set", f"{key}={target}")]
        options = [*sets, *(["--bind"] if step.bind else []), "--policy", step.policy]
        made.append(patch(current, folder / str(number), *options, "--force", "null-returns-value"))
        current = made[-1].output
        targets |= step.sets
        assert toolchain.run(current) == calls_model.prints(**targets)
        image = report("--policy", step.policy, current)
        assert not [one for one in image["findings"] if one["severity"] != "note"]
        names = {"NULL": None, "RET0": "__static_call_return0"}
        assert {key["name"]: key["func"] for key in image["keys"]} == {
            key: names.get(target, target) for key, target in targets.items()
        }
    assert staticcall("verify", program, current).code == 0
    for one in reversed(made):
        one.revert()


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(steps=_steps(null=True))
def test_any_sequence_of_patches_does_what_was_asked_for(steps: list[Step], built: Builder) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _walk(built("calls", "exec"), steps, Path(folder))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(steps=_steps(null=False))
def test_any_sequence_of_patches_works_where_a_loader_relocates(steps: list[Step], built: Builder) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _walk(built("calls", "pie", Toolchain("clang", "bfd"), relr=len(steps) % 2 == 0), steps, Path(folder))
