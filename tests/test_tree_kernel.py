"""The modules of whole kernels: totals against another decoder, progress, and how much memory a tree takes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from tests.support import elf_object, kernels
from tests.support.tool import succeed
from tests.support.vmlinux import KEY, TRAMPOLINE, Vmlinux

pytestmark = pytest.mark.kernel

TABLE = ".static_call_sites"
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def tree(kernel: Vmlinux) -> Path:
    """The folder with the modules of a kernel, as its package has them."""
    return next(kernels.image(kernel.path).glob("**/lib/modules/*"))


@pytest.fixture(scope="module")
def modules(tree: Path) -> list[Path]:
    found = sorted(tree.rglob("*.ko*"))
    assert len(found) > 1000
    return found


def unpacked(modules: list[Path]) -> Iterator[bytes]:
    """The contents of modules, by xz where they are compressed: one process for all, and their sizes by another."""
    packed = [path for path in modules if path.suffix == ".xz"]
    if not packed:
        yield from (path.read_bytes() for path in modules)
        return
    assert packed == modules
    listing = subprocess.run(["xz", "--robot", "--list", *packed], capture_output=True, text=True, check=True).stdout
    sizes = [int(line.split("\t")[4]) for line in listing.splitlines() if line.startswith("file")]
    with subprocess.Popen(["xz", "-dc", *packed], stdout=subprocess.PIPE) as xz:
        assert xz.stdout is not None
        for size in sizes:
            yield xz.stdout.read(size)
        assert not xz.stdout.read(1)


def counted(module: bytes, folder: Path) -> Counter[str]:
    """The records of a module by what they name, and by the opcode that they point at."""
    if TABLE.encode() not in module:
        return Counter()
    path = folder / "module"
    path.write_bytes(module)
    elf = elf_object.read(path)
    counts: Counter[str] = Counter()
    (table,) = (section for section in elf.sections if section.name == f".rela{TABLE}")
    entries = elf.relocations(table)
    for site, key in zip(entries[::2], entries[1::2], strict=True):
        place, name = elf.symbols[site.symbol], elf.symbols[key.symbol].name
        opcode = elf.sections[place.section].content[place.value + site.addend]
        counts["records"] += 1
        counts[f"{opcode:02x}"] += 1
        counts["key" if name.startswith(KEY) else "trampoline" if name.startswith(TRAMPOLINE) else "other"] += 1
        counts["tail"] += key.addend & 1
    return counts


def test_totals_of_all_modules_equal_an_independent_decode(tree: Path, modules: list[Path], tmp_path: Path) -> None:
    by_module = [counted(module, tmp_path) for module in unpacked(modules)]
    expected = sum(by_module, Counter())
    assert expected["records"] > 1000
    assert expected["key"] + expected["trampoline"] == expected["records"]

    text = succeed("report", "-j", "2", tree)
    images = [json.loads(line) for line in succeed("report", "-j", "2", "--format", "jsonl", tree).splitlines()]

    sites = [[site for site in image["sites"] if site["record"] is not None] for image in images]
    assert [image["path"] for image in images] == [str(path) for path in modules]
    assert [len(own) for own in sites] == [counts["records"] for counts in by_module]
    flat = [site for own in sites for site in own]
    assert Counter(site["bytes"][:2] for site in flat) == {
        opcode: expected[opcode] for opcode in ("e8", "e9") if expected[opcode]
    }
    assert sum(site["tail"] for site in flat) == expected["tail"]
    for label, count in (
        ("sites,", expected["records"]),
        (r"more \(", sum(bool(counts) for counts in by_module) - len(re.findall(r"\.ko(?:\.xz)?\n", text))),
        ("files? read", len(modules)),
    ):
        found = re.search(rf"([\d,]+) {label}", text)
        assert found, text
        assert int(found[1].replace(",", "")) == count, label


def _peak(*arguments: str | Path) -> int:
    """The largest memory in bytes of a process that runs the tool."""
    command = [sys.executable, "-m", "staticcall", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    peak: int = usage.ru_maxrss * 1024
    return peak


def test_memory_is_that_of_the_largest_module(tree: Path, modules: list[Path]) -> None:
    largest = sorted(modules, key=lambda path: path.stat().st_size)[-3:]
    alone = max(_peak("report", "--quiet", path) for path in largest)

    # The modules that are read and what a tree adds to the program are a few megabytes, and do not grow.
    assert _peak("report", "--quiet", tree) < alone + 12 * MEGABYTE


def test_progress_shows_on_a_terminal_and_nowhere_else(tree: Path) -> None:
    command = [sys.executable, "-m", "staticcall", "report", str(tree)]
    main, terminal = pty.openpty()
    try:
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, check=True)
        os.close(terminal)
        shown = _read(main)
    finally:
        os.close(main)
    piped = subprocess.run(command, capture_output=True, check=True)

    total = sum(path.is_file() for path in tree.rglob("*"))
    counts = [int(count.replace(",", "")) for count in re.findall(rf"([\d,]+) of {total:,} files", shown.decode())]
    # A run that takes no second shows nothing.
    assert bool(counts) == bool(shown), shown
    assert counts == sorted(counts)
    screen = pyte.Screen(120, 5)
    pyte.ByteStream(screen).feed(shown)
    assert not "".join(screen.display).strip()
    assert told.stdout == piped.stdout
    assert piped.stderr == b""


def _read(descriptor: int) -> bytes:
    pieces = []
    try:
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
    except OSError:  # the end of a terminal
        pass
    return b"".join(pieces)
