"""What tests may ask for: the big things that not every machine has."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser

from tests.support import browser, bzimage, containers, guest, kbuild, kernels, modules, objects, vmlinux
from tests.support.programs import Builder
from tests.support.refusals import Room, make_room


def _unavailable(reason: str) -> NoReturn:
    """Skip on a developer's machine; fail where every test is meant to run."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _kernel(series: str) -> Path:
    try:
        return kernels.kernel(series)
    except kernels.KernelMissingError as error:
        _unavailable(f"no kernel of the {series} series: {error}")


def pytest_configure() -> None:
    """Signals that whoever runs the tests ignores, as nohup does, would be ignored by all that is run here."""
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(one) is signal.SIG_IGN:
            signal.signal(one, signal.default_int_handler if one is signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that boot kernels come first, then those that read them: a long one begun last is waited for alone."""
    needs: dict[Path, set[str]] = {}
    for item in items:
        needs.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    kernels_read = {"kernel", "vmlinux_612", "vmlinux_61", "development"}

    def turn(item: pytest.Item) -> int:
        wanted = needs[item.path]
        return 0 if "guest_tools" in wanted else 1 if wanted & kernels_read else 2

    items.sort(key=turn)


@pytest.fixture(scope="session")
def vmlinux_612() -> Path:
    return _kernel("6.12")


@pytest.fixture(scope="session")
def vmlinux_61() -> Path:
    return _kernel("6.1")


@pytest.fixture(scope="session", params=["612", "61"])
def kernel(request: pytest.FixtureRequest) -> vmlinux.Vmlinux:
    """Each kernel, as the tests themselves read it."""
    return vmlinux.read(request.getfixturevalue(f"vmlinux_{request.param}"))


@pytest.fixture(scope="session")
def vmlinuz(kernel: vmlinux.Vmlinux) -> Path:
    """The kernel as it is booted: its bzImage."""
    if missing := bzimage.missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")
    try:
        return bzimage.packed(kernel.path)
    except kernels.KernelMissingError as error:
        _unavailable(f"no bzImage: {error}")


@pytest.fixture(scope="session")
def unpacked(kernel: vmlinux.Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the bzImage of the kernel decompresses to."""
    if missing := bzimage.missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")
    try:
        packed = bzimage.packed(kernel.path)
    except kernels.KernelMissingError as error:
        _unavailable(f"no bzImage: {error}")
    return bzimage.unpack(packed, tmp_path_factory.mktemp("unpacked") / "vmlinux.bin.all")


@pytest.fixture(scope="session")
def slim(kernel: vmlinux.Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> vmlinux.Vmlinux:
    """The kernel without its debug information, a sixth of the size: it is copied many times."""
    path = tmp_path_factory.mktemp("slim") / kernel.path.name
    subprocess.run(["strip", "--strip-debug", "-o", path, kernel.path], check=True)
    return vmlinux.read(path)


@pytest.fixture(scope="session")
def development() -> modules.Development:
    """A kernel, its modules, and what modules for it are built with."""
    try:
        found = modules.development()
    except kernels.KernelMissingError as error:
        _unavailable(f"no kernel with headers and modules: {error}")
    if missing := modules.missing_tools(found):
        _unavailable(f"not installed: {', '.join(missing)}")
    return found


@pytest.fixture(scope="session")
def kallsyms_program(kernel: vmlinux.Vmlinux) -> Path:
    """What made the table of names of each kernel: its `scripts/kallsyms`, as it was built for that."""
    try:
        headers = kernels.headers(kernel.path)
    except kernels.KernelMissingError as error:
        _unavailable(f"no kernel with headers: {error}")
    (program,) = headers.glob("usr/lib/linux-kbuild-*/scripts/kallsyms")
    return program


@pytest.fixture(scope="session")
def kernel_objects(development: modules.Development) -> Path:
    """A folder for each compiler, of objects of the kernel as it made them."""
    try:
        return kbuild.objects(development)
    except kernels.KernelMissingError as error:
        _unavailable(f"no objects of the kernel: {error}")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> objects.Objects:
    """Builds the made-up objects; each is built once and shared."""
    if missing := objects.missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")
    return objects.Objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="session")
def packers() -> None:
    """Needed by every test that compresses, or makes packages and archives of more than objects."""
    if missing := containers.missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def sbsign() -> None:
    """Needed by every test that signs boot images."""
    if shutil.which("sbsign") is None or shutil.which("sbverify") is None:
        _unavailable("not installed: sbsigntool")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser that HTML reports are opened in."""
    if missing := browser.missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")
    with browser.chromium() as running:
        yield running


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """Say which programs of the machine a test needs."""

    def have(*programs: str) -> None:
        if missing := [program for program in programs if shutil.which(program) is None]:
            _unavailable(f"not installed: {', '.join(missing)}")

    return have


@pytest.fixture(scope="session")
def guest_tools() -> None:
    """Needed by every test that calls guest.boot."""
    if missing := guest.missing_tools():
        _unavailable(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Builds fixtures; each program is built once and shared."""
    return Builder(tmp_path_factory.mktemp("fixtures"), _unavailable)


@pytest.fixture
def plain(made: objects.Objects, tmp_path: Path) -> Path:
    """An object to be annotated, alone in a folder."""
    folder = tmp_path / "objects"
    folder.mkdir()
    return Path(shutil.copy(made("calls"), folder / "plain.o"))


@pytest.fixture
def room(built: Builder, tmp_path: Path) -> Room:
    folder = tmp_path / "room"
    folder.mkdir()
    return make_room(folder, built)


@pytest.fixture
def program(built: Builder, tmp_path: Path) -> Path:
    """The fixture `calls` as a test's own file, which it may change, alone in a folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Path(shutil.copy(built("calls", "pie"), folder / "program"))


@pytest.fixture
def demo(built: Builder, tmp_path: Path) -> Path:
    """The fixture `demo` as a test's own file, alone in a folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Path(shutil.copy(built("demo", "exec"), folder / "demo"))
