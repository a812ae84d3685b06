"""Header, runtime and build files: where the tool says they are, what pkg-config makes of them, what is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import staticcall as package
from tests.conftest import _unavailable
from tests.support import wheelhouse
from tests.support.header import INCLUDE, RUNTIME, SOURCES, prints, run_program
from tests.support.tool import staticcall, staticcall_process, succeed
from tests.support.toolchain import TIMEOUT_SECONDS
from tests.support.user_objects import run_tool
from tests.support.wheelhouse import Distributions

ROOT = Path(package.__file__).parents[1]
PLACES = {
    "--include-dir": "include/staticcall.h",
    "--runtime-source": "staticcall.c",
    "--pkg-config-dir": "pkgconfig/staticcall.pc",
    "--cmake-dir": "cmake/staticcall-config.cmake",
}


@pytest.fixture
def pkg_config(monkeypatch: pytest.MonkeyPatch) -> str:
    """The program, which is told where the package's file is as a user tells it."""
    program = shutil.which("pkg-config") or _unavailable("not installed: pkg-config")
    monkeypatch.setenv("PKG_CONFIG_PATH", succeed("--pkg-config-dir").strip())
    return program


# ---- options ----


@pytest.mark.parametrize("option", PLACES)
def test_an_option_says_where_a_file_is(option: str) -> None:
    (line,) = succeed(option).splitlines()

    path = Path(line)
    wanted = RUNTIME / PLACES[option]
    assert path.is_absolute()
    assert (path if path.is_file() else path / wanted.name).resolve() == wanted.resolve()
    assert wanted.is_file()


@pytest.mark.parametrize("option", PLACES)
def test_the_path_is_there_before_any_library_is_imported(option: str) -> None:
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "staticcall", option],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )

    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in listing.stderr.splitlines()}
    assert "staticcall" in imported
    assert not imported & {"click", "pathlib", "numpy", "capstone", "elftools", "lief"}


def test_help_names_the_options_and_mistakes_are_told() -> None:
    shown = succeed("--help")

    assert all(option in shown for option in PLACES)
    assert succeed("--include-dir", "--runtime-source") == succeed("--include-dir")
    assert staticcall("--include-dir=here").code == 2
    assert staticcall("report", "--include-dir").code == 2
    assert staticcall_process("--include-dir").code == 0


# ---- pkg-config ----


def test_pkg_config_knows_the_version_that_the_package_has(pkg_config: str) -> None:
    assert run_tool(pkg_config, "--modversion", "staticcall").strip() == package.__version__
    run_tool(pkg_config, "--validate", "staticcall")


def test_a_program_is_built_by_what_pkg_config_says(pkg_config: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        _unavailable("not installed: gcc")
    flags = run_tool(pkg_config, "--cflags", "--libs", "staticcall").split()
    runtime = run_tool(pkg_config, "--variable=runtime_source", "staticcall").strip()
    sources = [SOURCES / f"{name}.c" for name in ("calls", "targets", "main")]

    run_tool("gcc", "-std=c11", "-O2", "-DUPDATE", *flags, *sources, runtime, "-pthread", "-o", tmp_path / "program")

    assert run_program(tmp_path / "program").startswith(prints())
    assert [Path(flag.removeprefix("-I")).resolve() for flag in flags] == [INCLUDE.resolve()]


@pytest.mark.parametrize(("variable", "wanted"), [("runtime_source", "staticcall.c"), ("cmakedir", "cmake")])
def test_a_variable_leads_to_what_there_is(pkg_config: str, variable: str, wanted: str) -> None:
    path = Path(run_tool(pkg_config, f"--variable={variable}", "staticcall").strip())

    assert path.resolve() == (RUNTIME / wanted).resolve()
    assert path.exists()


@pytest.mark.parametrize("variable", ["align_cflags", "clang_cflags", "prefixed_cflags", "prefixed_libs"])
def test_a_variable_holds_the_flags_that_make_sites_direct(pkg_config: str, variable: str) -> None:
    flags = run_tool(pkg_config, f"--variable={variable}", "staticcall").split()

    assert flags
    assert all(flag.startswith("-") for flag in flags)


# ---- what is installed ----


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the source distribution."""
    return wheelhouse.build(ROOT, tmp_path_factory.mktemp("dist"))


def runtime_files() -> set[str]:
    """All that the package has for programs, relative to the package's parent."""
    return {str(path.relative_to(ROOT)) for path in RUNTIME.rglob("*") if path.is_file()}


def test_the_wheel_holds_all_that_programs_need(distributions: Distributions, tmp_path: Path) -> None:
    shutil.unpack_archive(distributions.wheel, tmp_path, "zip")
    with zipfile.ZipFile(distributions.wheel) as archive:
        scripts = {file.filename for file in archive.infolist() if file.external_attr >> 16 & 0o111}

    installed = {
        str(path.relative_to(tmp_path)) for path in (tmp_path / "staticcall/runtime").rglob("*") if path.is_file()
    }
    assert installed == runtime_files()
    assert scripts == {name for name in runtime_files() if os.access(ROOT / name, os.X_OK)}
    done = subprocess.run(
        [sys.executable, "-m", "staticcall", "--runtime-source"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert Path(done.stdout.strip()) == tmp_path / "staticcall/runtime/staticcall.c"
    assert Path(done.stdout.strip()).read_bytes() == (RUNTIME / "staticcall.c").read_bytes()


def test_the_source_distribution_holds_it_too(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert runtime_files() <= names
    assert "fixtures/header/calls.c" in names
