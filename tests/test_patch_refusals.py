"""What patch refuses, with the reason, and without leaving anything behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import toolchain
from tests.support.programs import Builder, Toolchain
from tests.support.tool import refused, staticcall

FORCE = ("--force", "null-returns-value")


class Desk:
    """A folder for outputs that are not to appear."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def refuse(self, program: Path, *options: str, code: str) -> str:
        """See that a patch is refused, by a line that names the file, and leaves nothing; returns the line."""
        before = program.read_bytes()
        outputs = ("-o", self._folder / "out", "--edits", self._folder / "edits", "--report", self._folder / "report")
        line = refused("patch", program, *outputs, *options, code=code)
        assert line.startswith(f"staticcall: {program}: ")
        assert refused("patch", program, "--dry-run", *options, code=code) == line
        assert list(self._folder.iterdir()) == []
        assert program.read_bytes() == before
        return line


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = tmp_path / "desk"
    folder.mkdir()
    return Desk(folder)


# ---- names ----


def test_unknown_names_come_with_suggestions(desk: Desk, built: Builder) -> None:
    program = built("calls", "pie")
    assert "did you mean alpha?" in desk.refuse(program, "--set", "alhpa=alpha_fast", code="unknown-key")
    line = desk.refuse(program, "--set", "alpha=alpha_fats", code="unknown-function")
    assert "did you mean alpha_fast" in line
    assert "check the spelling" in desk.refuse(program, "--set", "xyz=alpha_fast", code="unknown-key")
    assert "check the spelling" in desk.refuse(program, "--set", "alpha=qqqqq", code="unknown-function")


@pytest.mark.parametrize(
    "target", ["hook_total", "__SCK__beta", "__start_static_call_sites", "puts@GLIBC_2.2.5", "puts"]
)
def test_only_functions_of_the_file_are_targets(target: str, desk: Desk, built: Builder) -> None:
    desk.refuse(built("calls", "pie"), "--set", f"alpha={target}", code="unknown-function")


def test_an_address_must_be_a_functions(desk: Desk, built: Builder) -> None:
    program = built("calls", "exec")
    names = toolchain.symbols(program)
    for address in (names["alpha_fast"] + 1, names["__SCK__beta"], 0x10, 1 << 70):
        desk.refuse(program, "--set", f"alpha={address:#x}", code="unknown-function")


def test_a_trampoline_is_no_target(desk: Desk, built: Builder) -> None:
    program = built("calls", "exec")
    address = toolchain.symbols(program)["__SCT__alpha"]
    for target in ("__SCT__alpha", "__SCT__beta", f"{address:#x}"):
        desk.refuse(program, "--set", f"alpha={target}", code="target-is-trampoline")


def test_names_that_several_have_need_an_address(desk: Desk, tmp_path: Path) -> None:
    other = str(toolchain.source("namesakes/other"))
    program = toolchain.build("namesakes", tmp_path, kind="exec", extra=[other])
    listed = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.split()
    for option, code, name in (
        ("single=target", "ambiguous-function", "target"),
        ("twin=main", "ambiguous-key", "__SCK__twin"),
    ):
        line = desk.refuse(program, "--set", option, code=code)
        addresses = [int(listed[at - 2], 16) for at, word in enumerate(listed) if word == name]
        assert len(addresses) == 2
        assert all(f"{address:#x}" in line for address in addresses)
    first, second = sorted(int(listed[at - 2], 16) for at, word in enumerate(listed) if word == "other_target")
    expected = toolchain.expected_output("namesakes")
    for address in (first, second):
        output = tmp_path / f"{address:x}"
        assert staticcall("patch", program, "-o", output, "--set", f"single={address:#x}").code == 0
        result = 214 if toolchain.run(output).endswith("call_single(7) = 214\n") else 114
        assert toolchain.run(output) == expected.replace("call_single(7) = 107", f"call_single(7) = {result}")


def test_ret0_needs_its_function(desk: Desk, built: Builder) -> None:
    desk.refuse(built("library", "shared"), "--set", "scale=RET0", code="no-return0")


