"""What `staticcall explain` advises, and what it calls the code of objects, against arithmetic and the source."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import Builder
from tests.support.tool import Json, report, succeed
from tests.support.toolchain import missing_tools

LINE = 64


def site_of(path: Path, question: str, *options: str) -> Json:
    site = json.loads(succeed("explain", "--format", "json", path, question, *options))["site"]
    assert isinstance(site, dict)
    return site


PLACED = """\
.macro PART name, alignment
.section .text.\\name, "ax", @progbits
.balign \\alignment
.type \\name, @function
\\name: .fill 62, 1, 0x90
call __SCT__one
movl %gs:other+8(%rip), %eax
movq $other+4, %rdi
call *another@GOTPCREL(%rip)
jmp __SCT__one
.size \\name, . - \\name
.endm
PART loose, 1
PART four, 4
PART sixteen, 16
.section .data
.globl __SCK__one
__SCK__one: .quad 0, 0
"""


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    source = tmp_path_factory.mktemp("placed") / "placed.S"
    source.write_text(PLACED)
    path = source.with_suffix(".o")
    subprocess.run(["gcc", "-c", source, "-o", path], check=True)
    succeed("annotate", "--in-place", "--section", "static_call_sites", path)
    return path


@pytest.mark.parametrize("name", ["loose", "four", "sixteen"])
@pytest.mark.parametrize(("policy", "first", "size"), [("lutomirski", 0, 5), ("block8", 1, 4)])
def test_padding_of_a_section_that_may_be_anywhere_does_it_wherever_that_is(
    policy: str, first: int, size: int, name: str, placed: Path
) -> None:
    changes = site_of(placed, f".text.{name}+3e", "--policy", policy)["changes"]
    numbers = re.match(r"(\d+) bytes? more of code before it, or (\d+) (?:bytes? )?less", changes[0]["how"])
    assert numbers
    forward, back = map(int, numbers.groups())
    aligned = re.search(r", with its section aligned to (\d+) bytes", changes[0]["how"])
    alignment = int(aligned[1]) if aligned else {"loose": 1, "four": 4, "sixteen": 16}[name]
    block = 8 if policy == "block8" else LINE

    def fits(offset: int) -> bool:
        starts = range(offset + first, offset + first + LINE, alignment)
        return all(start // block == (start + size - 1) // block for start in starts)

    assert not fits(62)
    assert fits(62 + forward)
    assert fits(62 - back)


def test_what_other_files_define_is_called_by_its_name(placed: Path) -> None:
    lines = {line["text"]: line["leads_to"] for line in site_of(placed, "loose+3e")["instructions"]}

    assert lines["movl %gs:other+0x8(%rip), %eax"] == "other+0x8"
    assert lines["movq $0, %rdi"] == "other+0x4"
    assert lines["callq *another@GOTPCREL(%rip)"] == "another@GOTPCREL"
    assert lines["callq __SCT__one"] == "__SCT__one"


def flags(path: Path, question: str, *options: str) -> set[str]:
    return {change["flags"] for change in site_of(path, question, *options)["changes"]} - {None}


def test_flags_are_told_where_they_do_it(placed: Path, built: Builder, vmlinux_612: Path) -> None:
    demo, kernel = built("demo", "exec"), report(vmlinux_612)
    (align,) = flags(placed, "loose+3e")
    (other,) = flags(placed, "loose+3e", "--line", "16")
    prefix, call = flags(demo, report(demo)["sites"][0]["address"], "--policy", "torvalds"), flags(placed, "loose+57")

    assert "-malign-branch-boundary=64" in align
    assert "-malign-branch-boundary=16" in other
    assert call == {"-fno-optimize-sibling-calls"}
    assert prefix == {"-fno-plt -Wl,-z,call-nop=prefix-0x2e"}
    assert flags(placed, "loose+57", "--policy", "torvalds") == {f"{call.pop()} {prefix.pop()}"}
    # No assembler aligns to 8 bytes, none looks at displacements, and a kernel takes no prefix.
    assert not flags(placed, "loose+3e", "--line", "8")
    assert not flags(placed, "loose+3e", "--policy", "block8")
    assert not flags(vmlinux_612, kernel["sites"][0]["address"], "--policy", "torvalds")
    assert "without a prefix" not in succeed("report", "--policy", "torvalds", vmlinux_612)
