"""Two kernels, or two of whatever has static calls, held against each other by names."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import Json, patch, report, staticcall, succeed, validate


def differences(*arguments: str | Path) -> Json:
    document = json.loads(succeed("diff", "--format", "json", *arguments))
    validate(document, "diff")
    assert isinstance(document, dict)
    return document


def report_of(path: Path, to: Path, form: str = "json", *options: str) -> Path:
    assert staticcall("report", "--format", form, "--fail-on", "never", "--output", to, *options, path).code == 0
    return to


# ---- one image ----


def test_a_file_does_not_differ_from_itself(program: Path) -> None:
    assert succeed("diff", program, program).startswith("no difference: 1 image, ")
    found = differences(program, program)
    assert found["equal"] is True
    assert found["images"] == found["added"] == found["lost"] == []
    assert staticcall("diff", "--fail-on-change", program, program).code == 0


def test_a_patched_program_has_another_default_and_other_forms(built: Builder, tmp_path: Path) -> None:
    program = Path(shutil.copy(built("calls", "exec"), tmp_path / "program"))
    before = report(program)
    key = next(key["name"] for key in before["keys"] if key["sites"] and key["func"] is not None)
    changed = patch(
        program,
        program.with_name("changed"),
        "--policy",
        "kernel",
        "--set",
        f"{key}=NULL",
        "--force",
        "null-returns-value",
    ).output
    after = report(changed)

    (image,) = differences(program, changed)["images"]
    (target,) = (one["func"] for one in before["keys"] if one["name"] == key)
    assert image["keys"] == {"added": [], "lost": [], "defaults": [{"key": key, "old": target, "new": "NULL"}]}
    forms = [[site["form"] for site in side["sites"]] for side in (before, after)]
    assert [(site["old"]["form"], site["new"]["form"]) for site in image["sites"]["forms"]]
    assert len(image["sites"]["forms"]) == sum(old != new for old, new in zip(*forms, strict=True))
    assert {site["key"] for site in image["sites"]["forms"]} == {key}
    assert staticcall("diff", "--fail-on-change", program, changed).code == 1
    assert f"  {key}: {target} -> NULL\n" in succeed("diff", program, changed)


def test_reports_and_images_give_the_same_difference(program: Path, tmp_path: Path) -> None:
    bound = patch(program, program.with_name("bound"), "--bind").output
    expected = differences(program, bound)
    assert expected["images"], "binding changes verdicts"
    sides = [
        (report_of(program, tmp_path / "a.json"), bound),
        (program, report_of(bound, tmp_path / "b.json")),
        (tmp_path / "a.json", report_of(bound, tmp_path / "b.jsonl", "jsonl")),
    ]

    for old, new in sides:
        found = differences(old, new)
        assert found["images"] == expected["images"]
        assert [found[side] | {"path": ""} for side in ("old", "new")] == [
            expected[side] | {"path": ""} for side in ("old", "new")
        ]


def test_a_report_brings_its_policy_along(program: Path, tmp_path: Path) -> None:
    kernel = report_of(program, tmp_path / "kernel.json", "json", "--policy", "kernel")

    assert differences(kernel, program) | {"old": 0, "new": 0} == differences(
        "--policy", "kernel", program, program
    ) | {"old": 0, "new": 0}
    outcome = staticcall("diff", kernel, report_of(program, tmp_path / "default.json"))
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"images": 3}', '{"path": "a", "sites": [1], "keys": []}', '{"a": NaN}\n{']
)
def test_what_is_no_report_is_said_in_one_line(program: Path, tmp_path: Path, text: str) -> None:
    (other := tmp_path / "other.json").write_text(text)
    outcome = staticcall("diff", other, program)

    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1)
    assert str(other) in outcome.err


def test_a_missing_file_is_said_in_one_line(program: Path) -> None:
    outcome = staticcall("diff", program, program.with_name("nothing"))
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1)


# ---- trees ----


def test_modules_are_known_whatever_their_release_folder_and_compression(made: Objects, tmp_path: Path) -> None:
    calls, tail = made("calls", "gcc").read_bytes(), made("tail_calls", "gcc").read_bytes()
    files = {
        "old/lib/modules/6.1.0-1/kernel/fs/first.ko": calls,
        "old/lib/modules/6.1.0-1/kernel/net/moved.ko": tail,
        "old/lib/modules/6.1.0-1/kernel/net/gone.ko": calls,
        "new/lib/modules/6.12.1+deb12/kernel/fs/first.ko.xz": lzma.compress(calls),
        "new/lib/modules/6.12.1+deb12/kernel/drivers/moved.ko.xz": lzma.compress(tail),
        "new/lib/modules/6.12.1+deb12/updates/come.ko": tail,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    found = differences(tmp_path / "old", tmp_path / "new")
    assert found["images"] == []
    assert [image["path"] for image in found["lost"]] == [str(tmp_path / list(files)[2])]
    assert [image["path"] for image in found["added"]] == [str(tmp_path / list(files)[5])]
    text = succeed("diff", "-j", "2", tmp_path / "old", tmp_path / "new")
    assert "images added (1)" in text
    assert "images lost (1)" in text
    lines = [report_of(tmp_path / side, tmp_path / f"{side}.jsonl", "jsonl") for side in ("old", "new")]
    assert differences(*lines)["images"] == []
    assert differences(lines[0], tmp_path / "old")["equal"]


def test_sites_that_come_and_go_are_told_by_function_and_key(made: Objects, tmp_path: Path) -> None:
    for side, name in (("old", "calls"), ("new", "tail_calls")):
        (tmp_path / side).mkdir()
        shutil.copy(made(name, "gcc"), tmp_path / side / "one.ko")
    old, new = (report(tmp_path / side / "one.ko") for side in ("old", "new"))

    (image,) = differences(tmp_path / "old", tmp_path / "new")["images"]
    names = [{key["name"] for key in side["keys"]} for side in (old, new)]
    assert image["keys"]["added"] == sorted(names[1] - names[0])
    assert image["keys"]["lost"] == sorted(names[0] - names[1])
    gained = len(image["sites"]["added"]) - len(image["sites"]["lost"])
    assert gained == len(new["sites"]) - len(old["sites"])


# ---- kernels ----


def _keys_by_nm(vmlinux: Path) -> set[str]:
    listing = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True).stdout
    return {line.rpartition("__SCK__")[2] for line in listing.splitlines() if " __SCK__" in line}


@pytest.mark.kernel
def test_keys_that_came_and_went_between_kernels_are_those_that_nm_lists(vmlinux_61: Path, vmlinux_612: Path) -> None:
    before, after = _keys_by_nm(vmlinux_61), _keys_by_nm(vmlinux_612)

    (image,) = differences(vmlinux_61, vmlinux_612)["images"]
    assert set(image["keys"]["added"]) == after - before
    assert set(image["keys"]["lost"]) == before - after
    assert image["sites"]["added"]
    assert image["sites"]["lost"]
    assert succeed("diff", vmlinux_61, vmlinux_612).startswith(f"old  {vmlinux_61}: 1 image, {len(before):,} keys, ")