def test_one_bad_wish_spoils_all(desk: Desk, built: Builder) -> None:
    desk.refuse(
        built("calls", "pie"), "--set", "alpha=alpha_fast", "--set", "beta=beta", "--bind", code="unknown-function"
    )


# ---- slots ----


@pytest.mark.parametrize("relr", [False, True])
@pytest.mark.parametrize("tools", [Toolchain("gcc", "bfd"), Toolchain("clang", "lld")], ids="-".join)
def test_null_neither_comes_nor_goes_where_a_loader_relocates(
    tools: Toolchain, relr: bool, desk: Desk, built: Builder
) -> None:
    program = built("calls", "pie", tools, relr=relr)
    for key, target in (("hook", "hook_count"), ("hook", "RET0"), ("zero", "NULL"), ("beta", "NULL")):
        for force in ((), FORCE):
            line = desk.refuse(program, "--set", f"{key}={target}", *force, code="slot-relocation")
            assert f"key {key} is {'' if key == 'hook' else 'not '}NULL" in line


def test_a_slot_that_the_file_does_not_store_stays(desk: Desk, built: Builder) -> None:
    for kind in ("exec", "pie"):
        desk.refuse(built("generations", kind), "--set", "posted_vacant=plain_add", code="slot-not-in-file")


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("linker", ["bfd", "lld", "mold"])
def test_a_slot_that_the_dynamic_linker_fills_stays(cc: str, linker: str, desk: Desk, built: Builder) -> None:
    program = built("exported", "shared", Toolchain(cc, linker))  # type: ignore[arg-type]
    relocations = subprocess.run(["readelf", "-rW", program], capture_output=True, text=True, check=True).stdout
    assert "R_X86_64_64" in relocations
    line = desk.refuse(program, "--set", "scale=library_scale_fast", code="slot-resolved-at-run-time")
    assert "library_scale " in line


# ---- NULL and its callers ----


def test_null_needs_a_word_where_no_type_says_that_nothing_is_returned(desk: Desk, built: Builder) -> None:
    line = desk.refuse(built("calls", "exec"), "--set", "beta=NULL", code="null-returns-value")
    assert "--force null-returns-value" in line


@pytest.mark.parametrize("key", ["posted_temporary", "posted_indirect", "posted_permanent"])
def test_null_is_not_put_where_it_would_be_called(key: str, desk: Desk, built: Builder) -> None:
    desk.refuse(built("generations", "exec"), "--set", f"{key}=NULL", *FORCE, code="null-is-called")


def test_null_is_not_put_where_a_site_reads_it(desk: Desk, built: Builder) -> None:
    program = built("calls", "exec")
    line = desk.refuse(program, "--set", "alpha=NULL", *FORCE, code="null-is-called")
    assert f"{toolchain.symbols(program)['alpha_indirect'] + 4:#x}" in line


# ---- distance ----


@pytest.mark.parametrize("policy", ["lutomirski", "torvalds"])  # by the site, and by the trampoline
def test_a_target_out_of_reach_is_refused(policy: str, desk: Desk, tmp_path: Path) -> None:
    far = ["-Wl,--section-start=.far=0x200000000"]
    program = toolchain.build("far", tmp_path, kind="exec", extra=far)
    assert toolchain.run(program) == toolchain.expected_output("far")
    line = desk.refuse(program, "--set", "plain=far_add", "--policy", policy, code="out-of-range")
    assert ("trampoline" if policy == "torvalds" else "site") in line


def test_the_same_target_within_reach_is_taken(tmp_path: Path) -> None:
    program = toolchain.build("far", tmp_path, kind="exec")
    assert staticcall("patch", program, "-o", tmp_path / "out", "--set", "plain=far_add").code == 0
    assert toolchain.run(tmp_path / "out") == "call_plain(7) = 1007\ncall_indirect(7) = 1007\n"


# ---- what is broken already ----


