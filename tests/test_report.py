"""The report on linked programs: every site as it stands, and every verdict by the policy's own words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from staticcall.model.form import Form
from tests.support import toolchain
from tests.support.programs import TOOLCHAINS, Builder, Toolchain
from tests.support.sites import COMPILED_SITES, SITES, Placed, matches, size_of
from tests.support.tool import POLICIES, Json, report
from tests.support.toolchain import Kind

BUILDS: tuple[tuple[str, Kind, Toolchain], ...] = (
    ("calls", "exec", Toolchain("gcc", "bfd")),
    ("calls", "pie", Toolchain("clang", "lld")),
    ("calls", "static", Toolchain("gcc", "bfd")),
    ("calls", "pie", Toolchain("gcc", "mold")),
    ("forms", "exec", Toolchain("clang", "bfd")),
    ("forms", "pie", Toolchain("gcc", "lld")),
    ("generations", "exec", Toolchain("gcc", "mold")),
    ("generations", "pie", Toolchain("gcc", "bfd")),
    ("library", "shared", Toolchain("clang", "bfd")),
    ("library", "shared", Toolchain("gcc", "lld")),
)
# Forms without a destination, and without an address to read one from.
LEAD_NOWHERE = {Form.NOP, Form.RET, Form.RET0, Form.WARN_TRAP, Form.UNKNOWN}

every_build = pytest.mark.parametrize(("fixture", "kind", "tools"), BUILDS, ids=lambda value: "-".join([*value]))


def _by_address(image: Json) -> dict[int, Json]:
    sites = {int(site["address"], 16): site for site in image["sites"]}
    assert len(sites) == len(image["sites"])
    return sites


def _crosses(first: int, size: int, block: int) -> bool:
    return first // block != (first + size - 1) // block


def _destination(program: Path, address: int) -> str | None:
    """Where objdump says that an instruction leads, a star in front where it reads that from there."""
    text = toolchain.disassemble(program, address)
    match = re.search(r"<([^>+]+)>$", text)
    return match and ("*" if "*0x" in text else "") + match[1]


def _check_site(program: Path, names: dict[str, int], site: Placed, shown: Json) -> None:
    address, form = names[site.function] + site.lead, site.shape.form
    code = toolchain.bytes_at(program, address, size_of(site.shape.code))
    assert matches(code, site.shape.code)
    assert (shown["form"], shown["tail"]) == (form, site.tail)
    assert (shown["key"], shown["trampoline"]) == (site.key, site.key)
    assert shown["function"] == f"{site.function}+{site.lead:#x}"
    # Of what it does not know, the tool shows as many bytes as a call has.
    assert code.hex().startswith(shown["bytes"]) if form is Form.UNKNOWN else code.hex() == shown["bytes"]
    assert shown["length"] == len(shown["bytes"]) // 2
    assert shown["destination"] == (None if form in LEAD_NOWHERE else _destination(program, address))
    assert shown["crosses_line"] is _crosses(address, shown["length"], 64)


@every_build
def test_every_site_is_shown_as_it_stands(fixture: str, kind: Kind, tools: Toolchain, built: Builder) -> None:
    program = built(fixture, kind, tools)
    names, records = toolchain.symbols(program), toolchain.records(program)
    sections, image = toolchain.sections(program), report(program)
    found = _by_address(image)
    for address, shown in found.items():
        assert records[shown["record"]].site == address
        assert records[shown["record"]].flags == int(shown["tail"])
        section = sections[shown["section"]]
        assert section.address + shown["offset"] == address
        assert section.offset + shown["offset"] == shown["file_offset"]
        assert shown["sources"] == ["table"]
    assert len(found) == len(records)
    for site in SITES[fixture]:
        _check_site(program, names, site, found.pop(names[site.function] + site.lead))
    assert [shown["form"] for shown in found.values()] == [Form.CALL] * COMPILED_SITES.get(fixture, 0)


def test_every_form_is_reported(built: Builder) -> None:
    image = report(built("forms", "pie"))
    assert {site["form"] for site in image["sites"]} == set(Form)
    assert image["summary"]["forms"].keys() == set(Form)


@every_build
def test_the_summary_counts_what_is_listed(fixture: str, kind: Kind, tools: Toolchain, built: Builder) -> None:
    image = report(built(fixture, kind, tools))
    sites, summary = image["sites"], image["summary"]
    assert summary["sites"] == len(sites)
    assert summary["keys"] == len(image["keys"])
    assert summary["crossing"] == sum(site["crosses_line"] for site in sites)
    for verdict in ("direct", "trampoline", "undecided"):
        assert summary[verdict] == sum(site["verdict"] == verdict for site in sites)
    for field, counts in (("form", summary["forms"]), ("reason", summary["reasons"])):
        values = [site[field] for site in sites]
        assert counts == {value: values.count(value) for value in values}
    for key in image["keys"]:
        assert key["sites"] == sum(site["key"] == key["name"] for site in sites)


@pytest.mark.parametrize("tools", TOOLCHAINS, ids="-".join)
@pytest.mark.parametrize("kind", ["exec", "pie"])
def test_keys_are_shown_with_what_they_lead_to(kind: Kind, tools: Toolchain, built: Builder) -> None:
    program = built("calls", kind, tools)
    names = toolchain.symbols(program)
    leads = {"alpha": "alpha_plain", "beta": "beta_plain", "hook": None, "zero": "__static_call_return0"}
    keys = {key["name"]: key for key in report(program)["keys"]}
    assert {name: key["func"] for name, key in keys.items()} == leads
    assert {name: int(key["address"], 16) for name, key in keys.items()} == {
        name: names[f"__SCK__{name}"] for name in leads
    }


def test_what_only_the_dynamic_linker_knows_is_shown_by_its_symbol(built: Builder) -> None:
    keys = {key["name"]: key["func"] for key in report(built("exported", "shared"))["keys"]}
    assert keys == {"scale": "library_scale", "offset": "library_offset"}


# ---- verdicts, by what the policies say of bytes and addresses ----

Verdict = tuple[str, str]


def _call_opcode(code: bytes) -> int | None:
    """The offset of a call's opcode behind the prefixes that these fixtures use."""
    opcode = next(at for at, byte in enumerate(code) if byte not in (0x2E, 0x67))
    return opcode if code[opcode] == 0xE8 else None


