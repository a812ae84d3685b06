"""What a report says of objects and cache lines holds wherever a linker puts their sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import disassembly, elf_object
from tests.support.objects import SOURCES, run
from tests.support.tool import POLICIES, Json, report

pytestmark = pytest.mark.usefixtures("made")  # the tools that it needs are needed here

_ALIGNMENTS = tuple(1 << power for power in range(13))


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A section for each alignment, with calls and jumps at offsets that matter for one line or another."""
    folder = tmp_path_factory.mktemp("placed")
    lines = ['#include "static_call.inc"', "DEFINE one, target", ".text", "FUNCTION target", "ret", "END target"]
    for alignment in _ALIGNMENTS:
        lines += [
            f'.section .text.a{alignment}, "ax", @progbits',
            f".balign {alignment}",
            f".type a{alignment}, @function",
        ]
        lines += [f"a{alignment}:"]
        for number, instruction in enumerate(_instructions()):
            tail = int("j" in instruction)
            lines += [f".org a{alignment} + {65 * number}, 0x90", f"1: {instruction}"]
            lines += [
                '.pushsection static_call_sites, "aw", @progbits',
                ".balign 4",
                ".long 1b - .",
                f".long __SCK__one - . + {tail}",
                ".popsection",
            ]
        lines += [f"END a{alignment}"]
    (folder / "placed.S").write_text("\n".join(lines) + "\n")
    run("gcc", f"-I{SOURCES}", "-c", folder / "placed.S", "-o", folder / "placed.o")
    return folder / "placed.o"


@pytest.fixture(scope="module")
def shown(placed: Path) -> list[disassembly.Site]:
    return disassembly.sites(placed)


def _instructions() -> list[str]:
    """For each offset in a line of 128, since each is to be 65 bytes behind the one before; calls for the most part."""
    call, others = "call __SCT__one", (".byte 0x2e; call __SCT__one", "jmp __SCT__one", "js __SCT__one")
    return [others[number // 5 % 3] if number % 5 == 4 else call for number in range(128)]


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        *((policy, 64) for policy in POLICIES),
        *((policy, line) for policy in ("lutomirski", "rel32") for line in (32, 128)),
    ],
)
def test_verdicts_hold_for_every_place_that_the_sections_alignment_allows(
    policy: str, line: int, placed: Path, shown: list[disassembly.Site]
) -> None:
    elf = elf_object.read(placed)
    assert len(shown) == 128 * len(_ALIGNMENTS)
    image = report("--policy", policy, "--line", str(line), placed)
    names = {section.name: section.number for section in elf.sections}
    found = {(names[site["section"]], site["offset"]): site for site in image["sites"]}
    seen: set[Any] = set()
    for site in shown:
        one, alignment = found[site.section, site.offset], elf.sections[site.section].alignment
        crossing = disassembly.crossings(site.offset, len(site.code), alignment, line)
        answer = disassembly.verdict(site, policy, alignment, line)
        assert one["crosses_line"] is (None if len(crossing) > 1 else True in crossing), (site, alignment)
        assert one["verdict"] == answer, (site, alignment)
        assert (one["reason"] == "depends-on-address") is (answer == "undecided")
        seen |= {one["crosses_line"], answer}
    expected = {"direct", "trampoline"} | ({"undecided"} if policy in ("lutomirski", "rel32", "block8") else set())
    assert seen == {True, False, None} | expected
    verdicts = [site["verdict"] for site in image["sites"]]
    summary = image["summary"]
    assert [summary[kind] for kind in ("direct", "trampoline", "undecided")] == [
        verdicts.count(kind) for kind in ("direct", "trampoline", "undecided")
    ]
    assert summary["crossing"] == sum(site["crosses_line"] is True for site in image["sites"])


@pytest.fixture(scope="module")
def reported(placed: Path) -> dict[str, Json]:
    """What is said of the object, by policy."""
    return {policy: report("--policy", policy, placed) for policy in POLICIES}


@pytest.mark.parametrize("start", [1, 16, 40, 59])
def test_no_linker_contradicts_a_definite_answer(
    start: int, placed: Path, reported: dict[str, Json], tmp_path: Path
) -> None:
    """The sections are linked to places that differ by so much from a round one.

    What is said of them there is what was said of the object, or a decision of what was left open.
    """
    program, script = tmp_path / "placed", tmp_path / "script"
    lines = ["SECTIONS {", "static_call_sites 0x400000 : { *(static_call_sites) }"]
    for number, alignment in enumerate(_ALIGNMENTS):
        name, address = f".text.a{alignment}", 0x500000 + 0x10000 * number + start
        # The address of the output section is taken as it is; its contents start where their alignment allows.
        lines.append(f"{name} {address:#x} : {{ *({name}) }}")
    script.write_text("\n".join([*lines, "}"]) + "\n")
    run("ld.bfd", "-e", "0", "-z", "noexecstack", "--no-warn-rwx-segments", "-T", script, placed, "-o", program)
    for policy in POLICIES:
        images = (reported[policy], report("--policy", policy, program))
        before, after = ({site["record"]: site for site in image["sites"]} for image in images)
        assert before.keys() == after.keys()
        assert {(site["crosses_line"], after[number]["crosses_line"]) for number, site in before.items()} <= {
            *((answer, answer) for answer in (True, False)),
            *((None, answer) for answer in (True, False)),
        }
        assert {(site["verdict"], after[number]["verdict"]) for number, site in before.items()} <= {
            *((answer, answer) for answer in ("direct", "trampoline")),
            *(("undecided", answer) for answer in ("direct", "trampoline")),
        }
        assert all(site["verdict"] != "undecided" for site in after.values())
    crossing = {
        disassembly.crossings(int(s["address"], 16), s["length"], 1 << 20, 64) == {s["crosses_line"]}
        for s in after.values()
    }
    assert crossing == {True}
