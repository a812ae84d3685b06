"""staticcall.h: what compiles and what does not, and programs that were never annotated."""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import _unavailable
from tests.support.header import INCLUDE, SOURCES, STRICT, Language, Make, Maker, Recipe, prints, run_program
from tests.support.programs import COMPILERS
from tests.support.tool import patch, refused, report, succeed
from tests.support.toolchain import TIMEOUT_SECONDS, Compiler, Linker
from tests.support.user_objects import run_tool

LANGUAGES: tuple[Language, ...] = ("c", "c++")
STANDARDS = {"c": ("c11", "gnu17"), "c++": ("c++17", "gnu++20")}
MORE_WARNINGS = ("-Wconversion", "-Wshadow", "-Wundef", "-Wcast-qual", "-Wwrite-strings", "-Wmissing-declarations")
FLAGS = (
    ("-O0", "-g"),
    ("-O2", "-fPIC"),
    ("-Os", "-fno-plt", "-fcf-protection"),
    ("-O3", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-fstack-protector-strong"),
    ("-O2", "-flto"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("header"), _unavailable)


# ---- what compiles ----


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize(("cc", "language"), list(product(COMPILERS, LANGUAGES)))
def test_it_compiles_without_a_warning_and_runs(
    made: Maker, tmp_path: Path, cc: Compiler, language: Language, flags: tuple[str, ...]
) -> None:
    compiler = made.compiler(cc, language)
    for standard in STANDARDS[language]:
        program = tmp_path / standard
        options = ["-x", language, f"-std={standard}", *STRICT, *MORE_WARNINGS, *flags, f"-I{INCLUDE}"]
        # Clang's own linker plugin is not everywhere; lld has one built in.
        linker = ["-fuse-ld=lld"] if "-flto" in flags and cc == "clang" else []
        run_tool(
            compiler,
            *options,
            *linker,
            *(SOURCES / f"{name}.c" for name in ("calls", "targets", "main")),
            "-o",
            program,
        )

        assert run_program(program) == prints()


DEFINITIONS = """
#include "calls.h"
typedef int (*pointer)(int);
long wide(long x);
int two(int x, int y);
extern pointer right;
int change(void);
"""
# What may stand in the body of a function, and what may not.
RIGHT = (
    "static_call_update(scale, plus_two)",
    "static_call_update(scale, &plus_two)",
    "static_call_update(scale, right)",
    "static_call_update(note, note_twice)",
    "(static_call_cond(note)(1), 0)",
    "static_call_query(scale) == plus_two",
    "static_call(scale)(1)",
)
WRONG = (
    "static_call_update(scale, wide)",
    "static_call_update(scale, two)",
    "static_call_update(scale, note_twice)",
    "static_call_update(note, plus_two)",
    "static_call_update(scale, (void *)plus_two)",
    "static_call_update(scale, &right)",
    "static_call_update(scale, &noted)",
    "static_call_update(scale, 1)",
    "static_call_update(unheard_of, plus_two)",
    "static_call_cond(note)(1)",
    "static_call_query(scale) == wide",
    'static_call(scale)("text")',
    "static_call(scale)(1, 2)",
)
# In C++ nothing tells a null pointer from one of the right type.
WRONG_IN_C = ("static_call_update(scale, NULL)", "static_call_update(scale, 0)")


def compiles(made: Maker, cc: Compiler, language: Language, text: str) -> bool:
    command = [made.compiler(cc, language), "-x", language, f"-std={STANDARDS[language][0]}", *STRICT, "-fsyntax-only"]
    folders = [f"-I{INCLUDE}", f"-I{SOURCES}"]
    done = subprocess.run(
        [*command, *folders, "-"], input=text, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert (done.returncode == 0) is (done.stderr == ""), done
    return done.returncode == 0


@pytest.mark.parametrize(("cc", "language"), list(product(COMPILERS, LANGUAGES)))
def test_a_target_of_another_type_does_not_compile(made: Maker, cc: Compiler, language: Language) -> None:
    def taken(expressions: tuple[str, ...]) -> set[str]:
        return {
            one
            for one in expressions
            if compiles(made, cc, language, f"{DEFINITIONS}int change(void) {{ return {one}; }}\n")
        }

    assert taken(RIGHT) == set(RIGHT)
    assert taken(WRONG + (WRONG_IN_C if language == "c" else ())) == set()


@pytest.mark.parametrize(("cc", "language"), list(product(COMPILERS, LANGUAGES)))
def test_a_definition_of_another_type_does_not_compile(made: Maker, cc: Compiler, language: Language) -> None:
    head = '#include "calls.h"\nlong wide(long x);\n'

    assert compiles(made, cc, language, f"{head}DEFINE_STATIC_CALL(scale, plus_two);\n")
    for define in ("DEFINE_STATIC_CALL", "DEFINE_STATIC_CALL_NULL", "DEFINE_STATIC_CALL_RET0", "USE_STATIC_CALL"):
        assert not compiles(made, cc, language, f"{head}{define}(scale, wide);\n"), define


# ---- what runs without the tool ----

UPDATED = prints("plus_two", "note_twice", "plus_seven") + prints() + prints("RET0")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("gcc", "bfd", "pie"),
        Recipe("gcc", "lld", "static"),
        Recipe("gcc", "mold", "shared"),
        Recipe("clang", "lld", "pie"),
        Recipe("clang", "bfd", "shared"),
        Recipe("gcc", "bfd", "exec", language="c++"),
        Recipe("clang", "mold", "static-pie", language="c++"),
    ],
    ids=str,
)
def test_a_program_that_was_never_annotated_works_and_is_updated(made: Maker, recipe: Recipe) -> None:
    plain = recipe._replace(annotated=False)
    updating = plain._replace(runtime=True)

    assert made.start(plain, made.program(plain)) == prints()
    shown = made.start(updating, made.program(updating))
    assert shown == f"{prints()}{prints()}{UPDATED}0 sites, 0 direct, 0 foreign\n"


def test_parts_with_and_without_records_are_linked_together(made: Maker, tmp_path: Path) -> None:
    recipe = Recipe("gcc", "bfd", "pie", runtime=True)
    calls = made.object("calls.c", recipe._replace(annotated=False))

    program = made.link(recipe, [calls, *made.objects(recipe)[1:]], tmp_path / "program")

    assert run_program(program).startswith(prints() * 2 + UPDATED)


@pytest.mark.parametrize(("cc", "linker"), [("gcc", "bfd"), ("gcc", "mold"), ("clang", "lld")])
def test_the_table_survives_the_collection_of_unused_sections(
    made: Maker, tmp_path: Path, cc: Compiler, linker: Linker
) -> None:
    recipe = Recipe(cc, linker, "pie", runtime=True)
    sections = ("-ffunction-sections", "-fdata-sections", "-DUPDATE")
    objects = [made.object(f"{name}.c", recipe, *sections) for name in ("calls", "targets", "main")]
    program = tmp_path / "program"
    run_tool(cc, f"-fuse-ld={linker}", "-Wl,--gc-sections", *objects, made.runtime(cc), "-pthread", "-o", program)

    assert run_program(program) == prints() * 2 + UPDATED + "71 sites, 71 direct, 0 foreign\n"


# ---- across shared objects ----

LINKS: tuple[tuple[Compiler, Linker], ...] = (("gcc", "bfd"), ("gcc", "mold"), ("clang", "lld"))
SHOWN = ["19 36 7000"]
# By the library's own update, by the user's, and by the library's again.
SHOWN_BY_UPDATES = ["19 36 7000", "75 92 7000", "705 722 7000", "19 36 7000", "1"]


def shared_program(made: Maker, folder: Path, recipe: Recipe, *, runtime: str) -> Path:
    """A program that uses what its library offers; the runtime is a library, in the program, or in neither."""
    offering = recipe._replace(make="shared")
    common: list[Path] = []
    if runtime == "library":
        common = [made.link(offering, [made.runtime(recipe.cc)], folder / "libstaticcall.so")]
    library = made.object("library.c", offering)
    if runtime == "library":
        library = made.link(offering, [library, *common], folder / "library.so")
    else:
        library = made.link(offering, [library, made.runtime(recipe.cc)], folder / "library.so")
    user = made.object("user.c", recipe, *(["-DUPDATE"] if runtime == "library" else []))
    return made.link(recipe, [user, library, *common], folder / "program")


@pytest.mark.parametrize("annotated", [True, False], ids=["annotated", "as-compiled"])
@pytest.mark.parametrize(("cc", "linker"), LINKS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_static_call_is_used_across_shared_objects(
    made: Maker, tmp_path: Path, cc: Compiler, linker: Linker, language: Language, *, annotated: bool
) -> None:
    recipe = Recipe(cc, linker, "pie", language=language, annotated=annotated)

    program = shared_program(made, tmp_path, recipe, runtime="program")

    assert run_program(program).splitlines() == SHOWN


@pytest.mark.parametrize("annotated", [True, False], ids=["annotated", "as-compiled"])
@pytest.mark.parametrize(("cc", "linker"), LINKS)
def test_an_offered_static_call_is_updated_from_either_side(
    made: Maker, tmp_path: Path, cc: Compiler, linker: Linker, *, annotated: bool
) -> None:
    recipe = Recipe(cc, linker, "pie", annotated=annotated)

    program = shared_program(made, tmp_path, recipe, runtime="library")

    assert run_program(program).splitlines() == SHOWN + SHOWN_BY_UPDATES


@pytest.mark.parametrize(("cc", "linker"), LINKS)
@pytest.mark.parametrize("make", ["exec", "pie"])
def test_a_used_static_call_stays_with_the_object_that_offers_it(
    made: Maker, tmp_path: Path, cc: Compiler, linker: Linker, make: Make
) -> None:
    recipe = Recipe(cc, linker, make)
    offering = recipe._replace(make="shared")
    runtime = made.runtime(recipe.cc)
    library = made.link(offering, [made.object("library.c", offering), runtime], tmp_path / "library.so")
    user = made.object("user.c", recipe)
    program = made.link(recipe, [user, library], tmp_path / "program")

    bound = patch(program, tmp_path / "bound", "--bind")
    bound_object = tmp_path / "bound.o"
    succeed("patch", user, "--bind", "--policy", "kernel", "-o", bound_object)

    offered = report(library, "--key", "weight")
    assert (offered["keys"][0]["func"], offered["keys"][0]["trampoline"]) == ("library_weight", "weight")
    assert {site["destination"] for site in offered["sites"]} == {"__SCT__weight"}
    for file in (program, user):
        found = report(file)
        assert found["findings"] == []
        assert {key["name"]: key["func"] for key in found["keys"]} == {
            "own": "thousand_times",
            "weight": "__SCO__weight",
        }
        refused("patch", file, "--dry-run", "--set", "weight=thousand_times", code="slot-resolved-at-run-time")
    assert {edit["key"] for edit in bound.edits} == {"own"}
    again = made.link(recipe, [bound_object, library], tmp_path / "again")
    assert {run_program(file) for file in (program, bound.output, again)} == {"19 36 7000\n"}
