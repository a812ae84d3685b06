"""Pinned sites: they stay where their key led, whoever leads the key elsewhere, and all the others follow."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import _unavailable
from tests.support import elf_object, toolchain
from tests.support.header import SITES, TARGETS, Maker, Recipe, prints
from tests.support.programs import Builder, Toolchain
from tests.support.tool import (
    POLICIES,
    Json,
    digest,
    patch,
    refused,
    report,
    report_document,
    staticcall,
    succeed,
    validate,
)
from tests.support.toolchain import TIMEOUT_SECONDS
from tests.support.user_objects import run_tool

PROTOCOLS = ("emulate", "torvalds", "lutomirski", "rel32", "block8", "out-of-line")
RECIPES = (
    (Recipe("gcc", "bfd", "pie", runtime=True), "lutomirski"),
    (Recipe("gcc", "bfd", "exec", "prefixed", runtime=True), "torvalds"),
    (Recipe("clang", "lld", "static-pie", runtime=True), "kernel"),
    (Recipe("gcc", "mold", "pie", language="c++", runtime=True), "rel32"),
    (Recipe("clang", "bfd", "shared", "aligned", runtime=True), "lutomirski"),
)
# What the program prints after each of its updates, as its source has them.
STEPS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"scale": "plus_two", "note": "note_twice", "zero": "plus_seven"},
    {},
    {"scale": "RET0"},
)
_FUNCTION = re.compile(r"^[0-9a-f]+ <(\w+)>:$")
_BRANCH = re.compile(r"\s(?:call|jmp|j[a-z]+) +[0-9a-f]+ <(\w+)(?:@\w+)?>$")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("pin"), _unavailable)


# ---- programs that update their keys ----


def _destinations(program: Path, function: str) -> list[str]:
    """Where the calls and jumps of a function lead, in their order, by objdump; jumps inside of it are left out."""
    found, inside = [], False
    for line in run_tool("objdump", "-dw", "--no-show-raw-insn", program).splitlines():
        start, branch = _FUNCTION.match(line), _BRANCH.search(line)
        inside = start[1] == function if start else inside
        if inside and branch and branch[1] != function:
            found.append(branch[1])
    return found


def _expected(program: Path, pinned: str) -> str:
    """All that the program prints, where the calls that its code has of `pinned` itself never go elsewhere."""
    call, tail = (_destinations(program, name)[0] for name in ("scale_call", "scale_tail"))
    many = _destinations(program, "scale_many")
    assert len(many) == SITES["scale"] - 2
    text = ""
    for step in STEPS:
        present = {"scale": "plus_one", **step}["scale"]

        def answer(destination: str, x: int, present: str = present) -> int:
            return TARGETS[pinned if destination == pinned else present](x)

        total = 7
        for destination in many:
            total = answer(destination, total) ^ 1
        rest = prints(**step).splitlines(keepends=True)[1:]
        text += f"scale {answer(call, 7) + 1000} {answer(tail, 7)} {total}\n{''.join(rest)}"
    return text


def _run(made: Maker, recipe: Recipe, program: Path, protocol: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What a program prints under a protocol, and how many sites the runtime counts."""
    monkeypatch.setenv("STATICCALL_PROTOCOL", protocol)
    text, _, last = made.start(recipe, program).rstrip("\n").rpartition("\n")
    return f"{text}\n", int(last.split()[0])


