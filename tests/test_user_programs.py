"""The tool on programs made with staticcall.h: reported, bound, set, proved and reverted, before and after linking."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import _unavailable
from tests.support.header import (
    MAKES,
    SITES,
    Flags,
    Language,
    Make,
    Maker,
    Recipe,
    branches,
    prints,
    run_program,
    sites_of,
)
from tests.support.programs import COMPILERS, LINKERS
from tests.support.tool import patch, refused, report, staticcall, succeed
from tests.support.toolchain import Compiler, Linker, bytes_at, disassemble, records
from tests.support.toolchain import sections as object_sections
from tests.support.user_objects import run_tool

FORCE = ("--force", "null-returns-value")
ALL = sum(SITES.values())
POLICIES = {"plain": "kernel", "aligned": "lutomirski", "prefixed": "torvalds"}
# GNU ld and lld leave a prefix where they relax a call through the GOT, mold a nop in front of the call.
LINKED = [
    Recipe(cc, linker, make, flags)
    for cc, linker, make in product(COMPILERS, LINKERS, MAKES)
    for flags in ("plain", "aligned", "prefixed")
    if flags == "plain" or (make in ("pie", "shared") and (flags, linker) != ("prefixed", "mold"))
]
CXX = [Recipe(cc, "lld", "pie", flags, "c++") for cc in COMPILERS for flags in ("plain", "aligned", "prefixed")]
SOME = [Recipe("gcc", "bfd", "pie"), Recipe("clang", "lld", "static"), Recipe("gcc", "mold", "shared")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("header"), _unavailable)


def straight(
    scale: str = "plus_one",
    note: str = "__static_call_nop",
    zero: str = "__static_call_return0",
    sites: Mapping[str, int] = SITES,
) -> Counter[str]:
    """Where the sites lead, given where those of each key do."""
    return Counter({scale: sites["scale"]}) + Counter({note: sites["note"]}) + Counter({zero: sites["zero"]})


def options_of(sets: Sequence[str]) -> list[str]:
    return [part for one in sets for part in ("--set", one)]


TRAMPOLINES = ("__SCT__scale", "__SCT__note", "__SCT__zero")


# ---- after linking ----


@pytest.mark.parametrize("recipe", [*LINKED, *CXX], ids=str)
def test_a_linked_program_is_reported_bound_and_reverted(made: Maker, tmp_path: Path, recipe: Recipe) -> None:
    program, policy, sites = made.program(recipe), POLICIES[recipe.flags], sites_of(recipe)
    assert branches(program) == straight(*TRAMPOLINES, sites)

    found = report(program, "--policy", policy)
    done = patch(program, tmp_path / "bound", "--bind", "--policy", policy)

    leads = branches(done.output)
    left = sum(leads[trampoline] for trampoline in TRAMPOLINES)
    summary, count = found["summary"], sum(sites.values())
    assert found["findings"] == []
    assert (summary["sites"], summary["direct"]) == (count, count - left)
    if recipe.flags == "prefixed":
        assert summary["forms"] == {"prefixed_call": count - left, "tail_jmp": left}
        assert left == 4
    else:
        assert leads == straight(sites=sites)
    assert made.start(recipe, done.output) == made.start(recipe, program) == prints()
    succeed("verify", program, done.output)
    assert report(done.output)["findings"] == []
    done.revert()


@pytest.mark.parametrize("recipe", [r for r in LINKED if r.flags == "prefixed" and r.linker == "bfd"], ids=str)
def test_ld_gives_every_call_the_prefix_of_the_thread(made: Maker, recipe: Recipe) -> None:
    program = made.program(recipe)

    firsts = Counter(bytes_at(program, record.site, 2).hex() for record in records(program) if not record.flags)

    assert set(firsts) == {"2ee8"}


@pytest.mark.parametrize("recipe", SOME, ids=str)
def test_a_key_is_led_to_any_function_to_nothing_and_to_zero(made: Maker, tmp_path: Path, recipe: Recipe) -> None:
    program = made.program(recipe)
    set_all = ("scale=plus_two", "note=note_twice", "zero=plus_seven")

    other = patch(program, tmp_path / "other", *options_of(set_all), "--policy", "kernel")
    back = patch(
        other.output, tmp_path / "back", *options_of(("scale=RET0", "note=NULL")), *FORCE, "--policy", "kernel"
    )

    assert branches(other.output) == straight("plus_two", "note_twice", "plus_seven")
    assert made.start(recipe, other.output) == prints("plus_two", "note_twice", "plus_seven")
    assert branches(back.output) == straight("__static_call_return0", "__static_call_nop", "plus_seven")
    assert made.start(recipe, back.output) == prints("RET0", "NULL", "plus_seven")
    assert {key["name"]: key["func"] for key in report(back.output)["keys"]} == {
        "scale": "__static_call_return0",
        "note": None,
        "zero": "plus_seven",
    }
    succeed("verify", program, back.output)
    other.revert()
    back.revert()


@pytest.mark.parametrize("recipe", SOME, ids=str)
def test_sites_that_the_policy_leaves_follow_the_key(made: Maker, tmp_path: Path, recipe: Recipe) -> None:
    program = made.program(recipe)

    done = patch(program, tmp_path / "set", *options_of(("scale=plus_two", "zero=plus_seven")))

    assert 0 < branches(done.output)["__SCT__scale"] < SITES["scale"]
    assert made.start(recipe, done.output) == prints("plus_two", zero="plus_seven")


def test_no_site_and_no_trampoline_changes_its_form(made: Maker, tmp_path: Path) -> None:
    program = made.program(SOME[0])
    done = patch(program, tmp_path / "set", "--bind", *options_of(("scale=NULL",)), *FORCE, "--policy", "kernel")

    def forms(file: Path) -> list[str]:
        return [disassemble(file, record.site).split()[0] for record in records(file)]

    assert forms(done.output) == forms(program)
    assert {edit["kind"] for edit in done.edits} == {"site", "relocation"}


@pytest.mark.parametrize("recipe", SOME, ids=str)
def test_null_asks_for_somebody_who_knows_that_no_value_is_missed(made: Maker, recipe: Recipe) -> None:
    for name in ("NULL", "__static_call_nop"):
        refused("patch", made.program(recipe), "--dry-run", "--set", f"scale={name}", code="null-returns-value")


def test_a_program_that_lost_its_names_is_bound_all_the_same(made: Maker, tmp_path: Path) -> None:
    recipe = Recipe("gcc", "bfd", "exec")
    stripped = tmp_path / "stripped"
    run_tool("strip", "-o", stripped, made.program(recipe))

    done = patch(stripped, tmp_path / "bound", "--bind", "--policy", "kernel")

    assert report(stripped)["findings"] == []
    assert len(done.edits) == ALL
    assert run_program(done.output) == prints()
    succeed("verify", stripped, done.output)


def test_without_its_nop_function_an_image_has_no_null(made: Maker, tmp_path: Path) -> None:
    nameless = tmp_path / "nameless"
    run_tool("objcopy", "--strip-symbol=__static_call_nop", made.program(Recipe("gcc", "bfd", "exec")), nameless)

    refused("patch", nameless, "--dry-run", "--set", "scale=NULL", *FORCE, code="null-is-called")


def test_sites_that_no_update_can_reach_are_noted(made: Maker, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(made.program(SOME[0]), program)
    first = min(record.site for record in records(program) if not record.flags)
    overwrite(program, first, bytes.fromhex("0f1f440000"))

    assert [(found["code"], found["severity"]) for found in report(program)["findings"]] == [("not-live", "note")]


# ---- run-time updates of what was bound ----


@pytest.mark.parametrize(
    ("recipe", "sets", "first"),
    [
        (Recipe("gcc", "bfd", "pie", runtime=True), (), prints()),
        (Recipe("clang", "lld", "exec", "prefixed", runtime=True), (), prints()),
        (Recipe("clang", "mold", "static-pie", "aligned", runtime=True), (), prints()),
        (
            Recipe("gcc", "bfd", "pie", "prefixed", runtime=True),
            ("scale=RET0", "note=note_twice", "zero=plus_two"),
            prints("RET0", "note_twice", "plus_two"),
        ),
        (
            Recipe("gcc", "lld", "shared", runtime=True),
            ("scale=plus_two", "note=note_once"),
            prints("plus_two", "note_once"),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Recipe) else "",
)
def test_what_was_bound_is_updated_at_run_time(
    made: Maker, tmp_path: Path, recipe: Recipe, sets: tuple[str, ...], first: str
) -> None:
    done = patch(made.program(recipe), tmp_path / "bound", "--bind", *options_of(sets), "--policy", "kernel")

    shown = made.start(recipe, done.output)

    updates = [prints("plus_two", "note_twice", "plus_seven"), prints(), prints("RET0")]
    count = sum(sites_of(recipe).values())
    assert shown == "".join([first, first, *updates, f"{count} sites, {count} direct, 0 foreign\n"])


# ---- before linking ----


@pytest.mark.parametrize("cc", COMPILERS)
@pytest.mark.parametrize("flags", POLICIES)
@pytest.mark.parametrize("language", ["c", "c++"])
def test_an_annotated_object_has_nothing_odd(made: Maker, cc: Compiler, flags: Flags, language: Language) -> None:
    recipe = Recipe(cc, flags=flags, language=language)
    found = report(made.object("calls.c", recipe), "--policy", "kernel")

    assert found["findings"] == []
    assert found["summary"]["sites"] == sum(sites_of(recipe).values())
    assert [(key["name"], key["func"], key["sites"]) for key in sorted(found["keys"], key=lambda key: key["name"])] == [
        ("note", None, 3),
        ("scale", "plus_one", sites_of(recipe)["scale"]),
        ("zero", "__static_call_return0", 2),
    ]


@pytest.mark.parametrize("cc", COMPILERS)
def test_aligned_objects_are_direct_wherever_they_are_placed(made: Maker, cc: Compiler) -> None:
    calls = made.object("calls.c", Recipe(cc, flags="aligned"))

    assert report(calls)["summary"]["direct"] == ALL


OBJECT_MAKES: tuple[Make, ...] = ("exec", "pie", "shared")
LANGUAGES: tuple[Language, ...] = ("c", "c++")
OBJECTS = [
    Recipe(cc, "bfd", make, "plain", language) for cc, make, language in product(COMPILERS, OBJECT_MAKES, LANGUAGES)
]


@pytest.mark.parametrize("recipe", OBJECTS, ids=str)
def test_a_bound_object_is_straight_once_linked(made: Maker, tmp_path: Path, recipe: Recipe) -> None:
    calls, *others = made.objects(recipe)
    bound = tmp_path / "calls.o"
    succeed("patch", calls, "--bind", "--policy", "kernel", "-o", bound, "--edits", tmp_path / "edits.json")
    succeed("verify", calls, bound)
    succeed("revert", bound, "--edits", tmp_path / "edits.json", "-o", tmp_path / "back.o")
    assert (tmp_path / "back.o").read_bytes() == calls.read_bytes()

    for linker in LINKERS:
        linked = recipe._replace(linker=linker)
        program = made.link(linked, [bound, *others], tmp_path / linker)

        assert branches(program) == straight()
        assert report(program)["findings"] == []
        assert made.start(linked, program) == prints()


@pytest.mark.parametrize("recipe", [r for r in OBJECTS if r.language == "c"], ids=str)
def test_an_object_is_led_elsewhere_to_nothing_and_to_zero(made: Maker, tmp_path: Path, recipe: Recipe) -> None:
    calls, *others = made.objects(recipe)
    first, second = tmp_path / "first.o", tmp_path / "second.o"
    set_all = ("scale=plus_two", "note=note_twice", "zero=plus_seven")

    succeed("patch", calls, *options_of(set_all), "--policy", "kernel", "-o", first)
    succeed("patch", first, *options_of(("scale=RET0", "note=NULL")), *FORCE, "--policy", "kernel", "-o", second)
    succeed("verify", calls, first)
    succeed("verify", first, second)

    program = made.link(recipe, [first, *others], tmp_path / "first")
    assert branches(program) == straight("plus_two", "note_twice", "plus_seven")
    assert made.start(recipe, program) == prints("plus_two", "note_twice", "plus_seven")
    program = made.link(recipe, [second, *others], tmp_path / "second")
    assert branches(program) == straight("__static_call_return0", "__static_call_nop", "plus_seven")
    assert made.start(recipe, program) == prints("RET0", "NULL", "plus_seven")
    assert {key["name"]: key["func"] for key in report(second)["keys"]}["note"] is None


@pytest.mark.parametrize("linker", ["bfd", "lld"])
def test_calls_through_the_got_stay_for_the_linker_to_relax(made: Maker, tmp_path: Path, linker: Linker) -> None:
    recipe = Recipe("gcc", linker, "pie", "prefixed")
    calls, *others = made.objects(recipe)
    succeed("patch", calls, "--set", "scale=plus_two", "-o", tmp_path / "calls.o")

    program = made.link(recipe, [tmp_path / "calls.o", *others], tmp_path / "program")
    done = patch(program, tmp_path / "bound", "--bind", "--policy", "torvalds")

    assert run_program(program) == run_program(done.output) == prints("plus_two")
    assert branches(done.output)["plus_two"] > 60


# ---- what the proof does not let pass ----


def overwrite(file: Path, address: int, code: bytes) -> None:
    """Change bytes where a linked image loads them."""
    content = file.read_bytes()
    old = bytes_at(file, address - 8, 8 + len(code))
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, old[:8] + code))


def symbol(program: Path, name: str) -> int:
    listing = run_tool("nm", program)
    (address,) = (int(line.split()[0], 16) for line in listing.splitlines() if line.endswith(f" {name}"))
    return address


@pytest.mark.parametrize(
    ("function", "tail", "code"),
    [
        ("note_call", False, "0f1f440000"),
        ("zero_call", False, "2e2e2e31c0"),
        ("zero_call", False, "66664831c0"),
        ("note_tail", True, "c3cccccccc"),
    ],
)
def test_a_site_that_is_no_branch_is_not_proved(
    made: Maker, tmp_path: Path, function: str, *, tail: bool, code: str
) -> None:
    program, forged = made.program(SOME[0]), tmp_path / "forged"
    shutil.copy(program, forged)
    start = symbol(program, function)
    address = min(r.site for r in records(program) if r.site >= start and bool(r.flags & 1) is tail)
    overwrite(forged, address, bytes.fromhex(code))

    outcome = staticcall("verify", program, forged)

    assert outcome.code == 5, outcome
    assert "may be led elsewhere at run time" in outcome.err


def test_neither_a_null_key_nor_another_trampoline_is_proved(made: Maker, tmp_path: Path) -> None:
    program = made.program(Recipe("gcc", "bfd", "exec"))
    places = {"__SCK__scale": bytes(8), "__SCT__scale": bytes.fromhex("e900000000")}
    for name, code in places.items():
        forged = tmp_path / name
        shutil.copy(program, forged)
        overwrite(forged, symbol(program, name), code)

        assert staticcall("verify", program, forged).code == 5, name


# What the proof says where the bytes at a place of an object change and its relocation goes.
SPOILS = {
    "note: a site is a nop": (".text", "note_call", "0f1f440000"),
    "zero: a site is a ret0": (".text", "zero_call", "2e2e2e31c0"),
    "scale: the key is NULL": (".data", "__SCK__scale", "00" * 8),
    "scale: the trampoline leads elsewhere": (".static_call.text", "__SCT__scale", "e900000000"),
}


@pytest.mark.parametrize("reason", SPOILS)
def test_an_object_whose_call_could_not_be_updated_is_not_proved(made: Maker, tmp_path: Path, reason: str) -> None:
    section, function, code = SPOILS[reason]
    calls, forged = made.object("calls.c", Recipe("gcc", "bfd", "exec")), tmp_path / "forged.o"
    content, sections = bytearray(calls.read_bytes()), object_sections(calls)
    start = symbol(calls, function)
    table, first = sections[f".rela{section}"], sections[section].offset
    entries = range(table.offset, table.offset + table.size, 24)
    # r_offset, and a type and symbol that mean nothing: R_X86_64_NONE.
    field, entry = min(
        (at, entry) for entry in entries if (at := int.from_bytes(content[entry:][:8], "little")) >= start
    )
    place = field if section == ".data" else field - 1 if section == ".text" else start
    content[first + place : first + place + len(code) // 2] = bytes.fromhex(code)
    content[entry + 8 : entry + 24] = bytes(16)
    forged.write_bytes(content)

    outcome = staticcall("verify", calls, forged)

    assert outcome.code == 5, outcome
    assert reason in outcome.err
