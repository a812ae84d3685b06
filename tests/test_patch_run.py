"""Patched programs run: bound ones do what they did, retargeted ones exactly what was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import calls_model, toolchain
from tests.support.programs import Builder, Toolchain
from tests.support.tool import POLICIES, Patch, patch, report, staticcall, succeed
from tests.support.toolchain import Compiler, Kind, Linker


class Build(NamedTuple):
    kind: Kind
    cc: Compiler = "gcc"
    linker: Linker = "bfd"
    relr: bool = False

    def of(self, fixture: str, built: Builder) -> Path:
        return built(fixture, self.kind, Toolchain(self.cc, self.linker), relr=self.relr)


def _name(build: Build) -> str:
    return "-".join([build.kind, build.cc, build.linker, *(["relr"] if build.relr else [])])


BUILDS = (
    *(Build(kind, cc) for kind in ("exec", "pie") for cc in ("gcc", "clang")),
    Build("static"),
    Build("pie", "gcc", relr=True),
    Build("pie", "clang", relr=True),
    Build("exec", "clang", "lld"),
    Build("pie", "gcc", "mold"),
)
every_build = pytest.mark.parametrize("build", BUILDS, ids=_name)


def _verified(made: Patch, *options: str) -> None:
    """The proof by the command of its own, there and back."""
    assert succeed("verify", *options, made.original, made.output).startswith("verified: ")
    assert succeed("verify", *options, made.output, made.original).startswith("verified: ")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fixture", ["calls", "forms", "generations", "demo"])
@every_build
def test_a_bound_program_does_what_it_did(
    build: Build, fixture: str, policy: str, built: Builder, tmp_path: Path
) -> None:
    program = build.of(fixture, built)
    made = patch(program, tmp_path / "bound", "--bind", "--policy", policy)
    assert toolchain.run(made.output) == toolchain.expected_output(fixture)
    assert {edit["kind"] for edit in made.edits} <= {"site"}
    sites = {site["address"]: site for site in report("--policy", policy, program)["sites"]}
    wanted = {address for address, site in sites.items() if site["verdict"] == "direct"}
    assert {edit["address"] for edit in made.edits} <= wanted
    by_trampoline = {address for address in wanted if sites[address]["reason"] != "already-direct"}
    assert {edit["address"] for edit in made.edits} >= by_trampoline
    _verified(made)


@every_build
def test_a_bound_program_has_no_other_layout(build: Build, built: Builder, tmp_path: Path) -> None:
    made = patch(build.of("calls", built), tmp_path / "bound", "--bind", "--policy", "kernel")
    _verified(made, "--deep")
    made.revert()


@pytest.mark.parametrize("line", ["8", "32", "128"])
@pytest.mark.parametrize("policy", ["lutomirski", "rel32"])
def test_the_line_decides_what_is_bound(line: str, policy: str, built: Builder, tmp_path: Path) -> None:
    options = ("--policy", policy, "--line", line)
    made = patch(built("calls", "pie"), tmp_path / "bound", "--bind", *options)
    direct = {site["address"] for site in report(*options, made.original)["sites"] if site["verdict"] == "direct"}
    assert {edit["address"] for edit in made.edits} == direct
    assert toolchain.run(made.output) == calls_model.prints()


def test_bound_sites_lead_straight_to_the_target(built: Builder, tmp_path: Path) -> None:
    """By objdump's word, for every form that the kernel's policy patches."""
    program = built("calls", "exec")
    names = toolchain.symbols(program)
    bound = patch(program, tmp_path / "bound", "--bind", "--policy", "kernel").output
    for function, lead, text in (
        ("alpha_inside", 4, r"call .* <alpha_plain>"),
        ("alpha_split", 4, r"call .* <alpha_plain>"),
        ("alpha_indirect", 4, r"call \*0x.* # .* <__SCK__alpha>"),
        ("beta_tail", 0, r"jmp .* <beta_plain>"),
        ("beta_jcc_split", 2, r"js .* <beta_plain>"),
        ("beta_prefixed", 4, r"cs call .* <__SCT__beta>"),
        ("hook_inside", 1, r"nopl 0x0\(%rax,%rax,1\)"),
        ("hook_tail", 0, "ret"),
        ("zero_inside", 4, "cs cs cs xor %eax,%eax"),
        ("zero_tail", 0, r"jmp .* <__static_call_return0>"),
    ):
        assert re.fullmatch(text, toolchain.disassemble(bound, names[function] + lead)), function


SETS: tuple[Mapping[str, str], ...] = (
    {"alpha": "alpha_fast"},
    {"beta": "beta_fast"},
    {"zero": "zero_plus"},
    {"alpha": "RET0"},
    {"beta": "alpha_plain", "zero": "beta_fast"},
    {"alpha": "alpha_fast", "beta": "beta_fast", "zero": "zero_plus"},
)


def _options(sets: Mapping[str, str]) -> list[str]:
    return [option for key, target in sets.items() for option in ("--set", f"{key}={target}")]


@pytest.mark.parametrize("sets", SETS, ids=lambda sets: " ".join(f"{key}={target}" for key, target in sets.items()))
@every_build
def test_a_set_key_changes_all_its_lines_and_no_other(
    build: Build, sets: Mapping[str, str], built: Builder, tmp_path: Path
) -> None:
    program = build.of("calls", built)
    assert calls_model.prints() == toolchain.expected_output("calls")
    for policy in ("lutomirski", "torvalds", "kernel"):
        made = patch(program, tmp_path / policy, *_options(sets), "--policy", policy)
        assert toolchain.run(made.output) == calls_model.prints(**sets)
        assert {edit["key"] for edit in made.edits} == set(sets)
        slot = "relocation" if build.kind == "pie" and not build.relr else "key"
        assert [edit["kind"] for edit in made.edits if edit["kind"] != "site"].count(slot) == len(sets)
        _verified(made)
        keys = {key["name"]: key["func"] for key in report(made.output)["keys"]}
        return0 = "__static_call_return0"
        assert all(keys[key] == (return0 if target == "RET0" else target) for key, target in sets.items())
    made.revert()


def test_set_and_bind_go_together(built: Builder, tmp_path: Path) -> None:
    program = built("calls", "pie")
    options = ("--set", "alpha=alpha_fast", "--bind", "--policy", "kernel")
    made = patch(program, tmp_path / "out", *options)
    assert toolchain.run(made.output) == calls_model.prints(alpha="alpha_fast")
    assert {edit["key"] for edit in made.edits} == {"alpha", "beta", "hook", "zero"}
    made = patch(program, tmp_path / "out", *options, "--key", "z*")
    assert {edit["key"] for edit in made.edits} == {"alpha", "zero"}
    assert toolchain.run(made.output) == calls_model.prints(alpha="alpha_fast")


def test_a_target_may_be_given_by_its_address_and_a_key_by_its_symbol(built: Builder, tmp_path: Path) -> None:
    program = built("calls", "exec")
    names = toolchain.symbols(program)
    for key in ("alpha", "__SCK__alpha", f"{names['__SCK__alpha']:#x}"):
        made = patch(program, tmp_path / "out", "--set", f"{key}={names['alpha_fast']:#x}")
        assert toolchain.run(made.output) == calls_model.prints(alpha="alpha_fast")


# ---- NULL, where no relocation stands in the way ----


@pytest.mark.parametrize("build", [Build("exec"), Build("exec", "clang"), Build("static")], ids=_name)
@pytest.mark.parametrize("policy", POLICIES)
def test_null_comes_and_goes_where_nothing_is_relocated(
    build: Build, policy: str, built: Builder, tmp_path: Path
) -> None:
    program = build.of("calls", built)
    counting = patch(program, tmp_path / "counting", "--set", "hook=hook_count", "--policy", policy)
    assert toolchain.run(counting.output) == calls_model.prints(hook="hook_count")
    null = ("--set", "hook=NULL", "--policy", policy)
    again = patch(counting.output, tmp_path / "null", *null)
    assert "returns nothing by DWARF: void hook_count(int)" in again.out
    assert toolchain.run(again.output) == calls_model.prints()
    assert {site["form"] for site in report("--key", "hook", again.output)["sites"]} <= {
        "call",
        "tail_jmp",
        "nop",
        "ret",
    }
    _verified(again)
    assert again.revert().read_bytes() == counting.output.read_bytes()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_form_of_site_can_do_nothing_and_come_back(policy: str, built: Builder, tmp_path: Path) -> None:
    program = built("calls", "exec")
    null = ("--set", "beta=NULL", "--set", "zero=NULL", "--force", "null-returns-value", "--policy", policy)
    made = patch(program, tmp_path / "null", *null)
    expected, found = calls_model.prints().splitlines(), toolchain.run(made.output).splitlines()
    for before, after in zip(expected, found, strict=True):  # what the others give back is nobody's value
        assert before == after or before.startswith(("beta_", "zero_"))
        assert ("_jcc" not in before) or after.startswith(before.partition(",")[0])
    assert {one["severity"] for one in report(made.output)["findings"]} <= {"note"}
    _verified(made)
    back = patch(made.output, tmp_path / "back", "--set", "beta=beta_plain", "--set", "zero=RET0", "--policy", policy)
    assert toolchain.run(back.output) == calls_model.prints()
    _verified(back)


# ---- the other programs ----


@pytest.mark.parametrize(
    "build", [Build("shared", cc, linker) for cc in ("gcc", "clang") for linker in ("bfd", "lld", "mold")], ids=_name
)
@pytest.mark.parametrize("relr", [False, True])
def test_a_library_is_patched_apart_from_its_host(build: Build, relr: bool, built: Builder, tmp_path: Path) -> None:
    library = build._replace(relr=relr).of("library", built)
    hosts = [built("library/host", kind) for kind in ("exec", "pie")]
    runs = not relr or build.linker == "bfd"  # glibc insists on a version note that the others do not write
    for policy in POLICIES:
        bound = patch(library, tmp_path / "bound.so", "--bind", "--policy", policy)
        fast = patch(library, tmp_path / "fast.so", "--set", "scale=library_scale_fast", "--policy", policy)
        assert {edit["kind"] for edit in fast.edits} - {"site"} == {"trampoline", "key" if relr else "relocation"}
        if runs:
            assert toolchain.run(hosts[0], bound.output) == toolchain.expected_output("library")
            assert toolchain.run(hosts[1], fast.output) == (
                "host_call(7) = 35\nlibrary_run(7) = 84000\nlibrary_tail_run(7) = 21000\nlibrary_hooks() = 0\n"
            )
    _verified(bound, "--deep")
    _verified(fast, "--deep")
    fast.revert()


def test_a_host_is_patched_apart_from_its_library(built: Builder, tmp_path: Path) -> None:
    library = built("library", "shared")
    for kind in ("exec", "pie"):
        fast = patch(built("library/host", kind), tmp_path / kind, "--set", "scale=host_scale_fast").output
        assert toolchain.run(fast, library) == toolchain.expected_output("library").replace(" 35\n", " 35000\n")


@pytest.mark.parametrize("build", [Build("shared", cc) for cc in ("gcc", "clang")], ids=_name)
def test_what_run_time_decides_is_left_to_it(build: Build, built: Builder, tmp_path: Path) -> None:
    library, host = build.of("exported", built), built("library/host", "exec")
    made = patch(library, tmp_path / "bound.so", "--bind", "--policy", "kernel")
    assert {edit["key"] for edit in made.edits} == {"offset"}
    assert toolchain.run(host, made.output) == toolchain.expected_output("exported")


def test_a_site_in_any_state_follows_its_key(built: Builder, tmp_path: Path) -> None:
    """Nops, returns and cleared registers become calls and jumps again, short jumps follow the trampoline."""
    expected = toolchain.expected_output("forms")
    for old, new in (
        ("form_jcc_short(7) = 7, (-7) = -6", "form_jcc_short(7) = 7, (-7) = -8"),
        ("form_short_jmp(7) = 8, (-7) = -6", "form_short_jmp(7) = 6, (-7) = -8"),
        ("form_ret0_cs(7) = 0, (-7) = 0", "form_ret0_cs(7) = 8, (-7) = -6"),
        ("form_ret0_data16(7) = 0, (-7) = 0", "form_ret0_data16(7) = 8, (-7) = -6"),
        ("hook total 0", "hook total 11"),
    ):
        assert old in expected
        expected = expected.replace(old, new)
    sets = {"near": "plain_sub", "zero": "plain_add", "hook": "hook_count"}
    for policy in POLICIES:
        made = patch(built("forms", "exec"), tmp_path / policy, *_options(sets), "--policy", policy)
        assert toolchain.run(made.output) == expected
        _verified(made)
        made.revert()


FOLLOWING = ("ud1_jmp", "sct_jmp", "posted_temporary", "posted_indirect", "posted_permanent", "posted_jmp")
VACANT = ("ud1_ret", "sct_ret", "sct_ret_nops", "thunk")


@pytest.mark.parametrize("policy", ["lutomirski", "torvalds"])  # by the site, and by the trampoline
@every_build
def test_trampolines_of_every_generation_follow(build: Build, policy: str, built: Builder, tmp_path: Path) -> None:
    keys = [*FOLLOWING, "return0", *(VACANT if build.kind != "pie" else ())]
    made = patch(
        build.of("generations", built),
        tmp_path / "out",
        *_options(dict.fromkeys(keys, "plain_sub")),
        "--policy",
        policy,
    )
    expected = toolchain.expected_output("generations")
    for key in (*FOLLOWING, "return0"):
        expected = expected.replace(f"call_{key}(7) = {0 if key == 'return0' else 8}\n", f"call_{key}(7) = 6\n")
    assert toolchain.run(made.output) == expected
    changed = {edit["key"] for edit in made.edits if edit["kind"] == "trampoline"}
    assert changed == set(keys) - {"posted_temporary", "posted_indirect"}  # these two read the key themselves
    assert report(made.output)["findings"] == []
    _verified(made)
    made.revert()


@pytest.mark.parametrize("policy", ["lutomirski", "torvalds"])
def test_trampolines_return_where_there_is_no_target(policy: str, built: Builder, tmp_path: Path) -> None:
    keys = [*VACANT, "ud1_jmp", "sct_jmp", "return0", "posted_jmp"]
    sets = _options(dict.fromkeys(keys, "NULL"))
    made = patch(
        built("generations", "exec"), tmp_path / "out", *sets, "--force", "null-returns-value", "--policy", policy
    )
    toolchain.run(made.output)  # what comes back is nobody's value, but it comes back
    image = report(made.output)
    assert image["findings"] == []
    assert {key["name"] for key in image["keys"] if key["func"] is None} == {*keys, "posted_vacant"}


@pytest.mark.parametrize("build", [Build("exec"), Build("pie", "clang", "lld")], ids=_name)
def test_the_demo_gets_faster_and_tells(build: Build, built: Builder, tmp_path: Path) -> None:
    sets = {"checksum": "checksum_fast", **({"log": "log_print"} if build.kind == "exec" else {})}
    made = patch(build.of("demo", built), tmp_path / "demo", *_options(sets))
    lines = toolchain.run(made.output).splitlines()
    (picture,) = toolchain.expected_output("demo").splitlines()
    assert lines.pop() == picture.replace("checksum_plain", "checksum_fast")
    steps = [line.split()[:2] for line in lines]
    assert steps == ([["log:", "draw"], ["log:", "blur"]] if build.kind == "exec" else [])


def test_binding_brings_stale_sites_back_to_their_key(built: Builder, tmp_path: Path) -> None:
    made = patch(built("broken/stale_site", "pie"), tmp_path / "out", "--bind")
    assert toolchain.run(made.output) == "".join(
        f"{name}(7) = 8\n" for name in ("fresh", "bound", "stale_call", "stale_jmp")
    )
    assert report(made.output)["findings"] == []


def test_setting_makes_key_and_trampoline_agree(built: Builder, tmp_path: Path) -> None:
    made = patch(built("broken/stale_trampoline", "pie"), tmp_path / "out", "--set", "other=plain_add")
    assert "call_other(7) = 8\n" in toolchain.run(made.output)
    assert {edit["kind"] for edit in made.edits} == {"site", "trampoline"}
    assert {one["message"].split()[1] for one in report(made.output)["findings"]} == {"returns", "vacant"}


def test_records_twice_over_are_one_site(built: Builder, tmp_path: Path) -> None:
    made = patch(built("broken/duplicate", "exec"), tmp_path / "out", "--bind", "--key", "none")
    assert made.edits == []
    outcome = staticcall("patch", made.original, "-o", tmp_path / "out", "--bind", "--policy", "torvalds")
    assert outcome.code == 0
    assert "  0 edits, 0 bytes\n" in outcome.out


def test_only_what_the_table_lists_is_patched(built: Builder, tmp_path: Path) -> None:
    made = patch(built("broken/unrecorded", "pie"), tmp_path / "bound", "--bind", "--policy", "kernel")
    assert len(made.edits) == 1
    made = patch(made.original, tmp_path / "set", "--set", "plain=plain_sub", "--policy", "kernel")
    assert toolchain.run(made.output) == toolchain.expected_output("broken/unrecorded").replace("= 8", "= 6").replace(
        "= -6", "= -8"
    )


def test_a_program_with_nothing_to_bind_is_copied(tmp_path: Path, built: Builder) -> None:
    made = patch(built("calls", "exec"), tmp_path / "out", "--bind", "--key", "none")
    assert made.edits == []
    assert made.output.read_bytes() == made.original.read_bytes()
