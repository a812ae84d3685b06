"""Where the code of modules will be: what a report says of made-up ones, for which the answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import elf_edit
from tests.support.objects import SOURCES, run
from tests.support.tool import Json, report, succeed

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

UNLOADS, KEEPS = "SMP preempt mod_unload modversions", "SMP preempt modversions"


class Part(NamedTuple):
    """A section of code: its name, alignment and size, and the offset of the call in it."""

    name: str
    alignment: int
    size: int
    call: int


# Their places in the two memories: .text 0, .text.unlikely 100, .exit.text 144, .noinstr.text 256; .init.text 0,
# .init.more 40. A call crosses a line of 64 bytes if it starts in its last four.
PARTS = (
    Part(".text", 16, 100, 60),
    Part(".init.text", 1, 33, 0),
    Part(".text.unlikely", 1, 29, 24),
    Part(".exit.text", 16, 70, 12),
    Part(".init.more", 8, 40, 20),
    Part(".noinstr.text", 64, 64, 59),
)
CORE = {".text": True, ".text.unlikely": True, ".noinstr.text": False}
CROSSING = {**CORE, ".exit.text": False, ".init.text": False, ".init.more": True}
# What an alignment says for itself.
ANYWHERE = {**dict.fromkeys(CROSSING), ".noinstr.text": False}


def _module(folder: Path, vermagic: str, *, final: bool = True) -> Path:
    """An object with a call of a static call in each section, and what a module has besides."""
    lines = ['#include "static_call.inc"', '.section .demo.data, "aw"', "DEFINE one, target"]
    # The header's order counts, which is that of the first mention.
    lines[1:1] = [f'.section {part.name}, "ax", @progbits' for part in PARTS]
    lines += ['.section .demo.text, "a"', ".type target, @function", "target: ret", ".size target, . - target"]
    for part in PARTS:
        lines += [f'.section {part.name}, "ax", @progbits', f".balign {part.alignment}", f".fill {part.call}, 1, 0x90"]
        lines += ["call __SCT__one", f".fill {part.size - part.call - 5}, 1, 0x90"]
    if final:
        lines += ['.section .gnu.linkonce.this_module, "aw"', ".fill 64"]
    lines += ['.section .modinfo, "a"', f'.asciz "vermagic=6.12.0-demo {vermagic} "', '.asciz "depends="']
    source = folder / "module.S"
    source.write_text("\n".join(lines) + "\n")
    run("gcc", f"-I{SOURCES}", "-c", source, "-o", folder / "module.ko")
    return folder / "module.ko"


def _crossing(image: Json) -> dict[str, bool | None]:
    return {site["section"]: site["crosses_line"] for site in image["sites"]}


def _foretold(image: Json) -> set[str]:
    """The sections whose sites are said to have a place that is known."""
    assert {site.get("placement") for site in image["sites"]} <= {"predicted", None}
    return {site["section"] for site in image["sites"] if "placement" in site}


def test_sections_of_code_follow_each_other_in_two_memories(tmp_path: Path) -> None:
    image = report(_module(tmp_path, UNLOADS))
    assert _crossing(image) == CROSSING
    assert _foretold(image) == CROSSING.keys()
    assert image["summary"]["undecided"] == 0
    assert image["summary"]["crossing"] == sum(CROSSING.values())
    assert all(site["address"] is None for site in image["sites"])


def test_an_object_that_a_link_may_still_move_stays_open(tmp_path: Path) -> None:
    image = report(_module(tmp_path, UNLOADS, final=False))
    assert _crossing(image) == ANYWHERE
    assert _foretold(image) == set()


def test_a_kernel_that_keeps_modules_may_do_what_it_likes_with_their_exit(tmp_path: Path) -> None:
    image = report(_module(tmp_path, KEEPS))
    assert _crossing(image) == ANYWHERE | CORE
    assert _foretold(image) == CORE.keys()


def test_nothing_is_foretold_behind_a_damaged_alignment(tmp_path: Path) -> None:
    path = _module(tmp_path, UNLOADS)
    elf = elf_edit.Elf(path.read_bytes())
    elf.section(".text.unlikely")["addralign"] = 3
    path.write_bytes(elf.data)
    image = report(path)
    init = {name: CROSSING[name] for name in (".init.text", ".init.more")}
    assert _crossing(image) == ANYWHERE | init | {".text": True}
    assert _foretold(image) == {".text", *init}


@pytest.mark.parametrize("line", [8, 32, 128, 4096])
def test_the_place_is_known_for_lines_up_to_a_page(tmp_path: Path, line: int) -> None:
    places = {
        ".text": 60,
        ".text.unlikely": 124,
        ".exit.text": 156,
        ".noinstr.text": 315,
        ".init.text": 0,
        ".init.more": 60,
    }
    image = report("--line", str(line), _module(tmp_path, UNLOADS))
    assert _crossing(image) == {name: place // line != (place + 4) // line for name, place in places.items()}


def test_the_text_says_that_lines_are_foretold(tmp_path: Path) -> None:
    line = "  cache lines foretold from where the kernel's loader puts the code"
    assert line in succeed("report", _module(tmp_path, UNLOADS)).splitlines()
    assert line not in succeed("report", _module(tmp_path, UNLOADS, final=False)).splitlines()
