"""A tree read by the workers of a Dask scheduler, one of which is killed in the middle."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import staticcall as package
from staticcall import errors as package_errors
from staticcall.model.sites import Policy
from staticcall.pipeline.batch import render_parts
from staticcall.pipeline.fleet import fleet
from staticcall.pipeline.forms import Format
from staticcall.pipeline.look import Look
from staticcall.pipeline.tree import in_parts, inputs_in, summary_of, survey_files, survey_of
from tests.support.objects import Objects
from tests.support.tool import staticcall, staticcall_process

distributed: Any = pytest.importorskip("distributed") if not os.environ.get("CI") else __import__("distributed")

FILES = 160
SECONDS = 60
_ADDRESS = re.compile(r"Scheduler at: +(\S+)")


@contextmanager
def _running(*command: str | Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A program of Dask's on the loopback, which ends with the test and does not see this folder's packages."""
    full = [sys.executable, "-m", "dask", *map(str, command)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": "/"}
    with subprocess.Popen(full, env={**os.environ, **(environment or {})}, **pipes) as process:  # type: ignore[call-overload]  # the pipes are in a dict
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def scheduler() -> Iterator[str]:
    """A scheduler; gives its address once it listens."""
    with _running("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard") as process:
        assert process.stderr is not None
        address = next(found[1] for line in process.stderr if (found := _ADDRESS.search(line)))
        rest = threading.Thread(target=process.stderr.read, daemon=True)
        rest.start()
        yield address
        process.kill()
        rest.join()


@contextmanager
def worker(address: str, folder: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """One worker in a process of its own, which nobody starts again."""
    command = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", folder)
    with _running(*command, environment=environment) as process:
        assert process.stderr is not None
        rest = threading.Thread(target=process.stderr.read, daemon=True)
        rest.start()
        yield
        process.kill()
        rest.join()


@contextmanager
def client_of(address: str, workers: int) -> Iterator[Any]:
    with distributed.Client(address, timeout=SECONDS, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=SECONDS)
        yield client


@pytest.fixture(scope="module")
def tree(made: Objects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fleet") / "tree"
    root.mkdir()
    sources = [made(name, "gcc") for name in ("calls", "tail_calls", "sections")]
    for number in range(FILES):
        (root / f"{number:03}.ko").hardlink_to(sources[number % len(sources)])
    (root / "broken.ko").write_text("no module\n")
    return root


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers."""
    with ExitStack() as stack:
        address = stack.enter_context(scheduler())
        for _ in range(2):
            stack.enter_context(worker(address, tmp_path_factory.mktemp("worker")))
        with client_of(address, 2):
            yield address


@pytest.mark.parametrize("options", [("-v",), ("--format", "jsonl")])
def test_workers_give_what_one_process_gives(two_workers: str, tree: Path, options: tuple[str, ...]) -> None:
    alone = staticcall("report", *options, tree)

    assert alone.code == 3
    assert staticcall("report", "--dask", two_workers, *options, tree) == alone


def test_paths_are_shown_as_they_were_given(two_workers: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    alone = staticcall("report", "--format", "jsonl", "tree")

    assert '"path":"tree/000.ko"' in alone.out
    assert staticcall("report", "--dask", two_workers, "--format", "jsonl", "tree") == alone


@pytest.mark.parametrize("form", [Format.TEXT, Format.JSONL])
def test_a_worker_that_is_killed_in_the_middle_makes_no_difference(tree: Path, tmp_path: Path, form: Format) -> None:
    parts = in_parts(inputs_in(str(tree)))
    with ExitStack() as stack:
        address = stack.enter_context(scheduler())
        for number in range(2):
            stack.enter_context(worker(address, tmp_path / f"{number}"))
        client = stack.enter_context(client_of(address, 2))
        executor, work, look = stack.enter_context(fleet(address, [str(tree)], parts, Look()))
        pids = client.run(os.getpid)
        if form is Format.TEXT:
            results: Iterator[Any] = survey_files(work, look, executor=executor)
        else:
            results = render_parts(work, look, form, executor=executor)
        found = [next(results)]
        victim, begun = max(client.processing().items(), key=lambda item: len(item[1]))
        os.kill(pids[victim], signal.SIGKILL)
        assert begun, "it had work to do"
        found += results
        assert len(client.scheduler_info()["workers"]) == 1

    if form is Format.TEXT:
        expected = survey_of(survey_files(parts, Look()))
        assert summary_of("", survey_of(found), Policy()) == summary_of("", expected, Policy())
        assert survey_of(found) == expected
    else:
        assert found == list(render_parts(parts, Look(), form))


def _said(*arguments: str | Path) -> str:
    outcome = staticcall("report", *arguments)
    assert outcome.out == ""
    assert outcome.code in (2, 3)
    assert outcome.err.count("\n") == 1, outcome.err
    return outcome.err


def test_a_scheduler_without_workers_is_said(tree: Path) -> None:
    with scheduler() as address:
        assert "has no workers" in _said("--dask", address, tree)


def test_a_scheduler_that_is_not_there_is_said(tree: Path) -> None:
    assert "cannot be reached" in _said("--dask", "127.0.0.1:1", tree)


@pytest.mark.parametrize("address", ["nonsense", "what://127.0.0.1:1", "127.0.0.1:port"])
def test_what_is_no_address_is_said(tree: Path, address: str) -> None:
    assert "is no address" in _said("--dask", address, tree)


def test_a_file_alone_is_not_sent_away(tree: Path) -> None:
    assert "--dask is for folders" in _said("--dask", "127.0.0.1:1", tree / "000.ko")


def test_a_worker_with_another_version_is_said(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "staticcall"
    shutil.copytree(Path(package.__file__).parent, other, ignore=shutil.ignore_patterns("__pycache__"))
    marker = other / "__init__.py"
    marker.write_text(marker.read_text().replace(package.__version__, "0.0.0.dev0"))
    environment = {"PYTHONPATH": str(other.parent)}
    with scheduler() as address, worker(address, tmp_path / "worker", environment), client_of(address, 1):
        assert f"has staticcall 0.0.0.dev0, and this is {package.__version__}" in _said("--dask", address, tree)


def test_a_worker_that_does_not_see_the_files_is_said(two_workers: str, tree: Path) -> None:
    parts = in_parts(inputs_in(str(tree)))
    gone = tree.with_name("gone")
    with (
        pytest.raises(package_errors.InputError, match="does not see it"),
        fleet(two_workers, [str(gone)], parts, Look()),
    ):
        pass


def test_without_dask_the_package_to_install_is_named(tree: Path) -> None:
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "from staticcall.cli.entry import run\n"
        "sys.exit(run(['report', '--dask', '127.0.0.1:1', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tree], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'staticcall[dask]'" in done.stderr


def test_nothing_is_left_behind_at_the_end_of_a_process(two_workers: str, tree: Path) -> None:
    outcome = staticcall_process("report", "--dask", two_workers, "--quiet", tree)

    assert outcome.code == 3
    assert outcome.err.count("\n") == 1, "only what the broken file is told for"
