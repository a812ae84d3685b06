"""`staticcall extract` writes what is inside, byte for byte, in one step, and says what is around it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import bzimage, kernels, modules
from tests.support.containers import EACH, compressed, cpio, package, through
from tests.support.modules import Development
from tests.support.programs import Builder
from tests.support.tool import names_in, report, staticcall, staticcall_process, succeed
from tests.support.vmlinux import Vmlinux

pytestmark = pytest.mark.usefixtures("packers")


@pytest.fixture(scope="module")
def elf(built: Builder) -> Path:
    return built("calls", "pie")


@pytest.fixture
def packed(elf: Path, tmp_path: Path) -> Path:
    path = tmp_path / "program.xz"
    path.write_bytes(compressed("xz", elf.read_bytes()))
    return path


@pytest.mark.parametrize("name", EACH)
def test_what_is_inside_is_written(name: str, elf: Path, tmp_path: Path) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    packed.write_bytes(compressed(name, elf.read_bytes()))

    assert succeed("extract", packed, "-o", out) == f"{packed} -> {out}\n  {elf.stat().st_size:,} bytes\n"
    assert out.read_bytes() == elf.read_bytes()
    assert succeed("extract", "--quiet", packed, "-o", out) == ""


def test_without_an_output_it_goes_to_the_pipe(packed: Path, elf: Path) -> None:
    command = [sys.executable, "-m", "staticcall", "extract", str(packed)]

    assert subprocess.run(command, capture_output=True, check=True).stdout == elf.read_bytes()


def test_who_reads_only_the_beginning_ends_it(elf: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.zst"
    path.write_bytes(compressed("zstd", elf.read_bytes() + bytes(1 << 20)))
    with subprocess.Popen([sys.executable, "-m", "staticcall", "extract", path], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.read(4) == b"\x7fELF"
        run.stdout.close()
        assert run.wait() == 141


def test_nothing_goes_to_a_terminal(packed: Path) -> None:
    ours, theirs = os.openpty()
    try:
        command = [sys.executable, "-m", "staticcall", "extract", str(packed)]
        run = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(ours)
        os.close(theirs)

    assert run.returncode == 2
    assert "give --output" in run.stderr


def test_the_input_is_never_overwritten(packed: Path, tmp_path: Path) -> None:
    before = packed.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(packed)

    for output in (packed, link):
        outcome = staticcall("extract", packed, "-o", output)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert packed.read_bytes() == before


def test_the_archive_of_a_member_is_never_overwritten(elf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "program").write_bytes(elf.read_bytes())
    archive = package(folder, tmp_path / "made.deb", "xz")
    before = archive.read_bytes()

    assert staticcall("extract", f"{archive}(program)", "-o", archive).code == 2
    assert archive.read_bytes() == before


@pytest.mark.parametrize("cut", [20, -1])
def test_of_a_damaged_file_nothing_is_written(cut: int, packed: Path, tmp_path: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:cut])

    outcome = staticcall("extract", packed, "-o", tmp_path / "out")

    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1)
    assert names_in(tmp_path) == {packed.name}


def test_a_file_with_nothing_around_it_is_refused(elf: Path, tmp_path: Path) -> None:
    outcome = staticcall("extract", elf, "-o", tmp_path / "out")

    assert outcome.code == 3
    assert "has nothing around it" in outcome.err
    assert names_in(tmp_path) == set()


def test_a_member_that_is_no_elf_file_is_written_too(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "config").write_bytes(b"CONFIG_X=y\n")
    archive = package(folder, tmp_path / "made.deb", "gzip")

    succeed("extract", f"{archive}(config)", "-o", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == b"CONFIG_X=y\n"


def test_layers_are_listed(elf: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice"
    path.write_bytes(compressed("bzip2", compressed("xz-module", elf.read_bytes())))

    lines = [line.strip() for line in succeed("extract", "--list", path).splitlines()]

    assert lines == [
        "bzip2, level 9",
        "xz, check 1, lzma2 1,048,576, lc 3, lp 0, pb 2",
        f"{elf.stat().st_size:,}  ELF file",
    ]


@pytest.mark.parametrize("form", ["deb", "cpio", "zstd"])
def test_members_are_listed(form: str, elf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "program").write_bytes(elf.read_bytes())
    (folder / "lib" / "link").symlink_to("program")
    path = tmp_path / "archive"
    if form == "deb":
        package(folder, path, "xz")
    else:
        path.write_bytes(cpio(folder) if form == "cpio" else compressed("zstd", cpio(folder)))
    before = "./" if form == "deb" else ""

    lines = [line.split(maxsplit=1) for line in succeed("extract", "--list", path).splitlines()]

    assert [f"{elf.stat().st_size:,}", f"{before}lib/program"] in lines
    assert ["-", f"{before}lib/link -> program"] in lines


def test_what_a_name_does_to_a_terminal_is_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "red\x1b[31m").touch()
    path = tmp_path / "archive"
    path.write_bytes(cpio(folder))

    listed = succeed("extract", "--list", path)

    assert "\x1b" not in listed
    assert "red\\x1b[31m" in listed


def test_help_shows_it() -> None:
    assert "extract" in succeed("--help")
    assert "FILE(MEMBER)" in succeed("extract", "--help")


# Debian's own


@pytest.mark.kernel
def test_a_kernel_is_what_its_own_decompressor_makes(kernel: Vmlinux, unpacked: Path, tmp_path: Path) -> None:
    (packed,) = kernels.image(kernel.path).glob("boot/vmlinuz-*")

    succeed("extract", packed, "-o", tmp_path / "vmlinux")

    assert (tmp_path / "vmlinux").read_bytes() == unpacked.read_bytes()
    assert bzimage.relocated(unpacked.read_bytes()).narrow, "the list is behind it"
    assert "ELF file" in succeed("extract", "--list", packed)


@pytest.mark.kernel
def test_a_report_on_a_kernel_is_that_on_what_is_in_it(kernel: Vmlinux, unpacked: Path) -> None:
    (packed,) = kernels.image(kernel.path).glob("boot/vmlinuz-*")
    outer, inner = report(packed), report(unpacked)

    assert outer["container"] == [f"bzImage:{'zstd' if '6.12' in packed.name else 'lz4'}"]
    assert len(outer["sites"]) > 1000
    for name in outer.keys() - {"path", "container"}:
        assert outer[name] == inner[name], name


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["gzip", "xz-module", "zstd"])
def test_a_report_on_a_module_is_that_on_what_is_in_it(name: str, development: Development, tmp_path: Path) -> None:
    module = modules.packaged(development, "kvm", tmp_path)
    packed = tmp_path / "packed"
    packed.write_bytes(compressed(name, module.read_bytes()))
    outer, inner = report(packed), report(module)

    assert len(outer["sites"]) > 100
    for key in outer.keys() - {"path", "container"}:
        assert outer[key] == inner[key], key


@pytest.mark.kernel
def test_a_kernel_in_a_package_is_read_by_its_name(kernel: Vmlinux, tmp_path: Path) -> None:
    (packed,) = kernels.image(kernel.path).glob("boot/vmlinuz-*")
    boot = tmp_path / "tree" / "boot"
    boot.mkdir(parents=True)
    (boot / packed.name).write_bytes(packed.read_bytes())
    archive = package(tmp_path / "tree", tmp_path / "linux-image.deb", "none")

    member = through((sys.executable, "-m", "staticcall", "extract", f"{archive}(boot/{packed.name})"), b"")

    assert member == through((sys.executable, "-m", "staticcall", "extract", str(packed)), b"")


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    outcome = staticcall_process("extract", tmp_path / "pipe")

    assert outcome.code == 3
    assert "not a regular file" in outcome.err