@pytest.mark.parametrize(("recipe", "policy"), RECIPES, ids=str)
def test_pinned_sites_stay_and_the_others_follow(
    recipe: Recipe, policy: str, made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = made.program(recipe)
    patched = patch(original, tmp_path / "pinned", "--pin", "scale", "--policy", policy)
    pinned = {edit["address"] for edit in patched.edits if edit["kind"] == "site"}
    expected, all_sites = _expected(patched.output, "plus_one"), sum(SITES.values())
    assert len(pinned) >= SITES["scale"] / 2
    assert f"scale: {len(pinned)} sites pinned to plus_one" in patched.out
    for protocol in PROTOCOLS:
        assert _run(made, recipe, patched.output, protocol, monkeypatch) == (expected, all_sites - len(pinned))
        # What is updated is all that the program does with the key, so this shows that the test can fail.
        assert _run(made, recipe, original, protocol, monkeypatch)[0] != expected
    succeed("verify", original, patched.output, "--deep")
    patched.revert()


def test_sites_may_be_pinned_to_a_new_target(made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[0][0]
    options = ("--set=scale=plus_seven", "--pin=scale", "--bind", "--policy=kernel")
    patched = patch(made.program(recipe), tmp_path / "pinned", *options)
    text, count = _run(made, recipe, patched.output, "emulate", monkeypatch)
    sevens = prints("plus_seven").splitlines()[0]
    assert [line for line in text.splitlines() if re.match(r"scale \d", line)] == [sevens] * len(STEPS)
    assert count == sum(SITES.values()) - SITES["scale"]
    patched.revert()


def test_several_keys_may_be_pinned(made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[0][0]
    pins = ("--pin=scale", "--pin=note", "--pin=__SCK__scale")
    patched = patch(made.program(recipe), tmp_path / "pinned", *pins, "--policy=kernel")
    text, count = _run(made, recipe, patched.output, "emulate", monkeypatch)
    assert count == SITES["zero"]
    assert {line for line in text.splitlines() if re.match(r"scale \d|note \d", line)} == set(prints().splitlines()[:2])
    assert text.count("zero 2014 14\n") == 1  # the other key is led elsewhere once
    patched.revert()


def test_what_was_bound_or_pinned_before_can_be_pinned(
    made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES[0][0]
    original = made.program(recipe)
    bound = patch(original, tmp_path / "bound", "--bind", "--policy=kernel")
    first = patch(bound.output, tmp_path / "first", "--pin=scale")
    # The donor of the first pin is a site of another key, which has lots of records by now.
    second = patch(first.output, tmp_path / "second", "--pin=note")
    assert {edit["kind"] for edit in (*first.edits, *second.edits)} == {"record"}
    text, count = _run(made, recipe, second.output, "emulate", monkeypatch)
    assert count == SITES["zero"]
    assert "zero 2014 14\n" in text
    assert "note 0 0\n" in text
    assert "note 20 2220\n" not in text
    second.revert()
    again = patch(first.output, tmp_path / "again", "--pin=scale")
    assert "scale: 0 sites pinned" in again.out
    assert again.edits == []


@pytest.mark.parametrize("policy", ["kernel", "lutomirski"])
def test_sites_may_be_pinned_before_the_program_is_linked(
    policy: str, made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe("gcc", "lld", "pie", "aligned", runtime=True)
    original, *others = made.objects(recipe)
    patched, edits = tmp_path / "calls.o", tmp_path / "edits.json"
    options = ("--pin=scale", "--policy", policy)
    succeed("patch", original, "-o", patched, "--edits", edits, *options)
    succeed("verify", original, patched)
    succeed("revert", patched, "--edits", edits, "-o", tmp_path / "back.o")
    assert digest(tmp_path / "back.o") == digest(original)
    program = made.link(recipe, [patched, *others], tmp_path / "program")
    text, count = _run(made, recipe, program, "emulate", monkeypatch)
    listed = report("--edits", edits, "--policy", policy, patched)
    pinned = [site for site in listed["sites"] if site.get("pinned")]
    assert text == _expected(program, "plus_one")
    assert len(pinned) == listed["summary"]["pinned"] == sum(SITES.values()) - count > 0
    assert len(listed["sites"]) == sum(SITES.values())
    assert {site["record"] for site in pinned} == {None}
    # The records of an object are relocations, and those of pinned sites are other records' in each of their halves.
    records = elf_object.records(elf_object.read(patched), "static_call_sites")
    assert len(records) == sum(SITES.values())
    assert len(set(records)) == len(records) - len(pinned)


# ---- reports ----


def _addresses(edits: Iterable[Json], kind: str) -> set[str]:
    return {edit["address"] for edit in edits if edit["kind"] == kind}


def test_a_report_tells_of_pinned_sites(made: Maker, tmp_path: Path) -> None:
    patched = patch(made.program(RECIPES[0][0]), tmp_path / "pinned", "--pin=scale", "--report", tmp_path / "report")
    count = len(_addresses(patched.edits, "record"))
    plain, known = report(patched.output), report("--edits", patched.edits_file, patched.output)
    (found,) = plain["findings"]
    assert (found["code"], found["severity"]) == ("duplicate-record", "note")
    assert re.match(rf"{count} records repeat record \d+ of key scale\b", found["message"])
    assert plain["summary"]["sites"] == len(plain["sites"]) == sum(SITES.values()) - count
    assert "pinned" not in plain["summary"]
    # With the undo file all are there.
    pinned = [site for site in known["sites"] if site.get("pinned")]
    assert {site["address"] for site in pinned} == _addresses(patched.edits, "site")
    assert {(site["record"], site["key"], site["reason"], site["destination"]) for site in pinned} == {
        (None, "scale", "pinned", "plus_one")
    }
    assert len(pinned) == known["summary"]["pinned"] == known["summary"]["reasons"]["pinned"] == count
    assert known["summary"]["sites"] == len(known["sites"]) == sum(SITES.values())
    assert [site for site in known["sites"] if not site.get("pinned")] == plain["sites"]
    assert (json.loads((tmp_path / "report").read_text())["images"]) == [known]
    validate(report_document("--edits", patched.edits_file, patched.output), "report")
    text = succeed("report", "--edits", patched.edits_file, patched.output)
    assert f"{count} sites pinned" in text
    assert re.search(rf"^ +pinned +{count} ", text, re.MULTILINE)
    chosen = report("--edits", patched.edits_file, "--key=note", patched.output)
    assert (chosen["summary"]["sites"], chosen["summary"]["pinned"]) == (SITES["note"], 0)


def test_an_undo_file_of_another_file_is_refused(made: Maker, tmp_path: Path) -> None:
    original = made.program(RECIPES[0][0])
    patched = patch(original, tmp_path / "pinned", "--pin=scale")
    message = refused("report", "--edits", patched.edits_file, original, code="other-file")
    assert str(original) in message
    assert str(patched.edits_file) in message
    both = staticcall("report", "--edits", patched.edits_file, patched.output, original)
    assert both.code == 2
    assert "--edits" in both.err


def _misfits(document: Json) -> Iterable[Json]:
    records = [edit for edit in document["edits"] if edit["kind"] == "record"]
    others = [edit for edit in document["edits"] if edit["kind"] != "record"]
    first = records[0]
    for change in (
        {"address": None},
        {"address": "0x0"},
        {"address": hex(int(first["address"], 16) + 4)},
        {"old": first["old"][:8], "new": first["new"][:8]},
        {"old": "ffffff7f" * 2},
        {"address": "0xffffffffffffffff"},
    ):
        yield {**document, "edits": [{**first, **change}, *records[1:], *others]}


def test_an_undo_file_that_does_not_fit_gives_one_line(made: Maker, tmp_path: Path) -> None:
    recipe = RECIPES[0][0]
    patched = patch(made.program(recipe), tmp_path / "pinned", "--pin=scale")
    pinned_object, edits = tmp_path / "calls.o", tmp_path / "calls.json"
    succeed("patch", made.objects(recipe)[0], "--pin=scale", "-o", pinned_object, "--edits", edits, "--policy=kernel")
    bad = tmp_path / "bad.json"
    for path, edits_file in ((patched.output, patched.edits_file), (pinned_object, edits)):
        document = json.loads(edits_file.read_text())
        for edit in document["edits"]:
            edit["address"] = edit["address"] or "0x10"
        for spoilt in _misfits(document):
            spoilt["edits"].sort(key=lambda edit: int(edit["file_offset"]))
            bad.write_text(json.dumps(spoilt))
            outcome = staticcall("report", "--edits", bad, path)
            assert outcome.code in (0, 1, 3), outcome
            assert outcome.err.count("\n") == (outcome.code == 3)


# ---- what is planned ----


def _plan(program: Path, *options: str) -> str:
    before = digest(program)
    out = succeed("patch", program, "--dry-run", *options)
    assert digest(program) == before
    return out


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_pins_the_sites_that_it_patches(policy: str, built: Builder, tmp_path: Path) -> None:
    program = built("calls", "pie")
    sites = [site for site in report("--policy", policy, program)["sites"] if site["key"] == "alpha"]
    direct = {site["address"] for site in sites if site["verdict"] == "direct"}
    out = _plan(program, "--pin=alpha", "--policy", policy)
    pinned = f"alpha: {len(direct)} site{'s' * (len(direct) != 1)} pinned to"
    assert pinned in out
    assert f"{len(sites) - len(direct)} left to follow the key" in out
    # The choice of keys is for --bind.
    patched = patch(program, tmp_path / "pinned", "--pin=alpha", "--bind", "--key=beta", "--policy", policy)
    assert _addresses((edit for edit in patched.edits if edit["key"] == "alpha"), "site") == direct
    assert len(_addresses(patched.edits, "record")) == len(direct)
    assert {edit["key"] for edit in patched.edits} <= {"alpha", "beta"}
    assert pinned in patched.out
    succeed("verify", program, patched.output)
    assert subprocess.run([patched.output], check=False, timeout=TIMEOUT_SECONDS).returncode == 0
    patched.revert()


@pytest.mark.parametrize("target", ["NULL", "RET0"])
def test_sites_may_be_pinned_to_nothing(target: str, built: Builder, tmp_path: Path) -> None:
    program = built("calls", "exec", Toolchain("gcc", "bfd"))
    key = {"NULL": "hook", "RET0": "zero"}[target]
    # The program has no type data, which would say that the key returns nothing.
    force = {"NULL": ["--force=null-returns-value"], "RET0": []}[target]
    patched = patch(program, tmp_path / "pinned", f"--pin={key}", "--policy=kernel", *force)
    sites = [site for site in report(program)["sites"] if site["key"] == key]
    assert _addresses(patched.edits, "site") == {site["address"] for site in sites}
    assert len(_addresses(patched.edits, "record")) == len(sites)
    patched.revert()


def test_a_name_that_is_no_key_is_refused_with_the_nearest(built: Builder, tmp_path: Path) -> None:
    program = built("calls", "pie")
    for pins in (["--pin=alpah"], ["--pin=alpha", "--pin=alpah"]):
        assert "did you mean alpha" in refused("patch", program, "--dry-run", *pins, code="unknown-key")
    configuration = tmp_path / "pins.toml"
    configuration.write_text('pin = ["alpah"]\n')
    refused("patch", program, "--dry-run", "--config", configuration, code="unknown-key")


def test_two_keys_of_one_name_are_told_apart(tmp_path: Path) -> None:
    if missing := toolchain.missing_tools("gcc", "bfd"):
        _unavailable(f"not installed: {', '.join(missing)}")
    program = toolchain.build("namesakes", tmp_path, kind="exec", extra=[str(toolchain.source("namesakes/other"))])
    keys = {key["address"]: key["name"] for key in report(program)["keys"]}
    twice = {address: name for address, name in keys.items() if list(keys.values()).count(name) > 1}
    assert len(twice) > 1
    for address, name in twice.items():
        refused("patch", program, "--dry-run", f"--pin={name}", code="ambiguous-key")
        assert f"{name}: " in _plan(program, f"--pin={address}")


def test_not_all_sites_of_a_table_can_be_pinned(made: Maker) -> None:
    program = made.program(RECIPES[0][0])
    pins = [f"--pin={key}" for key in SITES]
    refused("patch", program, "--dry-run", "--policy=kernel", *pins, code="no-donor")
    _plan(program, *pins)


def test_a_key_without_a_certain_target_is_refused(built: Builder) -> None:
    refused("patch", built("exported", "shared"), "--dry-run", "--pin=scale", code="slot-resolved-at-run-time")
    incoherent = built("broken/stale_trampoline", "exec")
    assert "--set other=" in refused("patch", incoherent, "--dry-run", "--pin=other", code="incoherent-key")
    refused("patch", built("broken/duplicate", "exec"), "--dry-run", "--pin=plain", code="damaged-site")


def test_records_that_overlap_are_not_pinned(built: Builder) -> None:
    program = built("broken/overlap", "exec")
    refused("patch", program, "--dry-run", "--pin=plain", "--policy=torvalds", code="overlapping-records")


def test_nothing_to_do_is_no_wish(built: Builder) -> None:
    outcome = staticcall("patch", built("calls", "pie"), "--dry-run")
    assert outcome.code == 2
    assert "--pin" in outcome.err
