"""The wheel, installed into a fresh environment with what its metadata asks for, and run from there."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipapp
import zipfile
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.utils import canonicalize_name

import staticcall
from release import environment, sbom
from release.commands import ReleaseError
from tests.conftest import _unavailable
from tests.support import wheelhouse
from tests.support.programs import Builder
from tests.support.wheelhouse import ROOT, execute

PLACES = ("--include-dir", "--runtime-source", "--pkg-config-dir", "--cmake-dir")


class Installed(NamedTuple):
    """A fresh environment: its programs, what it was made from, and how uv is to find that."""

    programs: Path
    tree: Path
    wheel: Path
    needed: dict[str, Distribution]
    variables: Mapping[str, str]

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        return self._execute("staticcall", *arguments, cwd=cwd)

    def python(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        return self._execute("python", *arguments, cwd=cwd)

    def _execute(self, program: str, *arguments: str | Path, cwd: Path | None) -> str:
        # What is compiled is kept, but outside, so that the installation stays as it was made.
        caches = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.programs.parents[1] / "compiled")}
        return execute(self.programs / program, *arguments, cwd=cwd, env=caches)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    tree = wheelhouse.snapshot(folder / "tree")
    wheel = wheelhouse.build_wheel(tree, folder / "dist")
    (folder / "wheels").mkdir()
    needed = wheelhouse.stock(wheel, folder / "wheels")
    variables = wheelhouse.offline(folder / "wheels", folder / "cache")
    return Installed(wheelhouse.fresh(folder / "environment", wheel, variables), tree, wheel, needed, variables)


@pytest.fixture
def demo(built: Builder, tmp_path: Path) -> Path:
    """The small program, away from the tree."""
    return Path(shutil.copy(built("demo", "exec"), tmp_path / "demo"))


# ---- the environment ----


def test_nothing_is_there_but_the_package_and_what_it_asks_for(installed: Installed) -> None:
    told = installed.python("-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))")

    assert {canonicalize_name(name) for name in told.split()} == {"staticcall", *installed.needed}
    assert not installed.needed.keys() & {"pytest", "jsonschema", "mypy", "hatchling"}


def test_every_module_is_imported_from_there(installed: Installed, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, staticcall\n"
        "modules = [m.name for m in pkgutil.walk_packages(staticcall.__path__, 'staticcall.')]\n"
        "files = [importlib.import_module(name).__file__ for name in modules]\n"
        "print(*files, sep='\\n')\n"
    )

    files = installed.python("-W", "error", "-c", program, cwd=tmp_path).splitlines()

    with zipfile.ZipFile(installed.wheel) as archive:
        assert len(files) == len([name for name in archive.namelist() if name.endswith(".py")]) - 1
    assert all(Path(file).is_relative_to(installed.programs.parent) for file in files)


def test_the_script_and_the_module_say_the_wheels_version(installed: Installed, tmp_path: Path) -> None:
    version = wheelhouse.metadata(installed.wheel)["Version"]

    assert installed.run("--version", cwd=tmp_path).split()[-1] == version
    assert installed.python("-m", "staticcall", "--version", cwd=tmp_path).split()[-1] == version


# ---- what users do ----


def test_reports_are_made_where_there_is_nothing_else(installed: Installed, demo: Path) -> None:
    """The other forms need no file and no library that these do not."""
    assert "demo" in installed.run("report", demo)
    assert "<title>" in installed.run("report", "--format", "html", demo)


def test_a_program_is_patched_proved_and_reverted(installed: Installed, demo: Path) -> None:
    folder = demo.parent

    installed.run(
        *("patch", "demo", "--set", "checksum=checksum_fast", "-o", "fast", "--edits", "undo.json"), cwd=folder
    )
    installed.run("verify", "demo", "fast", cwd=folder)
    installed.run("revert", "fast", "--edits", "undo.json", "-o", "again", cwd=folder)

    assert "by checksum_plain" in execute(demo)
    assert "by checksum_fast" in execute(folder / "fast")
    assert (folder / "again").read_bytes() == demo.read_bytes()


def test_a_schema_is_printed_as_it_is_in_the_tree(installed: Installed) -> None:
    there = json.loads((installed.tree / "staticcall/report/schemas/report.schema.json").read_text())

    assert json.loads(installed.run("schema", "report")) == there


def test_a_shell_gets_its_completion(installed: Installed) -> None:
    assert "staticcall" in installed.run("completion", "bash")


def test_the_manual_pages_are_where_man_looks(installed: Installed) -> None:
    page = installed.programs.parent / "share/man/man1/staticcall-explain.1"

    assert page.read_text().startswith(".TH")


@pytest.mark.parametrize("option", PLACES)
def test_files_for_builds_are_in_the_environment(installed: Installed, option: str) -> None:
    path = Path(installed.run(option).strip())

    assert path.is_relative_to(installed.programs.parent)
    assert path.exists()


def test_a_program_is_built_with_what_was_installed(installed: Installed, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        _unavailable("not installed: gcc")
    include = "-I" + installed.run("--include-dir").strip()
    execute("gcc", "-O2", include, "-c", ROOT / "fixtures/header/calls.c", "-o", tmp_path / "calls.o")

    installed.run("annotate", "--in-place", "--section", "static_call_sites", "calls.o", cwd=tmp_path)
    others = [ROOT / f"fixtures/header/{name}.c" for name in ("targets", "main")]
    runtime = installed.run("--runtime-source").strip()
    execute("gcc", "-O2", include, "calls.o", *others, runtime, "-pthread", "-o", "program", cwd=tmp_path)

    assert execute(tmp_path / "program")
    assert json.loads(installed.run("report", "--format", "json", tmp_path / "program"))["images"][0]["sites"]


def test_a_run_writes_nothing_into_the_installation(installed: Installed, demo: Path) -> None:
    def listing() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in installed.programs.parent.rglob("*")}

    before = listing()
    installed.run("report", "--format", "html", demo)

    assert listing() == before


def test_it_runs_from_one_archive(installed: Installed, demo: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        archive.extractall(tmp_path / "tree")
    program = tmp_path / "staticcall.pyz"
    zipapp.create_archive(tmp_path / "tree", program, main="staticcall.__main__:main")
    report = ("report", "--format", "html", demo)

    assert installed.python(program, *report) == installed.run(*report)


# ---- other ways in ----


def _homes(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    places = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man"}
    return {**variables, **{name: str(folder / place) for name, place in places.items()}}


def test_pip_builds_the_same_wheel_in_an_environment_of_its_own(installed: Installed, tmp_path: Path) -> None:
    for distribution in wheelhouse.closure(["hatchling"]).values():
        wheelhouse.repack(distribution, tmp_path)
    wheels = ("--find-links", tmp_path, "--find-links", installed.variables["UV_FIND_LINKS"])

    # Where this Python has what a build needs, a build that forgot to ask for it would work all the same.
    execute(sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare")
    pip: tuple[str | Path, ...] = (sys.executable, "-m", "pip", "--python", tmp_path / "bare/bin/python")
    pip += ("wheel", "--quiet", "--no-index", "--no-deps", "--no-cache-dir")
    variables = {"SOURCE_DATE_EPOCH": wheelhouse.EPOCH, "PIP_CONFIG_FILE": "/dev/null"}
    execute(*pip, *wheels, "-w", tmp_path / "out", installed.tree, env=variables)

    (wheel,) = (tmp_path / "out").iterdir()
    assert wheel.read_bytes() == installed.wheel.read_bytes(), "with its manual pages"


def test_pipx_runs_it(installed: Installed, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "pipx", "run", "--backend", "uv", "--spec", installed.wheel)

    told = execute(*command, "staticcall", "--version", env=_homes(tmp_path, installed.variables))

    assert told.split()[-1] == staticcall.__version__


def test_pipx_installs_it(installed: Installed, demo: Path, tmp_path: Path) -> None:
    variables = _homes(tmp_path, installed.variables)

    execute(sys.executable, "-m", "pipx", "install", "--backend", "uv", installed.wheel, env=variables)

    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["staticcall"]
    assert (tmp_path / "man/man1/staticcall.1").read_text().startswith(".")
    assert "checksum" in execute(tmp_path / "bin/staticcall", "report", demo)


def test_other_pythons_compile_it_and_run_what_needs_no_library(installed: Installed, tmp_path: Path) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        archive.extractall(tmp_path)
    others = dict(environment.interpreters(ROOT))
    if not others:
        pytest.skip("this machine has no other Python that the classifiers name")
    for version, program in others.items():
        run = (program, "-W", "error")
        execute(*run, "-m", "compileall", "-q", "-f", "staticcall", cwd=tmp_path)
        told = execute(*run, "-m", "staticcall", "--include-dir", cwd=tmp_path)
        assert Path(told.strip()) == tmp_path / "staticcall/runtime/include", version


# ---- the bill of materials ----


@pytest.fixture(scope="module")
def bill(installed: Installed) -> str:
    return sbom.make(installed.programs.parent, installed.tree)


def test_the_bill_names_what_is_installed(installed: Installed, bill: str) -> None:
    document = json.loads(bill)
    components = {canonicalize_name(part["name"]): part["version"] for part in document["components"]}

    assert components == {name: found.version for name, found in installed.needed.items()}
    assert document["metadata"]["component"]["name"] == "staticcall"
    assert document["metadata"]["component"]["version"] == staticcall.__version__
    assert all(part["licenses"] for part in document["components"])
    asked = {entry["ref"]: entry.get("dependsOn", []) for entry in document["dependencies"]}
    direct = {canonicalize_name(ref.partition("==")[0]) for ref in asked["root-component"]}
    wanted = [text for text in wheelhouse.metadata(installed.wheel).get_all("Requires-Dist", []) if "extra" not in text]
    assert direct == {canonicalize_name(re.split(r"[^\w.-]", text)[0]) for text in wanted}


def test_a_bill_that_its_schema_or_a_reader_would_not_accept_is_told(bill: str) -> None:
    nameless, unlicensed = json.loads(bill), json.loads(bill)
    nameless["components"][0].pop("name")
    unlicensed["components"][0].pop("licenses")

    with pytest.raises(ReleaseError, match="schema"):
        sbom.check(json.dumps(nameless))
    with pytest.raises(ReleaseError, match=unlicensed["components"][0]["name"]):
        sbom.check(json.dumps(unlicensed))


def test_the_bill_is_the_same_again(installed: Installed, bill: str) -> None:
    assert sbom.compose(installed.programs.parent, installed.tree) == bill
    assert "serialNumber" not in json.loads(bill)
    assert "timestamp" not in json.loads(bill)["metadata"]
