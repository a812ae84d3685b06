"""The proof of a patched object, and how a patch is asked for: what is verified, written, and said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import elf_object
from tests.support.object_patches import (
    RETURN0,
    WISHES,
    options,
    patch_object,
)
from tests.support.objects import Objects
from tests.support.tool import digest, refused, report, staticcall, succeed, validate
from tests.support.toolchain import run, source
from tests.support.user_objects import Workshop, prints

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


# Where an object's sections are pretended to be, as a number and as a pointer's bytes.
_PRETENDED = re.compile(r"0x4[0-9a-f]{5}\b|[0-9a-f]{4}40{11}")


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
    patched = patch_object(workshop.object(), tmp_path, *options(WISHES["unknown"]))
    other = tmp_path / "other.o"
    other.write_bytes(patched.read_bytes() + b"\0")
    outcome = staticcall("revert", other, "--edits", tmp_path / "edits.json", "-o", tmp_path / "no.o")
    assert outcome.code in (3, 4, 5)
    assert not (tmp_path / "no.o").exists()


def test_damage_to_the_edits_of_a_grown_object_is_noticed(workshop: Workshop, tmp_path: Path) -> None:
    patch_object(workshop.object(), tmp_path, *options(WISHES["unknown"]))
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
    out = succeed("patch", path, "--dry-run", *options(WISHES["all"]))
    lines = out.splitlines()
    # The object was built without debug information.
    assert lines[:8] == [
        f"{path}: nothing is written (--dry-run)",
        "  alpha: plus_one -> plus_four, 4 sites direct, 9 by trampoline",
        "    types not compared: no type data of key alpha",
        "  beta: NULL -> plus_four, 2 sites direct, 4 by trampoline",
        "    types not compared: no type data of key beta",
        f"  gamma: {RETURN0} -> plus_two, 1 site direct, 3 by trampoline",
        "    types not compared: no type data of key gamma",
        "  plus_four is not in this object, which now refers to it",
    ]
    assert "verified" not in out
    # What is planned is what comes of it.
    said = succeed("patch", path, "-o", tmp_path / "out.o", "-v", *options(WISHES["all"])).splitlines()
    assert succeed("patch", path, "--dry-run", "-v", *options(WISHES["all"])).splitlines()[1:] == said[1:-1]
    (tmp_path / "out.o").unlink()
    assert [entry.name for entry in tmp_path.iterdir()] == ["calls.o"]
    assert (digest(path), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("name", WISHES)
def test_nothing_that_is_said_of_a_patch_has_an_address(name: str, workshop: Workshop, tmp_path: Path) -> None:
    asked = (*options(WISHES[name]), "-v", "--policy=kernel")
    said = succeed("patch", workshop.object(), "--dry-run", *asked)
    said += succeed("patch", workshop.object(), "-o", tmp_path / "patched.o", *asked)
    said += succeed("report", "-v", tmp_path / "patched.o")
    said += succeed("verify", workshop.object(), tmp_path / "patched.o", "-v")
    assert not _PRETENDED.search(said)


def test_an_object_is_replaced_in_place_with_its_mode(workshop: Workshop, tmp_path: Path) -> None:
    path = Path(shutil.copy(workshop.object(), tmp_path / "calls.o"))
    path.chmod(0o640)
    edits = tmp_path / "edits.json"
    succeed("patch", path, "--in-place", "--edits", edits, *options(WISHES["unknown"]))
    assert digest(path) != digest(workshop.object())
    assert path.stat().st_mode & 0o777 == 0o640
    assert run(workshop.link(path)) == prints(WISHES["unknown"])
    succeed("revert", path, "--edits", edits, "--in-place")
    assert digest(path) == digest(workshop.object())


def test_the_report_of_a_patch_is_that_of_its_result(workshop: Workshop, tmp_path: Path) -> None:
    output, written = tmp_path / "patched.o", tmp_path / "report.json"
    succeed("patch", workshop.object(), "-o", output, "--report", written, *options(WISHES["all"]))
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
    assert succeed("patch", workshop.object(), "-o", tmp_path / "p.o", "--quiet", *options(WISHES["all"])) == ""


def test_wishes_may_come_from_a_file(workshop: Workshop, tmp_path: Path) -> None:
    config = tmp_path / "wishes.toml"
    config.write_text('policy = "kernel"\n[set]\nalpha = "plus_four"\nbeta = "plus_four"\ngamma = "plus_two"\n')
    patched = patch_object(workshop.object(), tmp_path, "--config", config)
    assert run(workshop.link(patched)) == prints(WISHES["all"])


# ---- sites that no relocation names ----


def _led_elsewhere(path: Path) -> int:
    """How many relocations of the code name the new target."""
    after = elf_object.read(path)
    (relocations,) = after.named(".rela.text")
    return [after.symbols[entry.symbol].name for entry in after.relocations(relocations)].count("elsewhere")


@pytest.mark.parametrize(("name", "key", "sites"), [("section_relative", "two", 2), ("nearby", "near", 3)])
def test_sites_that_no_relocation_names_are_patched_once_they_have_a_record(
    name: str, key: str, sites: int, made: Objects, tmp_path: Path
) -> None:
    bare, annotated, patched = made(name, "gcc"), tmp_path / "annotated.o", tmp_path / "patched.o"
    wish = ("--set", f"{key}=elsewhere", "--policy", "kernel")
    succeed("patch", bare, *wish, "-o", patched)
    succeed("verify", bare, patched)
    at_trampoline = int(name == "nearby")  # which stands in the same section
    assert _led_elsewhere(patched) == at_trampoline
    succeed("annotate", bare, "-o", annotated)
    succeed("patch", annotated, *wish, "-o", patched)
    succeed("verify", annotated, patched)
    assert _led_elsewhere(patched) == sites + at_trampoline


def test_a_patch_of_an_object_without_a_table_loses_no_site(made: Objects, tmp_path: Path) -> None:
    """One that went straight to its target could be found no more."""
    bare, patched = made("two_keys", "gcc"), tmp_path / "patched.o"
    key = report(bare)["keys"][0]["name"]
    succeed("patch", bare, "--set", f"{key}=elsewhere", "--policy", "kernel", "-o", patched)
    tables = []
    for path in (bare, patched):
        annotated = tmp_path / f"annotated-{path.name}"
        succeed("annotate", path, "-o", annotated)
        tables.append([(site["offset"], site["key"]) for site in report(annotated)["sites"]])
    assert tables[0] == tables[1] != []


def test_a_site_that_is_a_trampoline_is_not_patched(made: Objects, tmp_path: Path) -> None:
    annotated, patched = tmp_path / "annotated.o", tmp_path / "patched.o"
    succeed("annotate", made("chain", "clang"), "-o", annotated)
    wish = ("--set", "last=elsewhere", "--policy", "kernel")
    refused("patch", annotated, *wish, "-o", patched, code="site-is-trampoline")
    assert not patched.exists()
    succeed("patch", annotated, "--set", "last=elsewhere", "-o", patched)


@pytest.mark.parametrize("wish", [("--bind",), ("--set", "alpha=alpha_fast"), ("--set", "alpha=RET0")])
def test_sites_that_read_the_key_follow_it(wish: tuple[str, ...], tmp_path: Path) -> None:
    """The fixture's object has every form of a site, one of which calls through the key's own pointer."""
    original, patched = tmp_path / "calls.o", tmp_path / "patched.o"
    subprocess.run(["gcc", "-O2", "-c", source("calls"), "-o", original], check=True)
    succeed("patch", original, *wish, "-o", patched)
    succeed("verify", original, patched)
