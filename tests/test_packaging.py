"""The wheel and the source distribution: what is in them, what they say, and that building again gives the same."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import staticcall
from staticcall.cli.commands import COMMANDS
from tests.conftest import _unavailable
from tests.support import wheelhouse
from tests.support.toolchain import TIMEOUT_SECONDS
from tests.support.wheelhouse import ROOT, Distributions, execute

_LOCKED = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheelhouse.snapshot(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return wheelhouse.build(tree, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def unpacked(built: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that the source distribution holds."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built.sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def _files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


# ---- what is in them ----


def test_the_wheel_holds_the_package_and_what_is_said_about_it(tree: Path, built: Distributions) -> None:
    name = f"staticcall-{staticcall.__version__}"
    package = {str(path.relative_to(tree)) for path in (tree / "staticcall").rglob("*") if path.is_file()}
    inside = _files(built.wheel)
    about = {file for file in inside if file.startswith(f"{name}.dist-info/")}
    shared = {file for file in inside if file.startswith(f"{name}.data/data/share/")}

    assert inside - about - shared == package
    with zipfile.ZipFile(built.wheel) as archive:
        assert [name for name in package if archive.read(name) != (tree / name).read_bytes()] == []
        # A build runs these.
        scripts = {name for name in package if archive.getinfo(name).external_attr >> 16 & 0o111}
    assert scripts == {name for name in package if (tree / name).stat().st_mode & 0o111} != set()
    assert not [file for file in package if "__pycache__" in file]
    assert {Path(file).name for file in about} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "LICENSE"}


@pytest.mark.parametrize("suffix", [".py", ".json", ".h", ".c", ".pc", ".cmake", ".mk", "/py.typed"])
def test_the_wheel_holds_files_of_every_kind(built: Distributions, suffix: str) -> None:
    assert any(file.endswith(suffix) for file in _files(built.wheel))


def test_the_wheel_has_a_manual_page_for_every_command(built: Distributions) -> None:
    pages = {Path(file).name for file in _files(built.wheel) if "/share/man/man1/" in file}

    assert pages == {"staticcall.1", *(f"staticcall-{name}.1" for name in COMMANDS)}


def test_the_source_distribution_holds_what_git_has(tree: Path, built: Distributions) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
        assert not [member.name for member in archive if not (member.isfile() or member.isdir())]

    there = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert files == {*there, "PKG-INFO"}
    needed = ("Makefile", ".ci/run", "requirements.lock", "hatch_build.py", "tests", "fixtures", "examples", "docs")
    assert all(any(file.startswith(name) for file in files) for name in needed)


def test_the_licence_is_that_of_the_tree(built: Distributions) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_console_script_is_the_packages_main(built: Distributions) -> None:
    points = configparser.ConfigParser()
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        points.read_string(archive.read(name).decode())

    assert {section: dict(points[section]) for section in points.sections()} == {
        "console_scripts": {"staticcall": "staticcall.__main__:main"}
    }


# ---- what they say ----


def test_the_metadata_says_what_an_index_and_an_installer_ask_for(built: Distributions) -> None:
    said = wheelhouse.metadata(built.wheel)
    needs = [Requirement(text) for text in said.get_all("Requires-Dist", [])]
    classifiers = said.get_all("Classifier", [])

    assert said["Name"] == "staticcall"
    assert Version(said["Version"]) == Version(staticcall.__version__)
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload() == (ROOT / "README.md").read_text()
    assert "Typing :: Typed" in classifiers
    # A lower bound is what the code needs; an upper one would keep others from their updates.
    assert not [need for need in needs if need.url or any(bound.operator != ">=" for bound in need.specifier)]
    named = [match[1] for line in classifiers if (match := re.fullmatch(r".* :: (3\.\d+)", line))]
    supported = SpecifierSet(said["Requires-Python"])
    assert named
    assert all(version in supported for version in named)
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in supported


def test_nothing_of_the_metadata_leads_to_an_index(built: Distributions) -> None:
    said = wheelhouse.metadata(built.wheel)
    links = [*said.get_all("Project-URL", []), *said.get_all("Home-page", []), *said.get_all("Download-URL", [])]

    assert not [link for link in links if re.search(r"pypi|/simple|index", link)]
    assert not re.search(r"^(--|-i |-f )|://", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def test_twine_has_nothing_to_say_against_them(built: Distributions) -> None:
    execute(sys.executable, "-m", "twine", "check", "--strict", *built)


def test_every_locked_version_is_one_that_the_metadata_allows(built: Distributions) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    locked = {name.lower(): version for name, version in _LOCKED.findall(lock)}
    needs = [Requirement(text) for text in wheelhouse.metadata(built.wheel).get_all("Requires-Dist", [])]

    for need in needs:
        if need.name != "staticcall" and "python_version" not in str(need.marker):
            assert need.specifier.contains(locked[need.name.lower()], prereleases=True), need


# ---- building again ----


def test_building_again_from_the_source_distribution_gives_the_same_bytes(
    built: Distributions, unpacked: Path, tmp_path: Path
) -> None:
    tree = shutil.copytree(unpacked, tmp_path / "tree")
    for path in tree.rglob("*"):
        # Other times and other permissions, but for what can be run.
        os.utime(path, (1, 1))
        path.chmod(0o700 if path.is_dir() or path.stat().st_mode & 0o100 else 0o600)

    again = wheelhouse.build(tree, tmp_path / "again")

    assert again.wheel.name == built.wheel.name
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.name == built.sdist.name
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


# ---- versions ----


def test_no_file_names_another_version_of_staticcall(tree: Path, built: Distributions) -> None:
    spelled = re.compile(r"staticcall[\s,=@-]+v?(?:version\s+)?(\d+\.\d+\.\d+)\b")
    others = {tree / "CHANGELOG.md", *(tree / "tests").rglob("*"), *(tree / "fixtures").rglob("*")}
    named = {
        (path.name, version)
        for path in tree.rglob("*")
        if path.is_file() and path not in others
        for version in spelled.findall(path.read_text(errors="ignore"))
    }

    assert {version for _, version in named} <= {staticcall.__version__}, named
    with zipfile.ZipFile(built.wheel) as archive:
        (page,) = (name for name in archive.namelist() if name.endswith("/staticcall.1"))
        assert spelled.findall(archive.read(page).decode()) == [staticcall.__version__], "so it is looked for rightly"


def test_cmake_is_told_the_version(tmp_path: Path) -> None:
    program = shutil.which("cmake") or _unavailable("not installed: cmake")
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'set(PACKAGE_FIND_VERSION "{staticcall.__version__}")\n'
        f'include("{ROOT}/staticcall/runtime/cmake/staticcall-config-version.cmake")\n'
        'message("${PACKAGE_VERSION}")\n'
    )

    done = subprocess.run([program, "-P", script], capture_output=True, text=True, check=True, timeout=TIMEOUT_SECONDS)

    assert done.stderr.strip() == staticcall.__version__
