"""Patched objects: what differs is what was meant, every linker takes them, and the programs call the new targets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import disassembly, elf_object
from tests.support.elf_object import Object
from tests.support.objects import MANY_SECTIONS, SOURCES, Objects
from tests.support.programs import COMPILERS
from tests.support.tool import POLICIES, digest, report, staticcall, succeed, validate
from tests.support.toolchain import Compiler, Kind, Linker, run
from tests.support.user_objects import LINKS, Return0, Workshop, prints, run_tool

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

R_X86_64_NONE, R_X86_64_64, R_X86_64_PLT32 = 0, 1, 4
RETURN0 = "__static_call_return0"
NOP, XOR, RET, RET_TRAMPOLINE = (
    bytes.fromhex(code) for code in ("0f1f440000", "2e2e2e31c0", "c3cccccccc", "c3cc909090")
)
JMP = b"\xe9" + bytes(4)
FORCE = ("--force", "null-returns-value")

Wish = dict[str, str]
WISHES: Mapping[str, Wish] = {
    "here": {"alpha": "plus_one", "gamma": "plus_one"},
    "local": {"alpha": "plus_two"},
    "known": {"alpha": "plus_three"},
    "unknown": {"alpha": "plus_four"},
    "null": {"alpha": "NULL"},
    "return0": {"alpha": "RET0"},
    "from-null": {"beta": "plus_two"},
    "from-null-to-unknown": {"beta": "plus_four"},
    "from-null-to-return0": {"beta": "RET0"},
    "from-return0": {"gamma": "plus_three"},
    "from-return0-to-null": {"gamma": "NULL"},
    "all": {"alpha": "plus_four", "beta": "plus_four", "gamma": "plus_two"},
    "all-otherwise": {"alpha": "NULL", "beta": "RET0", "gamma": "plus_one"},
}
_TURN = count()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


def _options(wishes: Wish) -> list[str]:
    options = [f"--set={key}={target}" for key, target in wishes.items()]
    return [*options, *FORCE] if "NULL" in wishes.values() else options


def _patch(original: Path, folder: Path, *options: str | Path) -> Path:
    """Patch an object, hold it against its edits file, have it verified and turned back."""
    output, edits, back = folder / "patched.o", folder / "edits.json", folder / "back.o"
    succeed("patch", original, "-o", output, "--edits", edits, *options)
    document = json.loads(edits.read_text())
    validate(document, "edits")
    assert (document["original_sha256"], document["patched_sha256"]) == (digest(original), digest(output))
    assert {edit["address"] for edit in document["edits"]} <= {None}
    assert _applied(original.read_bytes(), document["edits"]) == output.read_bytes()
    assert succeed("verify", original, output).startswith("verified: ")
    succeed("revert", output, "--edits", edits, "-o", back)
    assert back.read_bytes() == original.read_bytes()
    return output


def _applied(data: bytes, edits: Sequence[Mapping[str, Any]]) -> bytes:
    pieces, at = [], 0
    for edit in edits:
        start, old = edit["file_offset"], bytes.fromhex(edit["old"])
        assert at <= start
        assert data[start : start + len(old)] == old
        pieces += [data[at:start], bytes.fromhex(edit["new"])]
        at = start + len(old)
    return b"".join([*pieces, data[at:]])


# ---- what should be there, worked out from what objdump shows of the original ----


class Content(NamedTuple):
    """All that a linker makes anything of: relocations by section and place, and the sections' bytes."""

    relocations: dict[tuple[int, int], tuple[int, str, int]]
    code: dict[int, bytes]


def _content(elf: Object) -> Content:
    relocations = {
        (table.info, entry.offset): (entry.type, elf.symbols[entry.symbol].name, entry.addend)
        for table in _tables(elf)
        for entry in elf.relocations(table)
        if entry.type != R_X86_64_NONE
    }
    # Tables of symbols, names and relocations are judged by what they say.
    tables = (elf_object.SHT_SYMTAB, elf_object.SHT_STRTAB, elf_object.SHT_RELA, elf_object.SHT_SYMTAB_SHNDX)
    return Content(relocations, {s.number: s.content for s in elf.sections if s.type not in tables})


