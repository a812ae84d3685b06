"""What the report finds wrong with a file, on fixtures that are wrong in one way each."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import toolchain
from tests.support.programs import TOOLCHAINS, Builder, Toolchain
from tests.support.tool import Json, report, staticcall
from tests.support.toolchain import Kind

every_toolchain = pytest.mark.parametrize("tools", TOOLCHAINS, ids="-".join)


class Expected(NamedTuple):
    """A finding: its code and severity, and the symbol and distance of its address."""

    code: str
    severity: str
    symbol: str
    lead: int = 0


def _note(symbol: str, lead: int = 4) -> Expected:
    return Expected("unaccepted-bytes", "note", symbol, lead)


def _incoherent(key: str) -> Expected:
    return Expected("incoherent-key", "warning", f"__SCK__{key}")


BROKEN: dict[str, tuple[Expected, ...]] = {
    "duplicate": (
        Expected("wrong-trampoline", "error", "disputed", 4),
        Expected("duplicate-record", "note", "twice", 4),
        Expected("duplicate-record", "error", "disputed", 4),
    ),
    "overlap": (_note("overlapping"), Expected("overlapping-records", "error", "overlapping", 5)),
    "stale_site": (
        Expected("stale-site", "warning", "stale_call", 4),
        Expected("stale-site", "warning", "stale_jmp"),
    ),
    "stale_trampoline": (_incoherent("other"), _incoherent("returns"), _incoherent("vacant")),
    "wrong_trampoline": (Expected("wrong-trampoline", "error", "wrong", 4),),
    "unrecorded": (),
    "false_positive": (),
}
BY_SCAN: dict[str, tuple[Expected, ...]] = {
    **BROKEN,
    "unrecorded": (
        Expected("unrecorded-site", "warning", "unrecorded_call", 4),
        Expected("unrecorded-site", "warning", "unrecorded_jmp"),
        Expected("unrecorded-site", "warning", "unrecorded_jcc", 2),
    ),
}


def _check(program: Path, image: Json, expected: tuple[Expected, ...]) -> None:
    names = toolchain.symbols(program)
    found = sorted((one["code"], one["severity"], int(one["address"], 16)) for one in image["findings"])
    assert found == sorted((one.code, one.severity, names[one.symbol] + one.lead) for one in expected)


@every_toolchain
@pytest.mark.parametrize("kind", ["exec", "pie"])
@pytest.mark.parametrize("fixture", BROKEN)
def test_what_is_wrong_is_found(fixture: str, kind: Kind, tools: Toolchain, built: Builder) -> None:
    program = built(f"broken/{fixture}", kind, tools)
    _check(program, report(program), BROKEN[fixture])
    _check(program, report("--scan", program), BY_SCAN[fixture])


@pytest.mark.parametrize(
    ("fixture", "expected"),
    [
        (
            "calls",
            (
                _note("alpha_indirect"),
                *(_note(f"beta_prefixed{end}") for end in ("", "_split", "_opcode", "_alone")),
            ),
        ),
        (
            "forms",
            (
                *(_note(f"form_{name}") for name in ("prefixed_call", "prefixed_call_67", "indirect_call")),
                *(_note(f"form_{name}") for name in ("unknown", "unknown_bnd")),
                _note("form_indirect_jmp", 0),
                _note("form_short_jmp", 0),
                _note("form_jcc_short", 2),
            ),
        ),
        ("generations", ()),
        ("demo", ()),
    ],
)
def test_sound_programs_have_notes_at_most(fixture: str, expected: tuple[Expected, ...], built: Builder) -> None:
    for kind in ("exec", "pie", "static"):
        program = built(fixture, kind)
        _check(program, report("--scan", program), expected)


@every_toolchain
@pytest.mark.parametrize("kind", ["exec", "pie"])
def test_trampolines_of_every_generation_are_known(kind: Kind, tools: Toolchain, built: Builder) -> None:
    """An unknown one would be a finding, and so would be one that leads elsewhere than its key."""
    image = report(built("generations", kind, tools))
    assert image["findings"] == []
    assert {key["name"]: key["func"] for key in image["keys"]} == {
        **dict.fromkeys(("ud1_jmp", "sct_jmp"), "plain_add"),
        **dict.fromkeys(("ud1_ret", "sct_ret", "sct_ret_nops", "thunk"), None),
        "return0": "__static_call_return0",
        **dict.fromkeys(("posted_temporary", "posted_indirect", "posted_permanent", "posted_jmp"), "plain_add"),
        "posted_vacant": None,
    }
    assert all(key["trampoline"] == key["name"] for key in image["keys"])


def test_bytes_of_no_generation_are_found(built: Builder, tmp_path: Path) -> None:
    original = built("calls", "exec")
    address = toolchain.symbols(original)["__SCT__alpha"]
    section = toolchain.sections(original)[".static_call.text"]
    data = bytearray(original.read_bytes())
    data[section.offset + address - section.address] = 0x90
    program = tmp_path / "damaged"
    program.write_bytes(data)
    for selection in ([], ["--key", "alpha"]):
        found = {finding["code"]: finding for finding in report(*selection, program)["findings"]}
        assert found["unknown-trampoline"]["address"] == f"{address:#x}"
        assert found["unknown-trampoline"]["severity"] == "warning"
        assert "incoherent-key" in found
    assert "unknown-trampoline" not in str(report("--key", "beta", program)["findings"])


# ---- the scan ----


@every_toolchain
def test_the_scan_takes_no_data_for_code(tools: Toolchain, built: Builder) -> None:
    program = built("broken/false_positive", "pie", tools)
    (site,) = report("--scan", program)["sites"]
    assert int(site["address"], 16) == toolchain.symbols(program)["real"] + 4
    assert site["sources"] == ["table", "scan"]


@pytest.mark.parametrize("fixture", ["calls", "forms", "generations"])
def test_the_scan_agrees_with_the_table(fixture: str, built: Builder) -> None:
    """It adds nothing, and confirms every site that goes by a trampoline."""
    program = built(fixture, "pie")
    by_table, by_both = report(program)["sites"], report("--scan", program)["sites"]
    assert [{**site, "sources": ["table"]} for site in by_both] == by_table
    for site in by_both:
        direct = site["form"] in ("call", "prefixed_call", "tail_jmp", "jcc", "short_jmp")
        by_trampoline = direct and "tramp" in site["destination"].replace("__SCT__", "tramp")
        assert site["sources"] == (["table", "scan"] if by_trampoline else ["table"]), site


def test_what_the_scan_alone_finds_is_left_alone(built: Builder) -> None:
    program = built("broken/unrecorded", "pie")
    names, sites = toolchain.symbols(program), report("--scan", program)["sites"]
    strays = {int(site["address"], 16): site for site in sites if site["record"] is None}
    assert {address: site["form"] for address, site in strays.items()} == {
        names["unrecorded_call"] + 4: "call",
        names["unrecorded_jmp"]: "tail_jmp",
        names["unrecorded_jcc"] + 2: "jcc",
    }
    for site in strays.values():
        assert site["sources"] == ["scan"]
        assert (site["verdict"], site["reason"]) == ("trampoline", "not-recorded")
        assert (site["key"], site["destination"]) == ("plain", "__SCT__plain")
        assert site["tail"] is (site["form"] != "call")


# ---- files that say less ----


def _stripped(program: Path, folder: Path) -> Path:
    stripped = folder / f"{program.name}.stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    return stripped


@every_toolchain
@pytest.mark.parametrize("fixture", ["calls", "forms"])
def test_a_stripped_program_keeps_its_sites(fixture: str, tools: Toolchain, built: Builder, tmp_path: Path) -> None:
    whole = report("--scan", program := built(fixture, "pie", tools))
    bare = report("--scan", _stripped(program, tmp_path))
    kept = ("record", "address", "section", "offset", "file_offset", "tail", "form", "bytes", "crosses_line")
    judged = ("verdict", "reason", "sources")
    assert [[site[field] for field in kept + judged] for site in bare["sites"]] == [
        [site[field] for field in kept + judged] for site in whole["sites"]
    ]
    addresses = {key["name"]: key["address"] for key in whole["keys"]}
    assert {key["name"] for key in bare["keys"]} == set(addresses.values())
    assert [site["key"] for site in bare["sites"]] == [addresses[site["key"]] for site in whole["sites"]]
    assert [finding["code"] for finding in bare["findings"]] == [finding["code"] for finding in whole["findings"]]


def test_the_scan_finds_strays_in_a_stripped_program(built: Builder, tmp_path: Path) -> None:
    program = built("broken/unrecorded", "exec")
    image = report("--scan", _stripped(program, tmp_path))
    _check(program, image, BY_SCAN["unrecorded"])
    trampoline = f"{toolchain.symbols(program)['__SCT__plain']:#x}"
    assert {site["trampoline"] for site in image["sites"]} == {trampoline}
    assert all(f"leads to trampoline {trampoline} " in finding["message"] for finding in image["findings"])


def test_a_file_without_static_calls_is_no_failure() -> None:
    program = shutil.which("true")
    assert program is not None
    image = report("--scan", program)
    assert (image["sites"], image["keys"]) == ([], [])
    assert [(one["code"], one["severity"], one["address"]) for one in image["findings"]] == [
        ("no-static-calls", "note", None)
    ]
    assert staticcall("report", program).code == 0


def test_a_missing_table_is_said_and_may_be_named(built: Builder, tmp_path: Path) -> None:
    program, lost = built("calls", "exec"), tmp_path / "lost"
    marks = ["--strip-symbol=__start_static_call_sites", "--strip-symbol=__stop_static_call_sites"]
    subprocess.run(["objcopy", "--rename-section=static_call_sites=.lost", *marks, program, lost], check=True)
    image = report(lost)
    assert [(one["code"], one["severity"]) for one in image["findings"]] == [("no-table", "warning")]
    assert (image["sites"], len(image["keys"])) == ([], 4)
    table = toolchain.sections(program)["static_call_sites"]
    places = [
        f"{table.address:#x}:{table.address + table.size:#x}",
        f"{table.address:x}:{table.address + table.size:x}",
    ]
    for place in places:
        named = report("--table", place, lost)
        assert named["sites"] == report(program)["sites"]
    by_symbols = report("--table", "__start_static_call_sites:__stop_static_call_sites", program)
    assert by_symbols == report(program)


def test_a_table_that_cannot_be_one_is_refused(built: Builder) -> None:
    program = built("calls", "exec")
    table = toolchain.sections(program)["static_call_sites"]
    for place, code in (
        ("nowhere", 2),
        ("nowhere:0x10", 2),
        (f"{table.address:#x}:", 2),
        (f"{table.address:#x}:{table.address + 9:#x}", 3),
        (f"{table.address + 8:#x}:{table.address:#x}", 3),
        ("0x10:0x20", 3),
    ):
        outcome = staticcall("report", "--table", place, program)
        assert outcome.code == code, place
        assert outcome.out == ""
        assert outcome.err.startswith("staticcall: ")
        assert outcome.err.count("\n") == 1
