"""`staticcall explain`: what it tells of sites and static calls, against objdump, addr2line and arithmetic."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import modules, objects, small_kernels, vmlinux
from tests.support.programs import Builder
from tests.support.refusals import one_line
from tests.support.tool import POLICIES, Json, report, staticcall, succeed, validate
from tests.support.toolchain import build, missing_tools, symbols
from tests.support.vmlinux import Call, Vmlinux

LINE = 64
CLAIMS = small_kernels.SOURCE.with_name("claims.S")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def explain(path: Path, question: str, *options: str | Path) -> Json:
    document = json.loads(succeed("explain", "--format", "json", path, question, *options))
    validate(document, "explain")
    assert isinstance(document, dict)
    return document


def site_of(path: Path, question: str, *options: str | Path) -> Json:
    site = explain(path, question, *options)["site"]
    assert isinstance(site, dict)
    return site


def disassembled(path: Path, start: int, stop: int, section: str | None = None) -> list[tuple[int, str, str]]:
    """Address, bytes and mnemonic of each instruction, by objdump; in an object of one section, by its offsets."""
    where = ["-j", section] if section else []
    command = [
        "objdump",
        "-dwz",
        "--insn-width=15",
        f"--start-address={start}",
        f"--stop-address={stop}",
        *where,
        str(path),
    ]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t(?:\w+ )*?(\S+)", listing, re.MULTILINE)
    return [(int(address, 16), code.replace(" ", ""), text) for address, code, text in lines]


def assert_same_code(site: Json, listing: list[tuple[int, str, str]], *, base: int = 0) -> None:
    own = [(int(line["where"].rpartition("+")[2], 16), line["bytes"]) for line in site["instructions"]]

    assert len(own) > 3
    assert own == [(address - base, code) for address, code, _ in listing]


# The real kernel


@pytest.fixture(scope="module")
def real(vmlinux_612: Path) -> Vmlinux:
    return vmlinux.read(vmlinux_612)


def first(kernel: Vmlinux, *, crossing: bool, tail: bool) -> Call:
    """The first site of a kind that others are in front of in its function."""
    return next(call for call in kernel.calls[50:] if call.crosses(LINE) == crossing and call.tail == tail)


@pytest.mark.parametrize(("crossing", "tail"), [(True, False), (False, False), (False, True)])
def test_a_site_of_the_kernel_is_told_as_others_see_it(crossing: bool, tail: bool, real: Vmlinux) -> None:
    call = first(real, crossing=crossing, tail=tail)
    site = site_of(real.path, f"{call.address + 3:#x}")
    lines = site["instructions"]
    source = subprocess.run(
        ["addr2line", "-e", real.path, f"{call.address:#x}"], capture_output=True, text=True, check=True
    ).stdout.partition(" (")[0]

    assert (site["address"], site["bytes"]) == (f"{call.address:#x}", call.code.hex())
    assert (site["record"], site["flags"], site["crosses_line"]) == (call.record, int(tail), crossing)
    assert {one["name"]: one["verdict"] == "direct" for one in site["verdicts"]} == {
        policy: real.is_direct(call, policy) for policy in POLICIES
    }
    assert source.strip().endswith(f"/{site['source_line']['path']}:{site['source_line']['line']}")
    start, stop = int(lines[0]["address"], 16), int(lines[-1]["address"], 16) + len(lines[-1]["bytes"]) // 2
    assert_same_code(site, disassembled(real.path, start, stop))
    key = real.keys[call.key]
    assert site["key"]["name"] == call.key
    assert site["key"]["trampoline"]["bytes"].startswith(key.trampoline_code[:5].hex())
    assert site["key"]["coherent"] is True
    around = site["bytes_around"]
    first_byte = int(around["address"], 16)
    assert (first_byte % LINE, len(around["bytes"])) == (0, 2 * LINE if crossing else LINE)
    at = call.address - first_byte
    assert "".join(around["bytes"][at : at + 5]) == call.code.hex()


def test_the_padding_that_is_advised_is_the_least_that_does_it(real: Vmlinux) -> None:
    call = first(real, crossing=True, tail=False)
    change = site_of(real.path, f"{call.address:x}")["changes"][0]["how"]
    forward, back = map(int, re.findall(r"(\d+) bytes?", change)) if "less" in change else (0, 0)

    def fits(address: int) -> bool:
        return address // LINE == (address + 4) // LINE

    assert forward == next(n for n in range(1, LINE) if fits(call.address + n))
    assert back == next(n for n in range(1, LINE) if fits(call.address - n)) or re.search("1 byte (more|less)", change)


def test_a_key_of_the_kernel_has_its_sites_and_its_type(real: Vmlinux) -> None:
    key = explain(real.path, "__SCT__might_resched", "--policy", "rel32")["key"]
    calls = [call for call in real.calls if call.key == "might_resched"]

    assert [int(site["address"], 16) for site in key["sites"]] == sorted(call.address for call in calls)
    verdicts = {int(site["address"], 16): site["verdict"] == "direct" for site in key["sites"]}
    assert verdicts == {call.address: real.is_direct(call, "rel32") for call in calls}
    assert (key["func"], key["type"]) == ("__static_call_return0", "int might_resched(void)")
    assert all(site["source_line"] for site in key["sites"])


def test_a_module_in_its_container_is_told_like_the_module(development: modules.Development, tmp_path: Path) -> None:
    module = modules.packaged(development, "kvm", tmp_path)
    (archive,) = development.modules.rglob("kvm.ko.xz")
    one = next(s for s in report(module)["sites"] if s["tail"] and s["function"] and s["section"] == ".text")
    by_section = explain(archive, f"{one['section']}+{one['offset']:#x}")["site"]
    by_function = explain(module, one["function"])["site"]

    assert by_section == by_function
    offsets = [int(line["where"].rpartition("+")[2], 16) for line in by_section["instructions"]]
    stop = offsets[-1] + len(by_section["instructions"][-1]["bytes"]) // 2
    assert_same_code(by_section, disassembled(module, offsets[0], stop, ".text"))
    chosen = next(line for line in by_section["instructions"] if line["where"] == by_section["where"])
    assert chosen["text"] == f"jmp {chosen['leads_to']}" == f"jmp __SCT__{one['key']}"


# Other tables of a kernel


@pytest.mark.parametrize(
    ("define", "table"),
    [("JUMP_LABELS", "__jump_table"), ("ALTERNATIVES=14", ".altinstructions"), ("LOCKS", ".smp_locks")],
)
def test_who_else_patches_there_is_told(define: str, table: str, tmp_path: Path) -> None:
    path = small_kernels.build(tmp_path, "6.12.0", define, "PLACE=filled_call", source=CLAIMS)
    named = next(one for one in report("--scan", path)["findings"] if one["code"].startswith("overlaps"))
    site = site_of(path, named["address"])

    assert table in {rival["table"] for rival in site["rivals"]}
    assert table in succeed("explain", path, named["address"])


def test_a_place_that_ftrace_writes_is_told(tmp_path: Path) -> None:
    source = tmp_path / "traced.S"
    source.write_text(
        f'#include "{CLAIMS}"\n.section .mcount, "a"\n.globl __start_mcount_loc, __stop_mcount_loc\n'
        "__start_mcount_loc: .quad 0xffffffff81000001, filled_call - 4\n__stop_mcount_loc:\n"
    )
    path = small_kernels.build(tmp_path, "6.12.0", source=source)
    place = symbols(path)["filled_call"]
    rivals = site_of(path, f"{place:#x}")["rivals"]

    assert [(one["table"], one["address"]) for one in rivals] == [("__mcount_loc", f"{place - 4:#x}")]


# Programs and objects


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return build("demo", tmp_path_factory.mktemp("demo"), kind="exec", extra=["-g"])


@pytest.mark.parametrize("question", ["checksum", "__SCK__checksum", "__SCT__checksum", "key", "trampoline", "inside"])
def test_a_static_call_has_many_names(question: str, demo: Path) -> None:
    places = symbols(demo)
    slot, home = places["__SCK__checksum"], places["__SCT__checksum"]
    address = {"key": slot, "inside": slot + 7, "trampoline": home + 2}.get(question)
    key = explain(demo, question if address is None else f"{address:#x}")["key"]

    assert (key["name"], key["func"], key["type_source"]) == ("checksum", "checksum_plain", "DWARF")
    assert key["type"] == "uint32_t checksum(const uint8_t *, size_t)"


def test_a_site_has_many_names(demo: Path) -> None:
    one = report(demo)["sites"][0]
    address = int(one["address"], 16)
    function, _, inside = one["function"].partition("+")
    questions = [f"{address:#x}", f"{address:X}".rjust(8, "0"), f"{address + 4:#x}", one["function"]]
    questions += [f"{one['section']}+{one['offset']:#x}", f"{function}+{int(inside, 16) + 1:x}"]

    assert len({json.dumps(site_of(demo, question)) for question in questions}) == 1
    assert site_of(demo, questions[0])["source_line"]["path"].endswith("demo.c")


def test_functions_that_updates_lead_to_are_searched_for_when_asked(demo: Path) -> None:
    assert explain(demo, "checksum")["key"]["targets"] is None
    targets = explain(demo, "checksum", "-v")["key"]["targets"]

    assert "checksum_plain" in {target["name"] for target in targets}


@pytest.mark.parametrize(
    ("question", "advice"),
    [
        ("cheksum", "there is no key cheksum, did you mean checksum?"),
        ("__SCK__cheksum", "did you mean checksum?"),
        ("main", "it is a function with static calls at main+0x"),
        ("sum_pictur+0x1", "did you mean sum_picture"),
        ("0x1", "there is no static call at 0x1, the nearest is 0x"),
        ("main+0", "the nearest"),
        ("+", "there is no key +"),
        ("\x1b[2J", "there is no key \\x1b[2J"),
        ("0x" + "f" * 5000, "there is no key"),
    ],
)
def test_what_is_not_there_gets_the_nearest_that_is(question: str, advice: str, demo: Path) -> None:
    outcome = staticcall("explain", demo, question)

    assert (outcome.code, outcome.out) == (2, "")
    assert advice in one_line(outcome)


def test_a_section_that_may_be_anywhere_is_told_as_such(made: objects.Objects) -> None:
    path = made("calls")
    one = next(site for site in report(path)["sites"] if site["verdict"] == "undecided")
    site = site_of(path, f"{one['section']}+{one['offset']:#x}")
    headers = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    (alignment,) = re.findall(rf" {re.escape(one['section'])} .* (\d+)$", headers, re.MULTILINE)
    places = range(0, LINE, int(alignment))
    fitting = [place for place in places if (place + one["offset"]) % LINE <= LINE - 5]

    assert site["address"] is None
    assert site["crosses_line"] is None
    assert site["placements"] == {"direct": len(fitting), "all": len(places)}
    aligned = re.match(r"with its section aligned to (\d+) bytes it would be direct", site["changes"][0]["how"])
    assert aligned
    starts = range(0, LINE, int(aligned[1]))
    assert all((start + one["offset"]) % LINE <= LINE - 5 for start in starts)
    assert "(what another file says)" in succeed("explain", path, one["key"])


def test_kprobes_refuse_only_what_has_a_record(real: Vmlinux, tmp_path: Path) -> None:
    patched, undo = tmp_path / "pinned", tmp_path / "undo.json"
    path = small_kernels.build(tmp_path, "6.12.0", "PLACE=filled_call", source=CLAIMS)
    assert "kprobes refuse" in succeed("explain", real.path, f"{real.calls[0].address:#x}")
    succeed("patch", path, "--pin", "filled", "-o", patched, "--edits", undo, "--quiet")
    place = f"{symbols(path)['filled_call']:#x}"

    assert "kprobes refuse" in succeed("explain", path, place)
    pinned = succeed("explain", patched, place, "--edits", undo)
    assert "pinned" in pinned
    assert "kprobes refuse" not in pinned


def test_an_address_means_nothing_in_an_object(made: objects.Objects) -> None:
    outcome = staticcall("explain", made("calls"), "0x400010")

    assert outcome.code == 2
    assert "give section+offset" in one_line(outcome)


def test_pinned_sites_are_told_with_the_undo_file(demo: Path, tmp_path: Path) -> None:
    patched, undo = tmp_path / "pinned", tmp_path / "undo.json"
    succeed("patch", demo, "--pin", "checksum", "-o", patched, "--edits", undo, "--quiet")

    assert explain(patched, "checksum")["key"]["sites"] == []
    (site,) = explain(patched, "checksum", "--edits", undo)["key"]["sites"]
    assert (site["verdict"], site["reason"]) == ("direct", "pinned")
    assert site_of(patched, site["address"], "--edits", undo)["sources"] == ["edits"]


# On a terminal


def test_colour_changes_nothing_but_the_colour(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = report(demo)["sites"][0]["address"]
    for question in ("log", address):
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        monkeypatch.delenv("NO_COLOR", raising=False)
        plain = succeed("explain", demo, question)
        monkeypatch.setenv("FORCE_COLOR", "1")
        coloured = succeed("explain", demo, question)
        monkeypatch.setenv("NO_COLOR", "1")

        assert plain == COLOUR.sub("", coloured) != coloured
        assert succeed("explain", demo, question) == plain


def test_the_instruction_is_marked_below_its_bytes(demo: Path) -> None:
    one = report(demo)["sites"][0]
    text = succeed("explain", demo, one["address"])
    rows = text[text.index("cache line of") :].splitlines()[1:]
    marked = []
    for above, below in pairwise(rows):
        if set(below) <= set(" ^="):
            marked += [above[match.start() : match.start() + 2] for match in re.finditer(r"\^\^|==", below)]

    assert "".join(marked) == one["bytes"]


def test_names_out_of_a_file_cannot_command_a_terminal(demo: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    renamed = [f"--redefine-sym={prefix}checksum={prefix}check\x1b[31msum" for prefix in ("__SCK__", "__SCT__")]
    subprocess.run(["objcopy", *renamed, "--redefine-sym=main=ma\x07in", demo, odd], check=True)
    for one in report(odd)["sites"]:
        text = succeed("explain", odd, one["address"])

        assert text.replace("\n", "").isprintable()
    assert "check\\x1b[31msum" in succeed("explain", odd, "check\x1b[31msum")


def test_a_truncated_or_foreign_file_is_an_error(demo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(demo.read_bytes()[:3000])
    shutil.copy(__file__, tmp_path / "text")
    for path in (bad, tmp_path / "text", tmp_path / "nothing"):
        outcome = staticcall("explain", path, "checksum")

        assert (outcome.code, outcome.out) == (3, "")
        one_line(outcome)


def test_a_key_glob_leaves_other_keys_out(built: Builder) -> None:
    path = built("demo", "exec")
    assert explain(path, "log", "--key", "l*")["key"]["name"] == "log"
    outcome = staticcall("explain", path, "log", "--key", "check*")

    assert outcome.code == 2
    assert "there is no key log" in one_line(outcome)


def test_of_an_archive_a_member_has_to_be_named(made: objects.Objects, tmp_path: Path) -> None:
    archive = tmp_path / "all.a"
    subprocess.run(["ar", "rc", archive, made("calls")], check=True)
    outcome = staticcall("explain", archive, "log")

    assert outcome.code == 3
    assert "is an archive, name one of its members, as FILE(MEMBER)" in one_line(outcome)
    assert explain(Path(f"{archive}({made('calls').name})"), "log")["key"]["name"] == "log"