def _expected(path: Path, wishes: Wish, policy: str) -> Content:
    elf = elf_object.read(path)
    relocations, code = _content(elf)
    code = {number: bytes(content) for number, content in code.items()}
    places = {symbol.name: (symbol.section, symbol.value) for symbol in elf.symbols}

    def put(place: tuple[int, int], data: bytes, field: int, symbol: str, kind: int) -> None:
        """So many bytes at a place, and the relocation of its field, none for NULL and the like."""
        (section, at), addend = place, -4
        if kind == R_X86_64_64:
            addend = 0
        code[section] = code[section][:at] + data + code[section][at + len(data) :]
        old = relocations.pop((section, at + field), None)
        if symbol:
            relocations[section, at + field] = (old[0] if old else kind, symbol, addend)

    for key, target in wishes.items():
        function = {"NULL": "", "RET0": RETURN0}.get(target, target)
        put(places[f"__SCK__{key}"], bytes(8), 0, function, R_X86_64_64)
        put(places[f"__SCT__{key}"], JMP if function else RET_TRAMPOLINE, 1, function, R_X86_64_PLT32)
        for site in disassembly.sites(path):
            alignment = elf.sections[site.section].alignment
            if site.key != key or disassembly.verdict(site, policy, alignment) != "direct":
                continue
            data, prefixes = site.code, site.code[: site.prefixes]
            if not site.tail and target in ("NULL", "RET0"):
                data, function = prefixes + (NOP if target == "NULL" else XOR), ""
            elif target == "NULL":
                if site.form == "jcc":
                    continue  # there is no return that it could lead to
                data = RET
            put((site.section, site.offset), data, len(site.code) - 4, function, R_X86_64_PLT32)
            function = {"NULL": "", "RET0": RETURN0}.get(target, target)
    return Content(relocations, code)


def _assert_meant(original: Path, patched: Path, wishes: Wish, policy: str) -> None:
    before, after = elf_object.read(original), elf_object.read(patched)
    found, expected = _content(after), _expected(original, wishes, policy)
    assert found.relocations == expected.relocations
    count_before = len(before.sections)
    assert {number: code for number, code in found.code.items() if number < count_before} == expected.code
    assert after.symbols[: len(before.symbols)] == before.symbols
    named = {symbol.name for symbol in before.symbols}
    targets = sorted({RETURN0 if target == "RET0" else target for target in wishes.values()} - named - {"NULL"})
    added = [elf_object.Symbol(target, 0, elf_object.STB_GLOBAL, 0, 0, 0, 0) for target in targets]
    assert after.symbols[len(before.symbols) :] == added
    if not added and len(_entries(before)) == len(_entries(after)):
        assert patched.stat().st_size == original.stat().st_size


def _entries(elf: Object) -> list[elf_object.Relocation]:
    return [entry for table in _tables(elf) for entry in elf.relocations(table)]


def _tables(elf: Object) -> list[elf_object.Section]:
    return [section for section in elf.sections if section.type == elf_object.SHT_RELA]


def _complaints(path: Path) -> str:
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=True)
    return done.stderr + "".join(line for line in done.stdout.splitlines() if "arning" in line or "rror" in line)


# ---- targets ----


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", WISHES)
def test_a_patched_object_differs_as_meant_and_runs_as_wished(
    name: str, policy: str, workshop: Workshop, tmp_path: Path
) -> None:
    """Each of these is linked in one of the ways that there are; below one is linked in all of them."""
    turn = next(_TURN)
    original, wishes = workshop.object(COMPILERS[turn % 2]), WISHES[name]
    patched = _patch(original, tmp_path, "--policy", policy, *_options(wishes))
    _assert_meant(original, patched, wishes, policy)
    assert _complaints(patched) == ""
    linker, kind = LINKS[turn % len(LINKS)]
    assert run(workshop.link(patched, linker, kind)) == prints(**wishes)