def test_keys_that_disagree_with_their_trampolines_are_not_bound(desk: Desk, built: Builder) -> None:
    program = built("broken/stale_trampoline", "exec")
    for key in ("other", "returns", "vacant"):
        line = desk.refuse(program, "--bind", "--key", key, code="incoherent-key")
        assert f"--set {key}=" in line
    desk.refuse(program, "--bind", code="incoherent-key")


def test_a_site_that_goes_by_another_trampoline_is_left_alone(desk: Desk, built: Builder) -> None:
    program = built("broken/wrong_trampoline", "exec")
    for options in (
        ["--set", "plain=other_add"],
        ["--set", "plain=plain_add"],
        ["--bind"],
        ["--bind", "--key", "plain"],
    ):
        desk.refuse(program, *options, code="damaged-site")
    assert staticcall("patch", program, "--dry-run", "--bind", "--key", "other").code == 0


def test_a_site_that_is_no_call_is_left_alone(desk: Desk, built: Builder) -> None:
    line = desk.refuse(built("forms", "exec"), "--set", "plain=plain_sub", code="damaged-site")
    assert "(b839300000)" in line


@pytest.mark.parametrize("policy", ["lutomirski", "torvalds", "kernel"])
def test_instructions_that_two_records_claim_are_left_alone(policy: str, desk: Desk, built: Builder) -> None:
    overlap, duplicate = built("broken/overlap", "exec"), built("broken/duplicate", "pie")
    for options in (["--set", "plain=plain_sub"], ["--bind"]):
        desk.refuse(overlap, *options, "--policy", policy, code="overlapping-records")
    if policy != "torvalds":
        desk.refuse(duplicate, "--set", "other=plain_add", "--policy", policy, code="overlapping-records")
        desk.refuse(duplicate, "--bind", "--policy", policy, code="damaged-site")


def test_a_site_that_would_not_follow_is_no_reason_to_go(desk: Desk, built: Builder) -> None:
    line = desk.refuse(built("forms", "exec"), "--set", "warn=warn_quietly", code="site-left-behind")
    assert "(warn-trap)" in line


def _changed(program: Path, folder: Path, address: int, code: bytes) -> Path:
    """A copy of a program with other bytes at a linked address of its code."""
    section = next(s for s in toolchain.sections(program).values() if s.address <= address < s.address + s.size)
    data = bytearray(program.read_bytes())
    at = section.offset + address - section.address
    data[at : at + len(code)] = code
    changed = folder / "changed"
    changed.write_bytes(data)
    return changed


def test_a_site_without_room_is_left_alone(desk: Desk, built: Builder, tmp_path: Path) -> None:
    program = built("forms", "exec")
    changed = _changed(program, tmp_path, toolchain.symbols(program)["form_ret"] + 1, b"\x90")
    desk.refuse(changed, "--set", "hook=hook_count", code="site-too-short")


def test_a_trampoline_of_no_known_kind_is_left_alone(desk: Desk, built: Builder, tmp_path: Path) -> None:
    program = built("calls", "exec")
    changed = _changed(program, tmp_path, toolchain.symbols(program)["__SCT__alpha"], b"\x90")
    line = desk.refuse(changed, "--set", "alpha=alpha_fast", code="unknown-trampoline")
    assert "(90" not in line
    assert ": 90" in line
    desk.refuse(changed, "--bind", code="incoherent-key")


@pytest.mark.parametrize("trampoline", ["short_jmp", "jcc"])
def test_short_jumps_past_the_trampoline_are_not_left_behind(
    trampoline: str, desk: Desk, built: Builder, tmp_path: Path
) -> None:
    """One leads to the byte behind the trampoline's start: nothing rewrites it, and the key would go on alone."""
    program = built("forms", "exec")
    names = toolchain.symbols(program)
    address = names["form_short_jmp"] + 1 if trampoline == "short_jmp" else names["form_jcc_short"] + 3
    distance = toolchain.bytes_at(program, address, 1)[0]
    changed = _changed(program, tmp_path, address, bytes([distance + 1]))
    desk.refuse(changed, "--set", "near=plain_sub", code="site-left-behind")
