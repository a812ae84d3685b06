"""The Python API leaves the process around it alone, and threads in peace."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import staticcall
import staticcall.api
from tests.support import toolchain
from tests.support.programs import Builder
from tests.support.tool import names_in

PROGRAMS: tuple[tuple[str, toolchain.Kind], ...] = (("calls", "pie"), ("forms", "exec"), ("generations", "shared"))


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import sys; before = set(sys.modules); import staticcall; print(sorted(set(sys.modules) - before))"

    assert _python(code) == "['staticcall']\n"


def test_importing_the_api_leaves_the_process_alone() -> None:
    code = (
        "import gc, signal, sys, threading; handlers = [signal.getsignal(n) for n in signal.valid_signals()];"
        "from staticcall import *;"
        "print(open.__module__, gc.isenabled(), threading.active_count(),"
        " handlers == [signal.getsignal(n) for n in signal.valid_signals()],"
        " sorted({'click', 'rich', 'numpy', 'lief', 'elftools', 'capstone', 'jinja2'} & sys.modules.keys()))"
    )

    assert _python(code) == "staticcall.api.file True 1 True []\n"


def test_the_quick_commands_do_not_import_the_api(demo: Path) -> None:
    code = (
        "import sys; from staticcall.cli.entry import run;"
        f"run(['report', '--quiet', {str(demo)!r}]); run(['annotate', '--quiet', '-o', 'x', '/missing.o']);"
        "print([name for name in sys.modules if name.startswith('staticcall.api')])"
    )

    assert _python(code) == "[]\n"


def test_everything_public_is_seen_and_nothing_hides_it() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(staticcall.__path__)}

    assert set(staticcall.__all__) == {*staticcall.api.__all__, "__version__"}
    assert set(staticcall.__all__) <= set(dir(staticcall))
    # Importing a module of this name, anywhere, would put it in the place of what is public.
    assert not rooms & set(staticcall.__all__)
    for room in sorted(rooms - {"__main__", "runtime"}):
        importlib.import_module(f"staticcall.{room}")
    assert all(getattr(staticcall, name) is getattr(staticcall.api, name) for name in staticcall.api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        _ = staticcall.opne  # type: ignore[attr-defined]  # that is the point


def test_nothing_is_printed_and_no_collector_switched_off(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with staticcall.open(demo) as file:
        file.report().render("text")
        proof = file.plan(bind=True).apply(demo.with_name("bound"))
        assert file.verify(demo.with_name("bound")) == proof

    assert capfd.readouterr() == ("", "")
    assert gc.isenabled()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_are_closed(demo: Path) -> None:
    before = _open_files()
    with staticcall.open(demo) as file:
        assert _open_files() == before + 1
        report, plan = file.report(), file.plan(bind=True)
    report.render("text")
    plan.apply(demo.with_name("bound"))
    file.close()

    assert file.closed
    assert _open_files() == before
    for use in (file.report, lambda: file.plan(bind=True), lambda: file.verify(demo), file.__enter__):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_a_file_that_another_thread_closes_meanwhile_is_closed_and_not_changed(demo: Path) -> None:
    """The thread was past the first look at whether it is open, and waited for its turn."""
    with staticcall.open(demo) as file:
        opened = file._open()
    questions: tuple[Callable[[], object], ...] = (lambda: opened.values(opened.look), opened.check_unchanged)
    with demo.open("rb"):  # which gets the number of the closed one
        for question in questions:
            with pytest.raises(ValueError, match="is closed"):
                question()


def test_who_forgets_to_close_a_file_is_told_and_it_is_closed(demo: Path) -> None:
    before = _open_files()
    file = staticcall.open(demo)
    with pytest.warns(ResourceWarning, match="never closed"):
        del file
        gc.collect()

    assert _open_files() == before


def test_an_open_file_cannot_be_pickled(demo: Path) -> None:
    with staticcall.open(demo) as file, pytest.raises(TypeError, match="its reports and plans can"):
        pickle.dumps(file)


# ---- threads ----


def test_threads_can_report_at_once_on_one_file_and_on_many(built: Builder) -> None:
    paths = [built(*program) for program in PROGRAMS]

    def own(number: int) -> str:
        with staticcall.open(paths[number % len(paths)]) as file:
            return file.report(policy="kernel").to_json()

    alone = [own(number) for number in range(len(paths))]
    with staticcall.open(paths[0]) as shared, ThreadPoolExecutor(4) as pool:
        many = list(pool.map(own, range(8 * len(paths))))
        one = list(pool.map(lambda _: shared.report(policy="kernel").to_json(), range(16)))

    assert many == alone * 8
    assert one == [alone[0]] * 16


def test_threads_can_read_members_of_one_archive_at_once(built: Builder, tmp_path: Path) -> None:
    names = ("demo", "calls")
    for name in names:
        shutil.copy(built(name, "exec"), tmp_path / name)
    library = tmp_path / "both.a"
    subprocess.run(["ar", "rcS", library, *(tmp_path / name for name in names)], check=True)
    os.utime(library, (0, 0))

    def keys(number: int) -> set[str]:
        with staticcall.open(library, names[number % 2]) as file:
            return {key.name for key in file.report().keys}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(keys, range(64)))

    assert found == [keys(0), keys(1)] * 32
    assert keys(0) == {"checksum", "log"}


def test_threads_can_apply_at_once(demo: Path) -> None:
    with staticcall.open(demo) as file:
        plan = file.plan({"log": "log_print"})
    with ThreadPoolExecutor(4) as pool:
        proofs = list(pool.map(lambda number: plan.apply(demo.with_name(f"out{number % 3}")), range(12)))

    assert set(map(repr, proofs)) == {repr(proofs[0])}
    assert names_in(demo.parent) == {"demo", "out0", "out1", "out2"}
    assert len({path.read_bytes() for path in demo.parent.glob("out*")}) == 1
