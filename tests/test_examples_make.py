"""Make's fragment, its launcher and its gate, and the program that is fitted to the machine when it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.examples import EXAMPLES, GATE, LAUNCHER, RUNTIME, Project, destinations, need
from tests.support.tool import Outcome, succeed
from tests.support.toolchain import disassemble, records, sections


@pytest.fixture
def project(tmp_path: Path) -> Project:
    need("make")
    return Project("make", tmp_path)


# The gate that wants every site direct


def _end_in_a_call(project: Project) -> None:
    project.edit("work.c", "return 3 * static_call(hash)(bytes, half) +", "return")


def test_the_direct_gate_stops_a_program_with_a_jump(project: Project) -> None:
    _end_in_a_call(project)
    project.run("make", "bound", "STATICCALL_ALIGN=")
    bound = project.folder / "app.bound"
    assert [disassemble(bound, record.site).split()[0] for record in records(bound)] == ["jmp"]
    assert destinations(bound) == ["__SCT__hash"]
    stopped = project.outcome("make", "check", "STATICCALL_ALIGN=")
    assert stopped.code != 0
    assert "not every site is direct" in stopped.err


def test_the_same_program_passes_with_the_options_that_make_sites_direct(project: Project) -> None:
    _end_in_a_call(project)
    project.run("make", "check")
    assert destinations(project.folder / "app.bound") == ["hash_sum"]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_with_these_options_no_call_crosses_a_line(project: Project, compiler: str) -> None:
    need(compiler)
    with (project.folder / "work.c").open("a", encoding="utf-8") as source:
        source.writelines(
            f"uint32_t f{n}(uint32_t x) {{ return x * {n * 777}u + static_call(hash)((void *)0, x + {n}); }}\n"
            for n in range(300)
        )
    project.run("make", "check", f"CC={compiler}")
    sites = [record.site for record in records(project.folder / "app.bound")]
    assert len(sites) == 302
    assert all(site % 64 <= 64 - 5 for site in sites)


def test_the_gate_finds_the_one_object_that_nobody_annotated(project: Project) -> None:
    project.edit("main.c", 'printf("updated', 'static_call(hash)(NULL, 0);\n    printf("updated')
    project.run("make", "main.o", STATICCALL_IDLE="1")
    project.run("make", "app.bound")
    assert len(destinations(project.folder / "app.bound")) == 2
    stopped = project.outcome("make", "check")
    assert stopped.code != 0
    assert "has no record" in stopped.err


def test_the_gate_tells_a_file_that_is_none_apart(project: Project) -> None:
    assert project.outcome("sh", GATE, "work.c").code == 3


# The launcher


def _launch(project: Project, *arguments: str, tool: str = "staticcall") -> Outcome:
    include = f"-I{RUNTIME / 'include'}"
    return project.outcome("sh", LAUNCHER, "gcc", include, *arguments, STATICCALL=tool)


def test_the_launcher_annotates_what_was_compiled(project: Project) -> None:
    for form in (("-o", "work.o"), ("-owork.o",)):
        (project.folder / "work.o").unlink(missing_ok=True)
        assert _launch(project, "-c", "work.c", *form) == Outcome(0, "", "")
        assert sections(project.folder / "work.o")["static_call_sites"].size == 2 * 8


def test_an_object_that_cannot_be_annotated_is_not_left_behind(project: Project) -> None:
    # Else the next build would take it for a finished one.
    assert _launch(project, "-c", "work.c", "-o", "work.o", tool="false").code == 1
    assert not (project.folder / "work.o").exists()


def test_an_object_without_calls_costs_no_process(project: Project) -> None:
    (project.folder / "none.c").write_text("int none(void) { return 0; }\n", encoding="utf-8")
    assert _launch(project, "-c", "none.c", "-o", "none.o", tool="false").code == 0


def test_the_compilers_own_failure_is_handed_on(project: Project) -> None:
    (project.folder / "wrong.c").write_text("int wrong(\n", encoding="utf-8")
    failed = _launch(project, "-c", "wrong.c", "-o", "wrong.o", tool="false")
    assert failed.code == 1
    assert "wrong.c:1" in failed.err


def test_an_object_without_a_name_is_refused(project: Project) -> None:
    failed = _launch(project, "-c", "work.c")
    assert (failed.code, failed.out) == (2, "")
    assert "-o" in failed.err


def test_links_and_questions_pass(project: Project) -> None:
    assert _launch(project, "--version", tool="false").code == 0
    assert _launch(project, "-E", "work.c", "-o", "work.i", tool="false").code == 0
    project.run("make")
    files = ("main.o", "work.o", "hash.o", "runtime.o")
    assert _launch(project, *files, "-o", "linked", tool="false").code == 0
    assert project.run("./linked") == project.run("./app")


# Install


@pytest.fixture
def built(tmp_path: Path) -> Project:
    need("make")
    project = Project("install", tmp_path)
    project.run("make")
    return project


def _machine(project: Project, flags: str) -> str:
    path = project.folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: avx2 in name only\nflags\t\t: {flags}\n", encoding="utf-8")
    return f"CPUINFO={path}"


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        ("fpu avx avx2 bmi2", "sum_avx2"),
        ("fpu avx2", "sum_avx2"),
        ("fpu avx bmi2", "sum_plain"),
        ("fpu avx avx2x notavx2", "sum_plain"),
    ],
)
def test_what_is_installed_calls_the_variant_for_the_machine(built: Project, flags: str, variant: str) -> None:
    said = built.run("make", "install", "PREFIX=/opt", f"DESTDIR={built.folder / 'root'}", _machine(built, flags))
    installed = built.folder / "root" / "opt" / "bin" / "app"
    assert f"{installed}: {variant}" in said
    assert destinations(built.folder / "build" / "app") == ["__SCT__sum"]
    assert destinations(installed) == [variant]
    succeed("verify", built.folder / "build" / "app", installed)


def test_all_variants_give_the_same_sum_here(built: Project) -> None:
    built.run("make", "install", f"PREFIX={built.folder / 'here'}")
    built.run("make", "install", f"PREFIX={built.folder / 'plain'}", _machine(built, "fpu"))
    here = built.run("here/bin/app").split()
    plain = built.run("plain/bin/app").split()
    words = [line.split() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    able = any("avx2" in line for line in words if line[:1] == ["flags"])
    assert here[0] == ("avx2" if able else "plain")
    assert plain[0] == "plain"
    assert built.run("build/app").split() == plain
    assert here[1] == plain[1] == str(sum(i * 1001 - 7 for i in range(1003)))


def test_a_new_installation_takes_the_place_of_the_old_one(built: Project) -> None:
    for flags, variant in (("avx2", "sum_avx2"), ("fpu", "sum_plain")):
        built.run("make", "install", f"PREFIX={built.folder / 'here'}", _machine(built, flags))
        assert destinations(built.folder / "here" / "bin" / "app") == [variant]


def test_the_cost_of_the_choice_is_recorded(built: Project, record_property: Callable[[str, object], None]) -> None:
    seconds = built.seconds("make", "install", f"PREFIX={built.folder / 'here'}")
    copied = built.seconds("install", "-D", "build/app", "there/bin/app")
    record_property("install_seconds", round(seconds, 3))
    record_property("install_seconds_without", round(copied, 3))
    assert seconds < copied + 60


def test_nothing_is_installed_of_a_program_without_the_static_call(built: Project) -> None:
    refused = built.outcome("sh", "install.sh", "/bin/true", "here/app")
    assert refused.code != 0
    assert not (built.folder / "here" / "app").exists()


# What a user copies


def test_every_example_says_how_to_use_it() -> None:
    for folder in EXAMPLES.iterdir():
        assert (folder / "README.md").read_text(encoding="utf-8").startswith("# "), folder


def test_scripts_can_be_run_as_they_are() -> None:
    assert shutil.which(str(LAUNCHER))
    assert shutil.which(str(GATE))
    assert shutil.which(str(RUNTIME / "kbuild" / "staticcall-objtool"))
