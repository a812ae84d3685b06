"""What the fuzzer found, once each: inputs that gave a traceback, took too long, or took too much memory."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import containers, small_kernels
from tests.support.elf_edit import Elf
from tests.support.elf_object import SHT_LLVM_ADDRSIG
from tests.support.object_mutations import grown, parts_of
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.refusals import INPUT, UNSAFE, USAGE, one_line
from tests.support.tool import staticcall, succeed

MEGABYTE = 1 << 20
SECONDS = 2.0


@contextmanager
def _at_most(megabytes: int) -> Iterator[None]:
    """Let this process have no more than so much on top of what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * MEGABYTE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("table", ["1" * 5000 + ":0", "0:" + "f" * 17, "-8:8", "8:-8"])
@pytest.mark.parametrize("command", ["report", "patch", "verify"])
def test_addresses_of_a_table_that_are_none(built: Builder, command: str, table: str) -> None:
    program = built("calls", "pie")
    rest = {"report": (), "patch": ("--bind", "--dry-run"), "verify": (program,)}[command]
    outcome = staticcall(command, program, *rest, f"--table={table}")

    assert outcome.code == USAGE, outcome
    assert "hex" in one_line(outcome)


@pytest.mark.parametrize("wish", ["--set=alpha=\udcff", "--set=\udcff=alpha_fast", "--pin=\udcff"])
def test_names_on_the_command_line_that_are_no_text(built: Builder, wish: str) -> None:
    outcome = staticcall("patch", built("calls", "pie"), wish, "--dry-run")

    assert outcome.code == UNSAFE, outcome
    assert "\\udcff" in one_line(outcome)


def test_a_long_list_of_significant_addresses_takes_little_memory(made: Objects, tmp_path: Path) -> None:
    content = made("clang_tables", "clang").read_bytes()
    assert parts_of(content)["addrsig"].header["type"] == SHT_LLVM_ADDRSIG
    path, out = tmp_path / "bad.o", tmp_path / "out.o"
    succeed("annotate", made("clang_tables", "clang"), "-o", out)  # what is imported late takes memory of its own
    path.write_bytes(grown(content, "addrsig", bytes(MEGABYTE)))

    with _at_most(100 + 10):
        succeed("annotate", path, "-o", out)


def test_no_part_of_an_allow_list_is_printed_where_a_name_turns_out_to_be_broken(tmp_path: Path) -> None:
    kernel, bad = small_kernels.build(tmp_path, "6.12.0", "THUNK"), tmp_path / "bad"
    codes = set()
    for number, _ in enumerate(Elf(kernel.read_bytes()).symbols()):
        elf = Elf(kernel.read_bytes())
        list(elf.symbols())[number]["name"] = 0x7FFFFFFF
        bad.write_bytes(elf.data)
        outcome = staticcall("allow-list", bad)
        codes.add(outcome.code)
        if outcome.code:
            one_line(outcome)
            assert outcome.out == "", outcome

    assert codes == {0, INPUT}


@pytest.mark.parametrize("alignment", [1, 2])
def test_many_sites_of_a_section_without_alignment_are_judged_by_few_questions(tmp_path: Path, alignment: int) -> None:
    source, path = tmp_path / "many.S", tmp_path / "many.o"
    source.write_text(f".text\n.balign {alignment}\n.rept 4000\ncall __SCT__x\nnop\n.endr\n")
    subprocess.run(["gcc", "-c", "-o", path, source], check=True)
    start = time.process_time()
    outcome = staticcall("report", path, "--format", "jsonl", "--line", "4096")

    assert outcome.code == 0, outcome
    assert json.loads(outcome.out)["summary"]["undecided"] == 4000
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("lost", range(6))
def test_another_table_may_name_a_call_that_only_the_scan_finds(tmp_path: Path, lost: int) -> None:
    source = small_kernels.SOURCE.with_name("claims.S")
    kernel = small_kernels.build(tmp_path, "6.12.0", "EXCEPTIONS", "PLACE=zero_call", source=source)
    elf = Elf(kernel.read_bytes())
    table = elf.section(".static_call_sites")
    for field, change in (("addr", 8), ("offset", 8), ("size", -8)):
        table[field] += lost * change
    kernel.write_bytes(elf.data)
    (image,) = json.loads(staticcall("report", "--scan", "--format", "json", kernel).out)["images"]

    (finding,) = [one for one in image["findings"] if one["code"] == "overlaps-exception"]
    assert int(finding["address"], 16) == elf.symbol("zero_call")["value"]


@pytest.mark.usefixtures("packers")
def test_no_part_of_a_list_is_printed_where_the_archive_turns_out_to_be_broken(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "in" / name).write_bytes(bytes(1000))
    path = tmp_path / "archive"
    path.write_bytes(containers.cpio(tmp_path / "in")[:2500])
    outcome = staticcall("extract", "--list", path)

    assert outcome.code == INPUT
    assert "truncated" in one_line(outcome)
    assert outcome.out == ""
