"""The fixtures are what the other tests take them for, by the word of binutils and of running them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from staticcall.model.sites import Form
from tests.support import toolchain
from tests.support.toolchain import Compiler, Kind, Linker

COMPILERS: tuple[Compiler, ...] = ("gcc", "clang")
PROGRAM_KINDS: tuple[Kind, ...] = ("exec", "pie", "static")
PROGRAMS = ("calls", "forms", "generations")
BROKEN = tuple(sorted(f"broken/{path.stem}" for path in (toolchain.source("calls").parents[1] / "broken").iterdir()))


class Toolchain(NamedTuple):
    cc: Compiler
    linker: Linker


LINKERS: tuple[Linker, ...] = ("bfd", "lld", "mold")
TOOLCHAINS = tuple(Toolchain(cc, linker) for cc, linker in product(COMPILERS, LINKERS))

Builder = Callable[..., Path]

every_toolchain = pytest.mark.parametrize("tools", TOOLCHAINS, ids="-".join)
every_kind = pytest.mark.parametrize("kind", PROGRAM_KINDS)


class Shape(NamedTuple):
    """An instruction: its form, its bytes in hex, and how objdump puts it (`{}` is where it leads)."""

    form: Form
    code: str
    text: str


CALL = Shape(Form.CALL, "e8 ........", "call ADDRESS <{}>")
PREFIXED = Shape(Form.PREFIXED_CALL, "2e e8 ........", "cs call ADDRESS <{}>")
PREFIXED_67 = Shape(Form.PREFIXED_CALL, "67 e8 ........", "addr32 call ADDRESS <{}>")
INDIRECT_CALL = Shape(Form.INDIRECT_CALL, "ff 15 ........", r"call \*SLOT <{}>")
JMP = Shape(Form.TAIL_JMP, "e9 ........", "jmp ADDRESS <{}>")
INDIRECT_JMP = Shape(Form.INDIRECT_JMP, "ff 25 ........", r"jmp \*SLOT <{}>")
JS = Shape(Form.JCC, "0f 88 ........", "js ADDRESS <{}>")
JS_SHORT = Shape(Form.JCC, "78 ..", "js ADDRESS <{}>")
SHORT_JMP = Shape(Form.SHORT_JMP, "eb ..", "jmp ADDRESS <{}>")
NOP = Shape(Form.NOP, "0f 1f 44 00 00", r"nopl 0x0\(%rax,%rax,1\)")
RET = Shape(Form.RET, "c3 cc cc cc cc", "ret")
RET0_CS = Shape(Form.RET0, "2e 2e 2e 31 c0", "cs cs cs xor %eax,%eax")
RET0_DATA16 = Shape(Form.RET0, "66 66 48 31 c0", "data16 data16 xor %rax,%rax")
WARN_TRAP = Shape(Form.WARN_TRAP, "67 48 0f b9 3a", r"ud1 \(%edx\),%rdi")
MOV = Shape(Form.UNKNOWN, "b8 39 30 00 00", r"mov \$0x3039,%eax")
BND_CALL = Shape(Form.UNKNOWN, "f2 e8 ........", "bnd call ADDRESS <{}>")


class Placed(NamedTuple):
    """A site: its function and offset there, key and shape, and the offset in a line where that is fixed."""

    function: str
    lead: int
    key: str
    shape: Shape
    offset: int | None = None
    destination: str = ""

    @property
    def tail(self) -> bool:
        return self.shape.form in (Form.TAIL_JMP, Form.INDIRECT_JMP, Form.JCC, Form.SHORT_JMP, Form.RET)


def _call(name: str, key: str, offset: int, shape: Shape = CALL, destination: str = "") -> Placed:
    return Placed(name, 4, key, shape, offset, destination)


def _void(name: str, key: str, offset: int, shape: Shape = CALL) -> Placed:
    return Placed(name, 1, key, shape, offset)


def _tail(name: str, key: str, offset: int, shape: Shape = JMP, destination: str = "") -> Placed:
    return Placed(name, 0, key, shape, offset, destination)


def _jcc(name: str, key: str, offset: int) -> Placed:
    return Placed(name, 2, key, JS, offset)


def _posted(name: str, prefix: str, lead: int = 4) -> Placed:
    return Placed(f"call_{name}", lead, name, CALL, 8, f"{prefix}static_call_tramp_{name}")


SITES = {
    "calls": (
        _call("alpha_inside", "alpha", 8),
        _call("alpha_block_edge", "alpha", 15),
        _call("alpha_block", "alpha", 20),
        _call("alpha_line_end", "alpha", 59),
        _call("alpha_last_byte", "alpha", 60),
        _call("alpha_split", "alpha", 61),
        _call("alpha_opcode", "alpha", 63),
        _call("alpha_indirect", "alpha", 8, INDIRECT_CALL, "__SCK__alpha"),
        _tail("beta_tail", "beta", 16),
        _tail("beta_tail_split", "beta", 61),
        _tail("beta_tail_opcode", "beta", 63),
        _jcc("beta_jcc", "beta", 24),
        _jcc("beta_jcc_split", "beta", 60),
        _jcc("beta_jcc_opcode", "beta", 62),
        _call("beta_prefixed", "beta", 32, PREFIXED),
        _call("beta_prefixed_split", "beta", 60, PREFIXED),
        _call("beta_prefixed_opcode", "beta", 62, PREFIXED),
        _call("beta_prefixed_alone", "beta", 63, PREFIXED),
        _void("hook_inside", "hook", 8),
        _void("hook_split", "hook", 61),
        _tail("hook_tail", "hook", 16),
        _tail("hook_tail_split", "hook", 61),
        _call("zero_inside", "zero", 8),
        _call("zero_split", "zero", 61),
        _tail("zero_tail", "zero", 16),
    ),
    "forms": (
        _call("form_call", "plain", 8),
        _call("form_call_bound", "plain", 8, CALL, "plain_add"),
        _call("form_prefixed_call", "plain", 8, PREFIXED),
        _call("form_prefixed_call_67", "plain", 8, PREFIXED_67),
        _call("form_indirect_call", "plain", 8, INDIRECT_CALL, "__SCK__plain"),
        _tail("form_tail_jmp", "plain", 8),
        _tail("form_indirect_jmp", "plain", 8, INDIRECT_JMP, "__SCK__plain"),
        _jcc("form_jcc", "plain", 8),
        Placed("form_jcc_short", 2, "near", JS_SHORT),
        Placed("form_short_jmp", 0, "near", SHORT_JMP),
        _void("form_nop", "hook", 8, NOP),
        _tail("form_ret", "hook", 8, RET),
        _call("form_ret0_cs", "zero", 8, RET0_CS),
        _call("form_ret0_data16", "zero", 8, RET0_DATA16),
        _call("form_warn_trap", "warn", 8, WARN_TRAP),
        _call("form_unknown", "plain", 8, MOV),
        _call("form_unknown_bnd", "plain", 8, BND_CALL),
    ),
    "generations": (
        *(_call(f"call_{name}", name, 8) for name in ("ud1_jmp", "sct_jmp", "return0")),
        *(_void(f"call_{name}", name, 8) for name in ("ud1_ret", "sct_ret", "sct_ret_nops", "thunk")),
        _posted("posted_temporary", "____"),
        _posted("posted_indirect", "__"),
        _posted("posted_permanent", "____"),
        _posted("posted_jmp", "__"),
        _posted("posted_vacant", "__", lead=1),
    ),
    "library": (
        _call("scale_inside", "scale", 8),
        _call("scale_split", "scale", 61),
        _call("scale_opcode", "scale", 63),
        _tail("scale_tail", "scale", 16),
        _void("hook_inside", "hook", 8),
    ),
}
# Sites in inline assembly lie wherever the compiler puts them: counted, all calls, no more.
COMPILED_SITES = {"calls": 2, "library": 1}

# The names of the sites say what touches two lines: everything, or all but the displacement. One displacement
# touches two blocks of 8 bytes and only one line.
ALL_SPLIT = ("_split", "_last_byte")
OPCODE_SPLIT = ("_opcode", "_alone")
BLOCK_SPLIT = ("alpha_block",)

TRAMPOLINES = {
    "__SCT__ud1_jmp": "e9 ........ 0f b9 cc",
    "__SCT__ud1_ret": "c3 cc 90 90 90 0f b9 cc",
    "__SCT__sct_jmp": "e9 ........ 53 43 54",
    "__SCT__sct_ret": "c3 cc 90 90 90 53 43 54",
    "__SCT__sct_ret_nops": "c3 90 90 90 90 53 43 54",
    "__SCT__thunk": "e9 ........ 0f b9 cc",
    "__SCT__return0": "e9 ........ 0f b9 cc",
    "____static_call_tramp_posted_temporary": "ff 25 ........",
    "__static_call_tramp_posted_indirect": "ff 25 ........",
    "____static_call_tramp_posted_permanent": "e8 ........ c3",
    "__static_call_tramp_posted_jmp": "e9 ........",
    "__static_call_tramp_posted_vacant": "c3 cc 90 90 90",
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Builds each program once, however many tests ask for it."""
    folder = tmp_path_factory.mktemp("fixtures")
    programs: dict[tuple[str, Kind, Toolchain, bool], Path] = {}

    def get(fixture: str, kind: Kind, tools: Toolchain = TOOLCHAINS[0], *, relr: bool = False) -> Path:
        if missing := toolchain.missing_tools(*tools):
            # A developer's machine may lack a linker; where every test is meant to run, none is left out.
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {', '.join(missing)}")
        case = (fixture, kind, tools, relr)
        if case not in programs:
            programs[case] = toolchain.build(fixture, folder, kind=kind, cc=tools.cc, linker=tools.linker, relr=relr)
        return programs[case]

    return get


def _matches(code: bytes, pattern: str) -> bool:
    return re.fullmatch(pattern.replace(" ", ""), code.hex()) is not None


def _size(pattern: str) -> int:
    return len(pattern.replace(" ", "")) // 2


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
        assert _matches(toolchain.bytes_at(program, address, _size(site.shape.code)), site.shape.code), site
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
def test_the_library_runs_in_its_host(kind: Kind, tools: Toolchain, built: Builder) -> None:
    library = built("library", "shared", tools)
    assert toolchain.run(built("library/host", kind, tools), library) == toolchain.expected_output("library")


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
        name, end = site.function, site.offset + _size(site.shape.code)
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
        assert _matches(toolchain.bytes_at(program, names[symbol], _size(code)), code), symbol
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
