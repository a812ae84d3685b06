"""The CMake package beyond its example: prefixes, shared libraries, other launchers, and what it refuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.examples import RUNTIME, Project, destinations, need
from tests.support.tool import Outcome
from tests.support.toolchain import bytes_at, records

_HEAD = """\
cmake_minimum_required(VERSION 3.16)
project(odd {languages})
find_package(staticcall {version} REQUIRED CONFIG)
"""
_LIBRARY = """\
add_library(scale SHARED scale.c)
target_link_libraries(scale PRIVATE staticcall::runtime_shared)
staticcall_annotate(scale)
staticcall_annotate(scale)
staticcall_align(scale)
staticcall_bind(scale scale=thrice)
add_executable(main main.c)
target_link_libraries(main PRIVATE scale)
"""
_SCALE = """\
#include "staticcall.h"
/* Hidden: what another library may put itself before is for the dynamic linker to find, not for a patch. */
#pragma GCC visibility push(hidden)
int twice(int x) { return 2 * x; }
int thrice(int x) { return 3 * x; }
int four_times(int x) { return 4 * x; }
#pragma GCC visibility pop
DEFINE_STATIC_CALL(scale, twice);
int scaled(int x) { return static_call(scale)(x) + 1; }
__attribute__((constructor)) static void init(void) { static_call_init(); }
int update(void) { return static_call_update(scale, four_times); }
"""
_MAIN = """\
#include <stdio.h>
int scaled(int x);
int update(void);
int main(void)
{
    printf("%d", scaled(10));
    int error = update();
    printf(" %d %d\\n", error, scaled(10));
    return 0;
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    need("cmake", "ninja")
    # A folder with a blank, as users have.
    return Project("cmake", tmp_path / "an odd place")


def _configure(project: Project, *options: str, lines: str, version: str = "", languages: str = "C") -> Outcome:
    text = _HEAD.format(version=version, languages=languages) + lines
    (project.folder / "CMakeLists.txt").write_text(text, encoding="utf-8")
    # The compilers are known to work: looking takes most of the time.
    known = ("-DCMAKE_C_COMPILER_WORKS=1", "-DCMAKE_CXX_COMPILER_WORKS=1")
    return project.outcome("cmake", "-GNinja", "-Bbuild", f"-Dstaticcall_DIR={RUNTIME / 'cmake'}", *known, *options)


def _library(project: Project) -> None:
    (project.folder / "scale.c").write_text(_SCALE, encoding="utf-8")
    (project.folder / "main.c").write_text(_MAIN, encoding="utf-8")


def test_sites_behind_prefixes_are_bound(project: Project) -> None:
    need("g++")
    project.run("cmake", "-GNinja", "-Bbuild", f"-Dstaticcall_DIR={RUNTIME / 'cmake'}")
    project.run("cmake", "--build", "build", "--target", "app_prefixed")
    program = project.folder / "build" / "app_prefixed"
    assert destinations(program) == ["hash_sum"] * 2
    assert {bytes_at(program, record.site, 2).hex() for record in records(program)} == {"2ee8"}


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_a_shared_library_is_annotated_bound_and_updated(project: Project, compiler: str) -> None:
    need(compiler)
    _library(project)
    configured = _configure(project, f"-DCMAKE_C_COMPILER={compiler}", lines=_LIBRARY)
    assert configured.code == 0, configured
    project.run("cmake", "--build", "build")
    assert destinations(project.folder / "build" / "libscale.so") == ["thrice"]
    assert project.run("build/main") == "31 0 41\n"


def test_other_launchers_stand_behind_the_annotation(project: Project) -> None:
    _library(project)
    log = project.folder / "log"
    other = project.folder / "other.sh"
    other.write_text(f'echo "$@" >> {shlex.quote(str(log))}\nexec "$@"\n', encoding="utf-8")
    lines = f'set_property(GLOBAL PROPERTY RULE_LAUNCH_COMPILE "sh \\"{other}\\"")\n' + _LIBRARY
    assert _configure(project, "-DCMAKE_C_COMPILER_LAUNCHER=env", lines=lines).code == 0
    project.run("cmake", "--build", "build")
    assert re.search(r"^\S*env \S+ .*scale\.c$", log.read_text(encoding="utf-8"), re.MULTILINE)
    assert destinations(project.folder / "build" / "libscale.so") == ["thrice"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("add_library(only INTERFACE)\nstaticcall_annotate(only)\n", "only is of type INTERFACE_LIBRARY"),
        ("staticcall_align(nothing)\n", "there is no target nothing"),
        ("add_library(part STATIC hash.c)\nstaticcall_bind(part)\n", "part is of type STATIC_LIBRARY"),
        ("add_library(part SHARED hash.c)\nstaticcall_bind(part hash)\n", "hash is not KEY=TARGET"),
        (
            "add_library(part SHARED hash.c)\nset_target_properties(part PROPERTIES INTERPROCEDURAL_OPTIMIZATION ON)\n"
            "staticcall_annotate(part)\n",
            "made by the linker",
        ),
    ],
)
def test_what_cannot_be_is_refused(project: Project, lines: str, complaint: str) -> None:
    refused = _configure(project, lines=lines)
    assert refused.code != 0
    assert complaint in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("version", "languages", "complaint"),
    [("99", "C", "version: "), ("", "CXX", "add C to the languages")],
)
def test_a_package_that_does_not_fit_is_not_found(
    project: Project, version: str, languages: str, complaint: str
) -> None:
    refused = _configure(project, lines="", version=version, languages=languages)
    assert refused.code != 0
    assert complaint in " ".join(refused.err.split())


def test_a_bind_that_is_refused_leaves_no_program(project: Project) -> None:
    _library(project)
    assert _configure(project, lines=_LIBRARY.replace("scale=thrice", "scale=nobody")).code == 0
    built = project.outcome("cmake", "--build", "build")
    assert built.code != 0
    assert "nobody" in built.out
    assert project.outcome("cmake", "--build", "build").code != 0, "a second build must not take it for finished"