def _lutomirski(address: int, code: bytes, line: int) -> Verdict:
    if _call_opcode(code) is None:
        return "trampoline", "opcode-not-e8"
    return ("trampoline", "crosses-line") if _crosses(address, len(code), line) else ("direct", "fits-line")


def _rel32(address: int, code: bytes, line: int) -> Verdict:
    if _call_opcode(code) is None:
        return "trampoline", "opcode-not-e8"
    if _crosses(address + len(code) - 4, 4, line):
        return "trampoline", "rel32-crosses-line"
    return "direct", "rel32-fits-line"


def _block8(address: int, code: bytes, _: int) -> Verdict:
    if _call_opcode(code) is None:
        return "trampoline", "opcode-not-e8"
    if _crosses(address + len(code) - 4, 4, 8):
        return "trampoline", "rel32-crosses-block"
    return "direct", "rel32-fits-block"


def _torvalds(_: int, code: bytes, __: int) -> Verdict:
    return ("direct", "prefixed") if _call_opcode(code) else ("trampoline", "no-prefix")


def _kernel(_: int, code: bytes, __: int) -> Verdict:
    known = code[0] in (0xE8, 0xE9) or (code[0] == 0x0F and code[1] & 0xF0 == 0x80)
    return ("direct", "kernel-form") if known else ("trampoline", "not-a-kernel-form")


RULES: dict[str, Callable[[int, bytes, int], Verdict]] = {
    "lutomirski": _lutomirski,
    "rel32": _rel32,
    "block8": _block8,
    "torvalds": _torvalds,
    "kernel": _kernel,
}


@pytest.mark.parametrize("line", [32, 64, 128])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("kind", "tools"), [("exec", TOOLCHAINS[0]), ("pie", TOOLCHAINS[4])], ids=["exec-gcc-bfd", "pie-clang-lld"]
)
def test_verdicts_follow_the_policy(kind: Kind, tools: Toolchain, policy: str, line: int, built: Builder) -> None:
    image = report("--policy", policy, "--line", str(line), built("calls", kind, tools))
    for address, site in _by_address(image).items():
        code = bytes.fromhex(site["bytes"])
        assert (site["verdict"], site["reason"]) == RULES[policy](address, code, line), site
        assert site["crosses_line"] is _crosses(address, len(code), line)


def test_the_fixture_has_both_answers_under_every_policy(built: Builder) -> None:
    for policy in POLICIES:
        summary = report("--policy", policy, built("calls", "exec"))["summary"]
        assert summary["direct"], policy
        assert summary["trampoline"], policy


# Under every policy: these do not go by a trampoline, so nothing is left to decide.
SETTLED = {
    "form_call_bound": ("direct", "already-direct"),
    "form_nop": ("direct", "already-direct"),
    "form_ret": ("direct", "already-direct"),
    "form_ret0_cs": ("direct", "already-direct"),
    "form_ret0_data16": ("direct", "already-direct"),
    "form_unknown": ("trampoline", "unknown-instruction"),
    "form_unknown_bnd": ("trampoline", "unknown-instruction"),
    "form_warn_trap": ("trampoline", "warn-trap"),
}
SHORT = ("form_jcc_short", "form_short_jmp")


@pytest.mark.parametrize("policy", POLICIES)
def test_verdicts_of_forms_that_a_rewrite_leaves_behind(policy: str, built: Builder) -> None:
    program = built("forms", "exec")
    names, found = toolchain.symbols(program), _by_address(report("--policy", policy, program))
    for site in SITES["forms"]:
        address = names[site.function] + site.lead
        shown = found[address]
        if site.function in SETTLED:
            expected = SETTLED[site.function]
        elif policy == "kernel" and site.function in SHORT:  # four bytes of displacement are what kernels write
            expected = ("trampoline", "not-a-kernel-form")
        else:
            expected = RULES[policy](address, bytes.fromhex(shown["bytes"]), 64)
        assert (shown["verdict"], shown["reason"]) == expected, site


# ---- choosing ----


def test_a_glob_selects_keys(built: Builder) -> None:
    program = built("calls", "pie")
    whole = report(program)
    for pattern, chosen in (
        ("alpha", {"alpha"}),
        ("*a", {"alpha", "beta"}),
        ("[hz]*", {"hook", "zero"}),
        ("none", set()),
    ):
        image = report("--key", pattern, program)
        assert {key["name"] for key in image["keys"]} == chosen
        assert image["sites"] == [site for site in whole["sites"] if site["key"] in chosen]
        assert image["summary"]["sites"] == len(image["sites"])
        addresses = {site["address"] for site in image["sites"]}
        assert image["findings"] == [finding for finding in whole["findings"] if finding["address"] in addresses]


def test_keys_of_one_name_have_each_their_own_trampoline(tmp_path: Path) -> None:
    other = str(toolchain.source("namesakes/other"))
    program = toolchain.build("namesakes", tmp_path, kind="exec", extra=[other])
    image = report(program)
    assert image["findings"] == []
    twins = [site for site in image["sites"] if site["key"] == "twin"]
    assert {site["function"] for site in twins} == {"first_twin+0x4", "second_twin+0x4"}
    assert {site["verdict"] for site in twins} == {"direct"}
