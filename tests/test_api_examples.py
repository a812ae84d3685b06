"""Every example in the docstrings of the Python API does what it shows, on a program and on a kernel."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import staticcall
import staticcall.api
from tests.support.objects import Objects
from tests.support.programs import Builder

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _documented() -> Iterator[object]:
    """The modules of the API, and whatever else is public."""
    yield staticcall
    yield staticcall.api
    for module in pkgutil.iter_modules(staticcall.api.__path__, "staticcall.api."):
        yield importlib.import_module(module.name)
    for name in staticcall.api.__all__:
        value = getattr(staticcall, name)
        if not value.__module__.startswith("staticcall.api"):
            yield value


def _examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"staticcall": staticcall}
    found = [
        test
        for value in _documented()
        for test in finder.find(value, getattr(value, "__name__", None), globs=dict(names))
        if test.examples
    ]
    assert len({test.name for test in found}) == len(found)
    return found


EXAMPLES = _examples()
ON_KERNELS = [test for test in EXAMPLES if "vmlinux" in (test.docstring or "").split(">>>", 1)[1]]
ON_PROGRAMS = [test for test in EXAMPLES if test not in ON_KERNELS]


def _run(test: doctest.DocTest) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    results = runner.run(test, out=said.append, clear_globs=False)

    assert results.attempted == len(test.examples)
    assert results.failed == 0, "".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, built: Builder, made: Objects) -> Path:
    """What the examples find: a program, an object without a table, and a library of that."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(built("demo", "exec"), folder / "demo")
    shutil.copy(made("calls"), folder / "app.o")
    subprocess.run(["ar", "rcs", "libapp.a", "app.o"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("test", ON_PROGRAMS, ids=lambda test: test.name)
def test_an_example_on_a_program_does_what_it_shows(
    test: doctest.DocTest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    _run(test)


@pytest.mark.kernel
@pytest.mark.parametrize("test", ON_KERNELS, ids=lambda test: test.name)
def test_an_example_on_a_kernel_does_what_it_shows(
    test: doctest.DocTest, vmlinux_612: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vmlinux").symlink_to(vmlinux_612)
    monkeypatch.chdir(tmp_path)

    _run(test)


def test_there_are_examples_on_programs_and_on_kernels() -> None:
    assert ON_PROGRAMS
    assert ON_KERNELS


def _public() -> Iterator[tuple[str, object]]:
    """Everything that is public by its name: functions and classes, and what these have of their own."""
    for name in staticcall.api.__all__:
        value = getattr(staticcall, name)
        yield name, value
        if inspect.isclass(value):
            yield from (
                (f"{name}.{own}", inner)
                for own, inner in vars(value).items()
                if not own.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property))
            )


def test_everything_public_is_documented() -> None:
    assert [name for name, value in _public() if not inspect.getdoc(value)] == []


def test_every_function_and_method_of_the_api_says_what_comes_back_and_shows_it() -> None:
    functions = {
        name: inspect.getdoc(value) or ""
        for name, value in _public()
        if inspect.isfunction(value) and value.__module__.startswith("staticcall.api.") and name != "File.close"
    }

    assert [name for name, text in functions.items() if "Returns:\n" not in text] == []
    assert [name for name, text in functions.items() if ">>>" not in text] == []
    taken = {
        name: list(inspect.signature(getattr(staticcall, name)).parameters) for name in functions if "." not in name
    }
    for name, parameters in taken.items():
        assert [p for p in parameters if f"\n    {p}: " not in functions[name]] == []