@pytest.mark.parametrize(("linker", "kind"), LINKS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_linker_makes_the_same_of_a_patched_object(
    compiler: Compiler, linker: Linker, kind: Kind, workshop: Workshop, tmp_path: Path
) -> None:
    for name in ("all", "all-otherwise"):
        wishes = WISHES[name]
        patched = tmp_path / f"{name}.o"
        succeed("patch", workshop.object(compiler), "-o", patched, "--policy", "kernel", *_options(wishes))
        assert run(workshop.link(patched, linker, kind)) == prints(**wishes)


@pytest.mark.parametrize("return0", ["HAS", "KNOWS", "UNKNOWN"])
def test_the_function_that_returns_0_may_be_here_or_elsewhere(
    return0: Return0, workshop: Workshop, tmp_path: Path
) -> None:
    original, gamma = workshop.object("gcc", return0), return0 != "UNKNOWN"
    assert any(symbol.name == RETURN0 for symbol in elf_object.read(original).symbols) is gamma
    for number, target in enumerate(("RET0", RETURN0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        patched = _patch(original, folder, f"--set=alpha={target}", f"--set=beta={target}", "--policy=kernel")
        assert run(workshop.link(patched, gamma_is_there=gamma)) == prints(
            gamma_is_there=gamma, alpha="RET0", beta="RET0"
        )
    (one, other) = (tmp_path / str(number) / "patched.o" for number in (0, 1))
    assert report(one)["summary"]["forms"]["ret0"] == 8
    assert one.read_bytes() == other.read_bytes()


def test_one_function_under_two_names_is_one_symbol(workshop: Workshop, tmp_path: Path) -> None:
    original = workshop.object(return0="UNKNOWN")
    patched = _patch(original, tmp_path, "--set=alpha=RET0", f"--set=beta={RETURN0}")
    assert [symbol.name for symbol in elf_object.read(patched).symbols].count(RETURN0) == 1
    assert run(workshop.link(patched, gamma_is_there=False)) == prints(gamma_is_there=False, alpha="RET0", beta="RET0")


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
        path = _patch(path, folder, "--policy=kernel", *_options(step))
        assert _complaints(path) == ""
        assert run(workshop.link(path, *LINKS[number])) == prints(**wishes)
        sizes.append(len(_entries(elf_object.read(path))))
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
    patched = _patch(original, tmp_path, "--bind", "--policy", policy)
    assert run(workshop.link(patched, "lld", "pie")) == prints()
    before, after = (_content(elf_object.read(path)) for path in (original, patched))
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
    patched = _patch(original, tmp_path, *_options(wishes))
    assert run(workshop.link(patched)) == prints(**wishes)


def test_a_key_given_with_its_prefix_is_the_same_key(workshop: Workshop, tmp_path: Path) -> None:
    for name, key in (("one.o", "alpha"), ("other.o", "__SCK__alpha")):
        succeed("patch", workshop.object(), "-o", tmp_path / name, f"--set={key}=plus_two")
    assert digest(tmp_path / "one.o") == digest(tmp_path / "other.o")


def test_a_result_is_the_same_each_time(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("one.o", "other.o"):
        succeed("patch", workshop.object(), "-o", tmp_path / name, *_options(WISHES["all"]))
    assert digest(tmp_path / "one.o") == digest(tmp_path / "other.o")


# ---- objects of all sorts ----

_ASSEMBLED = ("tail_calls", "two_keys", "section_relative", "unsorted", "clang_tables")
_TARGETS = {
    "tail_calls": "one",
    "two_keys": "two",
    "section_relative": "two",
    "clang_tables": "one",
    "many_sections": "one",
}


@pytest.mark.parametrize("annotated", [False, True], ids=["bare", "annotated"])
@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        *((name, cc) for name in ("tail_calls", "two_keys", "section_relative", "chain", "nearby") for cc in COMPILERS),
        ("clang_tables", "clang"),
        ("combined-bfd", "gcc"),
        ("combined-lld", "clang"),
        ("combined-mold", "gcc"),
        ("many_sections", "gcc"),
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
    patched = _patch(original, tmp_path, f"--set={key}=a_function_elsewhere", "--policy=kernel")
    before, after = elf_object.read(original), elf_object.read(patched)
    assert after.symbols[:-1] == before.symbols
    assert after.symbols[-1] == elf_object.Symbol("a_function_elsewhere", 0, elf_object.STB_GLOBAL, 0, 0, 0, 0)
    was, now = _content(before), _content(after)
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
    assert _complaints(patched) == _complaints(original)
    run_tool("ld.bfd", "-r", patched, "-o", tmp_path / "combined.o")
    if name == "many_sections":
        assert len(after.sections) > MANY_SECTIONS


def test_a_patched_annotated_object_keeps_its_table(made: Objects, tmp_path: Path) -> None:
    annotated = tmp_path / "annotated.o"
    succeed("annotate", made("two_keys"), "-o", annotated)
    patched = _patch(annotated, tmp_path, "--set=one=second_target", "--policy=kernel")
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
    patched = _patch(original, tmp_path, "--set=one=f")
    after = elf_object.read(patched)
    found = {
        name: [(entry.type, after.symbols[entry.symbol].name) for entry in after.relocations(section)]
        for name in (".rela.data", ".rela.static_call.text")
        for section in after.named(name)
    }
    assert found == {".rela.data": [(R_X86_64_64, "f")], ".rela.static_call.text": [(R_X86_64_PLT32, "f")]}
    assert _complaints(patched) == ""
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
    succeed("patch", workshop.object(), "-o", patched, "--policy=kernel", *_options(wishes))
    command = tool.split()
    run_tool(*command, *([patched, made] if tool == "objcopy" else [patched, "-o", made]))
    assert _complaints(made) == ""
    assert run(workshop.link(made, "bfd", "pie")) == prints(**wishes)


# ---- the proof ----


def _damages(original: Path, patched: Path) -> dict[str, bytes]:
    """Results that are wrong, each in one way."""
    data = patched.read_bytes()
    after = elf_object.read(patched)
    (text,) = after.named(".text.aligned")
    (relocations,) = after.named(".rela.text.aligned")
    names = [symbol.name for symbol in after.symbols]

    def changed(offset: int, new: bytes) -> bytes:
        return data[:offset] + new + data[offset + len(new) :]

    def entry(key: str, straight: bool) -> int:
        """The file offset of the relocation of a site that goes straight to its target, or does not."""
        goals = {"plus_two"} if straight else {f"__SCT__{key}"}
        numbers = (n for n, e in enumerate(after.relocations(relocations)) if names[e.symbol] in goals)
        return relocations.offset + 24 * next(numbers)

    other = names.index("plus_three").to_bytes(4, "little")
    (key_table,) = after.named(".rela.data")
    slot = next(n for n, e in enumerate(after.relocations(key_table)) if names[e.symbol] == "plus_two")
    (trampolines,) = after.named(".rela.static_call.text")
    jump = next(n for n, e in enumerate(after.relocations(trampolines)) if names[e.symbol] == "plus_two")
    return {
        "another function at a site": changed(entry("alpha", straight=True) + 12, other),
        "another addend at a site": changed(entry("alpha", straight=True) + 16, b"\xfd"),
        "another type at a site": changed(entry("alpha", straight=True) + 8, b"\x01"),
        "another place at a site": changed(entry("alpha", straight=True), b"\x0a"),
        "another key's site": changed(entry("beta", straight=False) + 12, other),
        "another function in the key": changed(key_table.offset + 24 * slot + 12, other),
        "another addend in the key": changed(key_table.offset + 24 * slot + 16, b"\x01"),
        "another function in the trampoline": changed(trampolines.offset + 24 * jump + 12, other),
        "bytes under a relocation": changed(text.offset + 9, b"\x01"),
        "another opcode": changed(text.offset + 8, b"\xe9"),
        "bytes where no site is": changed(text.offset + 4, b"\x91"),
        "a name": data.replace(b"plus_three\0", b"plus_trees\0"),
        "more": data + b"\1",
        "less": data[:-1],
        "the original's key": changed(
            key_table.offset + 24 * slot, original.read_bytes()[key_table.offset + 24 * slot :][:24]
        ),
        "no signature of an object": changed(1, b"F"),
    }


_DAMAGES = (
    *("another function at a site", "another addend at a site", "another type at a site", "another place at a site"),
    *("another key's site", "another function in the key", "another addend in the key"),
    *("another function in the trampoline", "bytes under a relocation", "another opcode", "bytes where no site is"),
    *("a name", "more", "less", "the original's key", "no signature of an object"),
)


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_result_is_not_verified(damage: str, workshop: Workshop, tmp_path: Path) -> None:
    original, patched, damaged = workshop.object(), tmp_path / "patched.o", tmp_path / "damaged.o"
    succeed("patch", original, "-o", patched, "--set=alpha=plus_two")
    damages = _damages(original, patched)
    assert damages.keys() == set(_DAMAGES)
    damaged.write_bytes(damages[damage])
    assert digest(damaged) != digest(patched)
    outcome = staticcall("verify", original, damaged)
    assert outcome.code == 5, outcome
    assert outcome.out == ""
    assert outcome.err.startswith(f"staticcall: {damaged}: ")
    assert outcome.err.count("\n") == 1


def test_revert_takes_only_what_it_was_made_for(workshop: Workshop, tmp_path: Path) -> None:
    patched = _patch(workshop.object(), tmp_path, *_options(WISHES["unknown"]))
    other = tmp_path / "other.o"
    other.write_bytes(patched.read_bytes() + b"\0")
    outcome = staticcall("revert", other, "--edits", tmp_path / "edits.json", "-o", tmp_path / "no.o")
    assert outcome.code in (3, 4, 5)
    assert not (tmp_path / "no.o").exists()


def test_damage_to_the_edits_of_a_grown_object_is_noticed(workshop: Workshop, tmp_path: Path) -> None:
    _patch(workshop.object(), tmp_path, *_options(WISHES["unknown"]))
    document = json.loads((tmp_path / "edits.json").read_text())
    *_, last = document["edits"]
    last["old"] += "00"
    (tmp_path / "edits.json").write_text(json.dumps(document))
    outcome = staticcall("revert", tmp_path / "patched.o", "--edits", tmp_path / "edits.json", "-o", tmp_path / "no.o")
    assert outcome.code in (3, 5)
    assert not (tmp_path / "no.o").exists()


# ---- how it is asked for, and what is said ----


def test_a_dry_run_says_what_is_planned_and_writes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    path = Path(shutil.copy(workshop.object(), tmp_path / "calls.o"))
    before = (digest(path), path.stat().st_mtime_ns)
    out = succeed("patch", path, "--dry-run", *_options(WISHES["all"]))
    lines = out.splitlines()
    assert lines[:5] == [
        f"{path}: nothing is written (--dry-run)",
        "  alpha: plus_one -> plus_four, 4 sites direct, 9 by trampoline",
        "  beta: NULL -> plus_four, 2 sites direct, 4 by trampoline",
        f"  gamma: {RETURN0} -> plus_two, 1 site direct, 3 by trampoline",
        "  plus_four is not in this object, which now refers to it",
    ]
    assert "verified" not in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["calls.o"]
    assert (digest(path), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("name", WISHES)
def test_nothing_that_is_said_of_a_patch_has_an_address(name: str, workshop: Workshop, tmp_path: Path) -> None:
    options = (*_options(WISHES[name]), "-v", "--policy=kernel")
    said = succeed("patch", workshop.object(), "--dry-run", *options)
    said += succeed("patch", workshop.object(), "-o", tmp_path / "patched.o", *options)
    said += succeed("report", "-v", tmp_path / "patched.o")
    said += succeed("verify", workshop.object(), tmp_path / "patched.o", "-v")
    assert "0x4" not in said.replace(str(tmp_path), "").replace("0x4 ", "")


def test_an_object_is_replaced_in_place_with_its_mode(workshop: Workshop, tmp_path: Path) -> None:
    path = Path(shutil.copy(workshop.object(), tmp_path / "calls.o"))
    path.chmod(0o640)
    edits = tmp_path / "edits.json"
    succeed("patch", path, "--in-place", "--edits", edits, *_options(WISHES["unknown"]))
    assert digest(path) != digest(workshop.object())
    assert path.stat().st_mode & 0o777 == 0o640
    assert run(workshop.link(path)) == prints(**WISHES["unknown"])
    succeed("revert", path, "--edits", edits, "--in-place")
    assert digest(path) == digest(workshop.object())


def test_the_report_of_a_patch_is_that_of_its_result(workshop: Workshop, tmp_path: Path) -> None:
    output, written = tmp_path / "patched.o", tmp_path / "report.json"
    succeed("patch", workshop.object(), "-o", output, "--report", written, *_options(WISHES["all"]))
    document = json.loads(written.read_text())
    validate(document, "report")
    assert document["images"] == [report(output)]
    keys = {key["name"]: (key["func"], key["defined"]) for key in document["images"][0]["keys"]}
    assert keys == {
        "alpha": ("plus_four", True),
        "beta": ("plus_four", True),
        "gamma": ("plus_two", True),
        "delta": (None, True),
    }


def test_a_quiet_patch_says_nothing(workshop: Workshop, tmp_path: Path) -> None:
    assert succeed("patch", workshop.object(), "-o", tmp_path / "p.o", "--quiet", *_options(WISHES["all"])) == ""


def test_wishes_may_come_from_a_file(workshop: Workshop, tmp_path: Path) -> None:
    config = tmp_path / "wishes.toml"
    config.write_text('policy = "kernel"\n[set]\nalpha = "plus_four"\nbeta = "plus_four"\ngamma = "plus_two"\n')
    patched = _patch(workshop.object(), tmp_path, "--config", config)
    assert run(workshop.link(patched)) == prints(**WISHES["all"])
