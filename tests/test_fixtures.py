"""The fixtures are what the other tests take them for, by the word of binutils and of running them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from staticcall.model.form import Form
from tests.support import toolchain
from tests.support.programs import COMPILERS, TOOLCHAINS, Builder, Toolchain
from tests.support.sites import (
    ALL_SPLIT,
    BLOCK_SPLIT,
    COMPILED_SITES,
    OPCODE_SPLIT,
    SITES,
    TRAMPOLINES,
    Placed,
    matches,
    size_of,
)
from tests.support.toolchain import Compiler, Kind

PROGRAM_KINDS: tuple[Kind, ...] = ("exec", "pie", "static")
PROGRAMS = ("calls", "forms", "generations")
BROKEN = tuple(sorted(f"broken/{path.stem}" for path in (toolchain.source("calls").parents[1] / "broken").iterdir()))

every_toolchain = pytest.mark.parametrize("tools", TOOLCHAINS, ids="-".join)
every_kind = pytest.mark.parametrize("kind", PROGRAM_KINDS)


def _key_symbol(key: str) -> str:
    return key if key.startswith("posted_") else f"__SCK__{key}"


def _text_pattern(site: Placed) -> str:
    destination = re.escape(site.destination or f"__SCT__{site.key}")
    pattern = site.shape.text.replace("{}", destination).replace("ADDRESS", "[0-9a-f]+")
    return pattern.replace("SLOT", r"0x[0-9a-f]+\(%rip\) # [0-9a-f]+")


def _check_sites(program: Path, fixture: str) -> None:
    names = toolchain.symbols(program)
    records = {record.site: record for record in toolchain.records(program)}
    for site in SITES[fixture]:
        address = names[site.function] + site.lead
        record = records.pop(address)
        assert (record.key, record.flags) == (names[_key_symbol(site.key)], int(site.tail)), site
        assert matches(toolchain.bytes_at(program, address, size_of(site.shape.code)), site.shape.code), site
        assert site.offset is None or address % 64 == site.offset, site
        assert re.fullmatch(_text_pattern(site), toolchain.disassemble(program, address)), site
    assert len(records) == COMPILED_SITES.get(fixture, 0)
    for record in records.values():
        assert record.flags == 0
        assert toolchain.bytes_at(program, record.site, 1) == b"\xe8"


@every_toolchain
@every_kind
@pytest.mark.parametrize("fixture", [*PROGRAMS, *BROKEN, "demo"])
def test_programs_print_what_they_should(fixture: str, kind: Kind, tools: Toolchain, built: Builder) -> None:
    assert toolchain.run(built(fixture, kind, tools)) == toolchain.expected_output(fixture)


@every_toolchain
@pytest.mark.parametrize("kind", ["exec", "pie"])
@pytest.mark.parametrize("fixture", ["library", "exported"])
def test_libraries_run_in_their_host(fixture: str, kind: Kind, tools: Toolchain, built: Builder) -> None:
    library = built(fixture, "shared", tools)
    assert toolchain.run(built("library/host", kind, tools), library) == toolchain.expected_output(fixture)


@every_toolchain
@pytest.mark.parametrize("fixture", SITES)
def test_every_record_leads_to_its_instruction(fixture: str, tools: Toolchain, built: Builder) -> None:
    _check_sites(built(fixture, "shared" if fixture == "library" else "pie", tools), fixture)


@every_kind
@pytest.mark.parametrize("fixture", PROGRAMS)
def test_records_hold_in_every_kind_of_program(fixture: str, kind: Kind, built: Builder) -> None:
    _check_sites(built(fixture, kind), fixture)


def test_every_form_occurs() -> None:
    assert {site.shape.form for site in SITES["forms"]} == set(Form)


def test_the_crossings_are_the_ones_meant() -> None:
    def crosses(first: int, end: int, block: int) -> bool:
        return first // block != (end - 1) // block

    for site in SITES["calls"]:
        assert site.offset is not None
        name, end = site.function, site.offset + size_of(site.shape.code)
        assert crosses(site.offset, end, 64) == name.endswith(ALL_SPLIT + OPCODE_SPLIT), name
        assert crosses(end - 4, end, 64) == name.endswith(ALL_SPLIT), name
        assert crosses(end - 4, end, 8) == name.endswith(ALL_SPLIT + BLOCK_SPLIT), name


@every_toolchain
def test_key_slots_of_a_pie_have_their_value_in_the_relocation(tools: Toolchain, built: Builder) -> None:
    program = built("calls", "pie", tools)
    names, addends = toolchain.symbols(program), toolchain.relative_addends(program)
    assert addends[names["__SCK__alpha"]] == names["alpha_plain"]
    assert addends[names["__SCK__beta"]] == names["beta_plain"]
    assert addends[names["__SCK__zero"]] == names["__static_call_return0"]
    assert names["__SCK__hook"] not in addends
    assert not toolchain.packed_slots(program)


@every_toolchain
@pytest.mark.parametrize(("fixture", "kind"), [("calls", "pie"), ("library", "shared")])
def test_key_slots_of_a_relr_build_hold_their_value_themselves(
    fixture: str, kind: Kind, tools: Toolchain, built: Builder
) -> None:
    program = built(fixture, kind, tools, relr=True)
    names, packed = toolchain.symbols(program), toolchain.packed_slots(program)
    targets = {
        "calls": {"alpha": "alpha_plain", "beta": "beta_plain"},
        "library": {"scale": "library_scale"},
    }[fixture]
    for key, target in targets.items():
        slot = names[f"__SCK__{key}"]
        assert slot in packed
        assert slot not in toolchain.relative_addends(program)
        assert int.from_bytes(toolchain.bytes_at(program, slot, 8), "little") == names[target]
    assert names["__SCK__hook"] not in packed


@pytest.mark.parametrize("cc", COMPILERS)
def test_relr_programs_run(cc: Compiler, built: Builder) -> None:
    # Only with GNU ld: glibc loads packed relocations only from files with a version note that not every
    # release of the other linkers writes.
    program = built("calls", "pie", Toolchain(cc, "bfd"), relr=True)
    assert toolchain.run(program) == toolchain.expected_output("calls")


@every_toolchain
def test_trampolines_of_every_generation(tools: Toolchain, built: Builder) -> None:
    program = built("generations", "pie", tools)
    names = toolchain.symbols(program)
    for symbol, code in TRAMPOLINES.items():
        assert names[symbol] % 4 == 0
        assert matches(toolchain.bytes_at(program, names[symbol], size_of(code)), code), symbol
    for symbol, text in (
        ("__SCT__thunk", "jmp [0-9a-f]+ <__x86_return_thunk>"),
        ("__SCT__return0", "jmp [0-9a-f]+ <__static_call_return0>"),
        (
            "____static_call_tramp_posted_temporary",
            r"jmp \*0x[0-9a-f]+\(%rip\) # [0-9a-f]+ <posted_temporary>",
        ),
        ("____static_call_tramp_posted_permanent", "call [0-9a-f]+ <plain_add>"),
    ):
        assert re.fullmatch(text, toolchain.disassemble(program, names[symbol])), symbol


def test_a_vacant_key_of_one_pointer_is_not_in_the_file(built: Builder) -> None:
    program = built("generations", "pie")
    with pytest.raises(ValueError, match="holds no 8 bytes"):
        toolchain.bytes_at(program, toolchain.symbols(program)["posted_vacant"], 8)


@every_toolchain
def test_broken_tables_are_broken_as_meant(tools: Toolchain, built: Builder) -> None:
    def table(name: str) -> tuple[dict[str, int], list[toolchain.Record]]:
        program = built(f"broken/{name}", "pie", tools)
        return toolchain.symbols(program), toolchain.records(program)

    names, records = table("duplicate")
    assert [record.site for record in records] == [names["twice"] + 4] * 2 + [names["disputed"] + 4] * 2
    keys = [names[f"__SCK__{key}"] for key in ("plain", "plain", "other", "plain")]
    assert [record.key for record in records] == keys

    names, records = table("overlap")
    assert [record.site - names["overlapping"] for record in records] == [4, 5]

    names, records = table("unrecorded")
    assert [record.site for record in records] == [names["recorded"] + 4]

    names, records = table("wrong_trampoline")
    assert (names["wrong"] + 4, names["__SCK__plain"]) in [record[:2] for record in records]


@every_toolchain
def test_broken_code_is_broken_as_meant(tools: Toolchain, built: Builder) -> None:
    def instruction(name: str, function: str, lead: int = 0) -> str:
        program = built(f"broken/{name}", "pie", tools)
        return toolchain.disassemble(program, toolchain.symbols(program)[function] + lead)

    for function, lead in (("unrecorded_call", 4), ("unrecorded_jmp", 0), ("unrecorded_jcc", 2)):
        assert instruction("unrecorded", function, lead).endswith("<__SCT__plain>")
    assert instruction("unrecorded", "address_taken", 4).startswith("lea ")
    assert instruction("wrong_trampoline", "wrong", 4).endswith("<__SCT__other>")
    assert instruction("stale_site", "stale_call", 4).endswith("<plain_old>")
    assert instruction("stale_site", "stale_jmp").endswith("<plain_old>")
    assert instruction("stale_trampoline", "__SCT__other").endswith("<plain_old>")

    program = built("broken/false_positive", "pie", tools)
    names = toolchain.symbols(program)
    assert instruction("false_positive", "in_constant").startswith("movabs $0x")
    for start in (names["in_constant"] + 2, names["in_data"], names["in_text"]):
        code = toolchain.bytes_at(program, start, 5)
        assert code[0] == 0xE8
        assert start + 5 + int.from_bytes(code[1:], "little", signed=True) == names["__SCT__plain"]


def test_the_demo_measures(built: Builder) -> None:
    pattern = r"picture [0-9a-f]{8} by checksum_plain\n\d+ ns per row\n"
    assert re.fullmatch(pattern, toolchain.run(built("demo", "exec"), "3"))


def test_refusals_and_failures_are_told(tmp_path: Path) -> None:
    with pytest.raises(toolchain.BuildError, match="no_such_option"):
        toolchain.build("demo", tmp_path, kind="exec", extra=["-fno_such_option"])
    host = toolchain.build("library/host", tmp_path, kind="exec")
    with pytest.raises(toolchain.RunError, match="exit code 1"):
        toolchain.run(host)
