"""Patched objects: what differs is what was meant, every linker takes them, and the programs call the new targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import disassembly, elf_object
from tests.support.object_patches import (
    R_X86_64_64,
    R_X86_64_PLT32,
    RETURN0,
    WISHES,
    Wish,
    assert_meant,
    complaints,
    content_of,
    entries_of,
    options,
    patch_object,
)
from tests.support.objects import MANY_SECTIONS, SOURCES, Objects
from tests.support.programs import COMPILERS
from tests.support.tool import POLICIES, digest, report, succeed
from tests.support.toolchain import Compiler, Kind, Linker, run
from tests.support.user_objects import LINKS, Return0, Workshop, prints, run_tool

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


# ---- targets ----


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", WISHES)
def test_a_patched_object_differs_as_meant_and_runs_as_wished(
    name: str, policy: str, workshop: Workshop, tmp_path: Path
) -> None:
    """Each of these is linked in one of the ways that there are; below one is linked in all of them."""
    turn = list(WISHES).index(name) * len(POLICIES) + POLICIES.index(policy)
    original, wishes = workshop.object(COMPILERS[turn % 2]), WISHES[name]
    patched = patch_object(original, tmp_path, "--policy", policy, *options(wishes))
    assert_meant(original, patched, wishes, policy)
    assert complaints(patched) == ""
    linker, kind = LINKS[turn % len(LINKS)]
    assert run(workshop.link(patched, linker, kind)) == prints(wishes)


@pytest.mark.parametrize(("linker", "kind"), LINKS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_linker_makes_the_same_of_a_patched_object(
    compiler: Compiler, linker: Linker, kind: Kind, workshop: Workshop, tmp_path: Path
) -> None:
    for name in ("all", "all-otherwise"):
        wishes = WISHES[name]
        patched = tmp_path / f"{name}.o"
        succeed("patch", workshop.object(compiler), "-o", patched, "--policy", "kernel", *options(wishes))
        assert run(workshop.link(patched, linker, kind)) == prints(wishes)


@pytest.mark.parametrize("return0", ["HAS", "KNOWS", "UNKNOWN"])
def test_the_function_that_returns_0_may_be_here_or_elsewhere(
    return0: Return0, workshop: Workshop, tmp_path: Path
) -> None:
    original, gamma = workshop.object("gcc", return0), return0 != "UNKNOWN"
    assert any(symbol.name == RETURN0 for symbol in elf_object.read(original).symbols) is gamma
    for number, target in enumerate(("RET0", RETURN0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        patched = patch_object(original, folder, f"--set=alpha={target}", f"--set=beta={target}", "--policy=kernel")
        assert run(workshop.link(patched, gamma_is_there=gamma)) == prints(
            {"alpha": "RET0", "beta": "RET0"}, gamma_is_there=gamma
        )
    (one, other) = (tmp_path / str(number) / "patched.o" for number in (0, 1))
    assert report(one)["summary"]["forms"]["ret0"] == 8
    assert one.read_bytes() == other.read_bytes()


def test_one_function_under_two_names_is_one_symbol(workshop: Workshop, tmp_path: Path) -> None:
    original = workshop.object(return0="UNKNOWN")
    patched = patch_object(original, tmp_path, "--set=alpha=RET0", f"--set=beta={RETURN0}")
    assert [symbol.name for symbol in elf_object.read(patched).symbols].count(RETURN0) == 1
    assert run(workshop.link(patched, gamma_is_there=False)) == prints(
        {"alpha": "RET0", "beta": "RET0"}, gamma_is_there=False
    )


def test_what_was_patched_can_be_patched_again(workshop: Workshop, tmp_path: Path) -> None:
    """There and back again: the entries that NULL and RET0 left are used, and none are added."""
    original = workshop.object()
    path, wishes = original, {"alpha": "plus_one", "beta": "NULL", "gamma": "RET0"}
    steps: list[Wish] = [
        {"alpha": "NULL", "beta": "plus_two", "gamma": "NULL"},
        {"alpha": "plus_four", "beta": "NULL", "gamma": "RET0"},
        {"alpha": "RET0", "beta": "RET0", "gamma": "plus_one"},
        {"alpha": "plus_three", "beta": "plus_two", "gamma": "plus_four"},
        {"alpha": "plus_one", "beta": "NULL", "gamma": "RET0"},
    ]
    sizes = []
    for number, step in enumerate(steps):
        folder = tmp_path / str(number)
        folder.mkdir()
        wishes |= step
        path = patch_object(path, folder, "--policy=kernel", *options(step))
        assert complaints(path) == ""
        assert run(workshop.link(path, *LINKS[number])) == prints(wishes)
        sizes.append(len(entries_of(elf_object.read(path))))
    assert sizes[1:] == sizes[:1] * (len(steps) - 1)
    keys = {key["name"]: key["func"] for key in report(path)["keys"]}
    assert keys == {"alpha": "plus_one", "beta": None, "gamma": RETURN0, "delta": None}


def test_a_patch_and_its_way_back_leave_what_was_there(workshop: Workshop, tmp_path: Path) -> None:
    """By --set, that is: revert is byte for byte in all tests here."""
    original = workshop.object()
    there, back = tmp_path / "there.o", tmp_path / "back.o"
    succeed("patch", original, "-o", there, "--set=alpha=plus_two")
    succeed("patch", there, "-o", back, "--set=alpha=plus_one")
    assert digest(there) != digest(original)
    direct = [s for s in report(back)["sites"] if s["key"] == "alpha" and s["destination"] == "plus_one"]
    assert len(direct) == 4
    assert run(workshop.link(back)) == prints()


@pytest.mark.parametrize("policy", POLICIES)
def test_binding_sends_sites_where_their_keys_lead_and_leaves_those(
    policy: str, workshop: Workshop, tmp_path: Path
) -> None:
    original = workshop.object("clang")
    patched = patch_object(original, tmp_path, "--bind", "--policy", policy)
    assert run(workshop.link(patched, "lld", "pie")) == prints()
    before, after = (content_of(elf_object.read(path)) for path in (original, patched))
    changed = {
        place: after.relocations.get(place, (0, "", 0))[1]
        for place, entry in before.relocations.items()
        if after.relocations.get(place) != entry
    }
    elf = elf_object.read(original)
    meant = {
        (site.section, site.offset + len(site.code) - 4): site
        for site in disassembly.sites(original)
        if disassembly.verdict(site, policy, elf.sections[site.section].alignment) == "direct"
        # A jcc that would have to return has nothing to lead to.
        and not (site.form == "jcc" and site.key in ("beta", "delta"))
    }
    assert changed.keys() == meant.keys()
    functions = {"alpha": "plus_one", "beta": "", "delta": "", "gamma": ""}
    assert {place: function for place, function in changed.items() if not meant[place].tail} == {
        place: functions[site.key] for place, site in meant.items() if not site.tail
    }
    again = tmp_path / "again.o"
    succeed("patch", patched, "-o", again, "--bind", "--policy", policy)
    assert again.read_bytes() == patched.read_bytes()


def test_an_object_without_a_table_keeps_its_calls_coherent(workshop: Workshop, tmp_path: Path) -> None:
    original = workshop.object(records=False)
    wishes = WISHES["all"]
    patched = patch_object(original, tmp_path, *options(wishes))
    assert run(workshop.link(patched)) == prints(wishes)


def test_a_key_given_with_its_prefix_is_the_same_key(workshop: Workshop, tmp_path: Path) -> None:
    for name, key in (("one.o", "alpha"), ("other.o", "__SCK__alpha")):
        succeed("patch", workshop.object(), "-o", tmp_path / name, f"--set={key}=plus_two")
    assert digest(tmp_path / "one.o") == digest(tmp_path / "other.o")


def test_a_result_is_the_same_each_time(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("one.o", "other.o"):
        succeed("patch", workshop.object(), "-o", tmp_path / name, *options(WISHES["all"]))
    assert digest(tmp_path / "one.o") == digest(tmp_path / "other.o")


# ---- objects of all sorts ----


@pytest.mark.parametrize("annotated", [False, True], ids=["bare", "annotated"])
@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        *((name, cc) for name in ("tail_calls", "two_keys") for cc in COMPILERS),
        ("clang_tables", "clang"),
        ("combined-bfd", "gcc"),
        ("combined-lld", "clang"),
        ("combined-mold", "gcc"),
    ],
)
def test_objects_of_all_sorts_are_patched_with_the_least_of_changes(
    name: str, compiler: Compiler, annotated: bool, made: Objects, tmp_path: Path
) -> None:
    """To a function that they have not heard of, so that their symbol table grows, and to NULL and back."""
    original = made(name, compiler)
    if annotated:
        succeed("annotate", "--module", original, "-o", tmp_path / "annotated.o")
        original = tmp_path / "annotated.o"
    (key, *_) = [key["name"] for key in report(original)["keys"] if key["defined"] and key["name"] != "first"]
    patched = patch_object(original, tmp_path, f"--set={key}=a_function_elsewhere", "--policy=kernel")
    before, after = elf_object.read(original), elf_object.read(patched)
    assert after.symbols[:-1] == before.symbols
    assert after.symbols[-1] == elf_object.Symbol("a_function_elsewhere", 0, elf_object.STB_GLOBAL, 0, 0, 0, 0)
    was, now = content_of(before), content_of(after)
    assert (
        now.code.items() >= {n: code for n, code in was.code.items() if n in now.code and now.code[n] == code}.items()
    )
    changed = {
        place
        for place in was.relocations.keys() | now.relocations
        if was.relocations.get(place) != now.relocations.get(place)
    }
    assert changed
    assert {now.relocations[place][1] for place in changed} == {"a_function_elsewhere"}
    assert [(s.name, s.type, s.flags, s.link) for s in after.sections][: len(before.sections)] == [
        (s.name, s.type, s.flags, s.link) for s in before.sections
    ]
    assert complaints(patched) == complaints(original)
    run_tool("ld.bfd", "-r", patched, "-o", tmp_path / "combined.o")


def test_a_symbol_is_added_where_section_numbers_do_not_fit(made: Objects, tmp_path: Path) -> None:
    original = made("many_sections")
    patched = patch_object(original, tmp_path, "--set=one=a_function_elsewhere", "--policy=kernel")
    before, after = elf_object.read(original), elf_object.read(patched)
    assert len(after.sections) == len(before.sections) > MANY_SECTIONS
    assert after.symbols[:-1] == before.symbols
    assert after.symbols[-1] == elf_object.Symbol("a_function_elsewhere", 0, elf_object.STB_GLOBAL, 0, 0, 0, 0)
    assert complaints(patched) == complaints(original)


def test_a_patched_annotated_object_keeps_its_table(made: Objects, tmp_path: Path) -> None:
    annotated = tmp_path / "annotated.o"
    succeed("annotate", made("two_keys"), "-o", annotated)
    patched = patch_object(annotated, tmp_path, "--set=one=second_target", "--policy=kernel")
    before, after = (elf_object.records(elf_object.read(path)) for path in (annotated, patched))
    assert before == after
    # Sites that go straight to a function are still sites, for the table lists them.
    sites = report(patched)["sites"]
    assert len(sites) == len(before)
    straight = [site for site in sites if site["reason"] == "already-direct"]
    assert {(site["key"], site["destination"]) for site in straight} == {("one", "second_target")}
    assert {tuple(site["sources"]) for site in straight} == {("table",)}
    assert "no-table" not in {finding["code"] for finding in report(patched)["findings"]}


def test_a_key_in_a_section_without_relocations_gets_some(tmp_path: Path) -> None:
    source, original = tmp_path / "null.S", tmp_path / "null.o"
    lines = ['#include "static_call.inc"', "KEY one, 0", ".text", "FUNCTION f", "call __SCT__one", "ret", "END f"]
    trampoline = [
        '.section .static_call.text, "ax"',
        ".globl __SCT__one",
        "__SCT__one: .byte 0xc3, 0xcc, 0x90, 0x90, 0x90, 0xf, 0xb9, 0xcc",
    ]
    source.write_text("\n".join([*lines, *trampoline]) + "\n")
    run_tool("gcc", f"-I{SOURCES}", "-c", source, "-o", original)
    assert not elf_object.read(original).named(".rela.data")
    patched = patch_object(original, tmp_path, "--set=one=f")
    after = elf_object.read(patched)
    found = {
        name: [(entry.type, after.symbols[entry.symbol].name) for entry in after.relocations(section)]
        for name in (".rela.data", ".rela.static_call.text")
        for section in after.named(name)
    }
    assert found == {".rela.data": [(R_X86_64_64, "f")], ".rela.static_call.text": [(R_X86_64_PLT32, "f")]}
    assert complaints(patched) == ""
    run_tool("ld.bfd", "-e", "f", patched, "-o", tmp_path / "program")
    names = run_tool("nm", tmp_path / "program")
    address = next(line.split()[0] for line in names.splitlines() if line.endswith(" f"))
    data = run_tool("objdump", "-s", "-j", ".data", tmp_path / "program")
    assert bytes.fromhex(address)[::-1].hex()[:8] in data


@pytest.mark.parametrize("tool", ["objcopy", "strip --strip-debug", "ld.bfd -r", "ld.lld -r", "ld.mold -r"])
@pytest.mark.parametrize("name", ["unknown", "all-otherwise"])
def test_what_other_tools_make_of_a_patched_object_runs_as_wished(
    name: str, tool: str, workshop: Workshop, tmp_path: Path
) -> None:
    wishes, patched, made = WISHES[name], tmp_path / "patched.o", tmp_path / "made.o"
    succeed("patch", workshop.object(), "-o", patched, "--policy=kernel", *options(wishes))
    command = tool.split()
    run_tool(*command, *([patched, made] if tool == "objcopy" else [patched, "-o", made]))
    assert complaints(made) == ""
    assert run(workshop.link(made, "bfd", "pie")) == prints(wishes)
