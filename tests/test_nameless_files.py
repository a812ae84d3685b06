"""Small kernels and user programs without names, files that only look alike, and files that have nothing."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from staticcall.errors import VerificationError
from staticcall.locate.hints import hints_of
from staticcall.locate.linked import locate
from staticcall.model.hints import Pairing
from staticcall.read.image import open_image
from staticcall.verify.proof import prove
from tests.conftest import _unavailable
from tests.support.elf_edit import Elf
from tests.support.header import Maker, Recipe
from tests.support.nameless import take_sections
from tests.support.small_kernels import SOURCE, build
from tests.support.tool import Json, patch, report, staticcall, staticcall_process, succeed
from tests.support.toolchain import symbols

TABLE = ".static_call_sites"
# A version and what the image has of it; the first generation does not sign its trampolines.
KERNELS = [
    ("5.10.0", "UNSIGNED", "NO_RETURN", "NO_JCC"),
    ("5.15.0", "UNSIGNED", "TRANSFORM"),
    ("5.17.0", "SCT", "TRANSFORM", "MESSAGE"),
    ("6.1.0", "TRANSFORM"),
    ("6.12.0", "TRANSFORM", "XOR=0x2e,0x2e,0x2e,0x31,0xc0"),
]
PROGRAMS = [Recipe("gcc", "bfd", "pie"), Recipe("clang", "lld", "static"), Recipe("gcc", "bfd", "shared")]


def strip(path: Path, out: Path, *, sections: bool = True) -> Path:
    """Without symbols, and with another name for the table, or without sections at all."""
    subprocess.run(["strip", "-o", out, path], check=True)
    subprocess.run(["objcopy", "--rename-section", f"{TABLE}=.rodata.more", out], check=True)
    return out if sections else take_sections(out, out.with_name(f"{out.name}-segments"))


def addresses(image: Json) -> list[tuple[str, str, str, str]]:
    keys = {key["name"]: key["address"] for key in image["keys"]}
    return [(site["address"], keys[site["key"]], site["form"], site["verdict"]) for site in image["sites"]]


def keys(image: Json) -> set[tuple[str, int]]:
    return {(key["address"], key["sites"]) for key in image["keys"]}


@pytest.mark.parametrize("sections", [True, False], ids=["sections", "segments"])
@pytest.mark.parametrize("recipe", KERNELS, ids=" ".join)
def test_a_small_kernel_of_any_generation_is_found_and_bound(
    recipe: tuple[str, ...], sections: bool, tmp_path: Path
) -> None:
    named = build(tmp_path, *recipe)
    bare = strip(named, tmp_path / "bare", sections=sections)
    with_names, without = report(named, "--policy", "kernel"), report(bare, "--policy", "kernel")
    assert addresses(without) == addresses(with_names)
    assert keys(without) == keys(with_names)
    assert [finding["code"] for finding in without["findings"]] == [
        finding["code"] for finding in with_names["findings"]
    ]
    bound = patch(bare, tmp_path / "bound", "--bind", "--policy", "kernel")
    expected = patch(named, tmp_path / "expected", "--bind", "--policy", "kernel")
    if "TRANSFORM" in recipe:
        assert {(edit["address"], edit["new"]) for edit in bound.edits} == {
            (edit["address"], edit["new"]) for edit in expected.edits
        }
    else:
        # Nothing tells which of its functions is __static_call_return0, so it is called like any other.
        assert {edit["address"] for edit in bound.edits} == {edit["address"] for edit in expected.edits}
    assert "verified" in succeed("verify", bare, bound.output)
    assert addresses(report(bound.output))[0][:2] == addresses(without)[0][:2]
    bound.revert()


@pytest.mark.parametrize("recipe", PROGRAMS, ids=str)
def test_a_program_without_sections_is_found_and_bound(recipe: Recipe, tmp_path: Path) -> None:
    named = Maker(tmp_path, _unavailable).program(recipe)
    subprocess.run(["strip", "-o", tmp_path / "stripped", named], check=True)
    bare = take_sections(tmp_path / "stripped", tmp_path / "bare")
    assert addresses(report(bare)) == addresses(report(named))
    assert keys(report(bare)) == keys(report(named))
    bound = patch(bare, tmp_path / "bound", "--bind")
    assert {(edit["address"], edit["new"]) for edit in bound.edits} == {
        (edit["address"], edit["new"]) for edit in patch(named, tmp_path / "expected", "--bind").edits
    }
    assert "verified" in succeed("verify", bare, bound.output)
    shutil.copymode(named, bound.output)
    if recipe.make != "shared":
        outputs = [subprocess.run([path], capture_output=True, check=True).stdout for path in (named, bound.output)]
        assert outputs[0] == outputs[1]


def test_two_places_that_look_like_the_table_are_none(tmp_path: Path) -> None:
    source = tmp_path / "two.S"
    names = ("filled_call", "filled_tail", "empty_call", "empty_tail", "zero_call", "zero_tail")
    again = "".join(f".long {name} - ., __SCK__{name.split('_')[0]} - .\n" for name in names)
    source.write_text(f'#include "{SOURCE}"\n.section .more, "a"\n.balign 8\n{again}')
    named = build(tmp_path, "6.12.0", "NO_JCC", source=source)
    bare = strip(named, tmp_path / "bare")
    image = report(bare)
    assert image["sites"] == []
    assert [finding["code"] for finding in image["findings"]] == ["ambiguous-table"]
    start, stop = image["findings"][0]["message"].split(": ")[1].split(";")[0].split(", ")[0].split(":")
    told = report(bare, "--table", f"{start}:{stop}")
    assert len(told["sites"]) == len(names)


def test_records_of_what_modules_may_call_do_not_belong_to_the_table(tmp_path: Path) -> None:
    source = tmp_path / "exported.S"
    exported = "".join(f".long __SCT__{name} - ., __SCK__{name} - .\n" for name in ("filled", "zero"))
    source.write_text(f'#include "{SOURCE}"\n.section .static_call_sites, "a"\n{exported}')
    bare = strip(build(tmp_path, "6.12.0", source=source), tmp_path / "bare")
    plain = report(build(tmp_path, "6.12.0"))
    assert [site["record"] for site in report(bare)["sites"]] == [site["record"] for site in plain["sites"]]


def test_a_pointer_beside_one_to_a_trampoline_is_no_key_where_sites_say_otherwise(tmp_path: Path) -> None:
    plain = strip(build(tmp_path, "6.12.0", "TRANSFORM"), tmp_path / "plain")
    bare = strip(_beside_a_pointer(tmp_path, "function"), tmp_path / "bare")
    assert len(report(bare)["keys"]) == len(report(plain)["keys"])
    places = symbols(tmp_path / "vmlinux-6.12.0-TRANSFORM")
    names = {int(key["address"], 16): key["name"] for key in report(bare)["keys"]}
    change = f"{names[places['__SCK__filled']]}={places['__static_call_return0']:#x}"
    patch(bare, tmp_path / "changed", "--set", change, "--policy", "kernel")
    assert "verified" in succeed("verify", bare, tmp_path / "changed")


def _beside_a_pointer(folder: Path, func: str) -> Path:
    """A kernel with a pointer to a function, `slot`, and its address beside that of a trampoline, at `beside`."""
    source = folder / f"beside-{func}.S"
    more = f".data\n.balign 8\n.globl slot, beside\nslot: .quad {func}\nbeside: .quad slot, __SCT__filled\n"
    source.write_text(f'#include "{SOURCE}"\n{more}')
    return build(folder, "6.12.0", "TRANSFORM", source=source)


@pytest.mark.parametrize(("func", "changed"), [("function", ["slot", "__SCT__filled"]), ("other", ["slot"])])
def test_the_proof_believes_no_pair_that_sites_or_bytes_contradict(
    func: str, changed: list[str], tmp_path: Path
) -> None:
    """Whoever is told that the pointer is a key would let it change, and with it what the sites of another call do."""
    named = _beside_a_pointer(tmp_path, func)
    places = symbols(named)
    bare = strip(named, tmp_path / "bare")
    with open_image(bare) as image:
        hints = hints_of(image, locate(image))
    forged = Pairing(places["slot"], places["__SCT__filled"], places["beside"])
    hints = hints._replace(pairs=(*(pair for pair in hints.pairs if pair.trampoline != forged.trampoline), forged))
    elf = Elf(bare.read_bytes())
    to = places["other" if func == "function" else "function"]
    new = {
        "slot": struct.pack("<Q", to),
        "__SCT__filled": b"\xe9" + struct.pack("<i", to - places["__SCT__filled"] - 5),
    }
    for name in changed:
        at = elf.offset_of(places[name])
        elf.data[at : at + len(new[name])] = new[name]
    (tmp_path / "patched").write_bytes(elf.data)
    with pytest.raises(VerificationError, match="belongs to no site"):
        prove(bare, tmp_path / "patched", hints=hints, allowed=frozenset({"kaslr-slot"}))


def test_the_proof_sees_a_table_that_was_cut_where_a_site_goes_straight_to_its_target(tmp_path: Path) -> None:
    bare = strip(build(tmp_path, "6.12.0", "TRANSFORM"), tmp_path / "bare")
    bound = patch(bare, tmp_path / "bound", "--bind", "--policy", "kernel").output
    with open_image(bound) as image:
        hints = hints_of(image, locate(image))
    assert hints.table is not None
    assert not prove(bound, bound, hints=hints).sites
    start, stop = hints.table
    with pytest.raises(VerificationError, match=f"goes on at {start:#x}"):
        prove(bound, bound, hints=hints._replace(table=(start + 8, stop)))


def test_a_linked_file_with_two_tables_is_refused_and_not_read_by_half(tmp_path: Path) -> None:
    source = tmp_path / "second.S"
    source.write_text(
        f'#include "{SOURCE}"\n.section static_call_sites, "a"\n.long filled_call - ., __SCK__filled - .\n'
    )
    path = build(tmp_path, "6.12.0", source=source)
    outcome = staticcall("report", path)
    assert outcome.code == 3
    assert "2 tables of sites, .static_call_sites and static_call_sites" in outcome.err
    (header,) = [line.split() for line in readelf(path) if " .static_call_sites " in line]
    start = int(header[3], 16)
    told = report(path, "--table", f"{start:#x}:{start + int(header[5], 16):#x}")
    assert len(told["sites"]) == int(header[5], 16) // 8


def readelf(path: Path) -> list[str]:
    """The section headers, a line for each, numbers without spaces."""
    done = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True)
    return [line.replace("[ ", "[") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("options", [(), ("--scan",)], ids=["plain", "scan"])
@pytest.mark.parametrize("sections", [True, False], ids=["sections", "segments"])
def test_a_jump_label_at_a_site_is_seen_without_names(sections: bool, options: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "labels.S"
    ends = "__start___jump_table", "__stop___jump_table"
    entries = "".join(f".long {at} - ., function - .\n.quad __SCK__filled - .\n" for at in ("other", "filled_tail"))
    source.write_text(
        f'.section .first, "a"\n.balign 8\n.quad 0, 0\n.globl {", ".join(ends)}\n{ends[0]}:\n{entries}{ends[1]}:\n'
        f'#include "{SOURCE}"\n'
    )
    named = build(tmp_path, "6.12.0", "TRANSFORM", source=source)
    codes = [
        [(finding["code"], finding["address"]) for finding in report(path, *options)["findings"]]
        for path in (named, strip(named, tmp_path / "bare", sections=sections))
    ]
    assert ("overlaps-jump-label", f"{symbols(named)['filled_tail']:#x}") in codes[0]
    assert codes[0] == codes[1]


@pytest.mark.parametrize("nothing", ["ret", "endbr64; nop; nop; ret", "movl $1, %eax; ret", "jmp other + 4096"])
def test_a_function_that_calls_another_one_does_more_than_return_0(nothing: str, tmp_path: Path) -> None:
    """The code compares a function with another one, and it returns 0 after a call: of __fentry__, or of whatever."""
    source = tmp_path / "acts.S"
    source.write_text(
        f'#include "{SOURCE}"\n.text\nacts: call effect\nxor %eax, %eax\nret\neffect: {nothing}\n'
        "cmp $acts, %rax\nkey acts, acts\ntrampoline acts, acts\nsite acts_call, acts, 0, 0xe8\n"
    )
    named = build(tmp_path, "6.12.0", source=source)
    places = symbols(named)
    bare = strip(named, tmp_path / "bare")
    bound = patch(bare, tmp_path / "bound", "--bind", "--policy", "kernel")
    new = {int(edit["address"], 16): edit["new"] for edit in bound.edits}
    empty = nothing.endswith("nop; ret") or nothing == "ret"
    direct = b"\xe8" + struct.pack("<i", places["acts"] - places["acts_call"] - 5)
    assert bytes.fromhex(new[places["acts_call"]]) == (bytes.fromhex("2e2e2e31c0") if empty else direct)
    with open_image(bare) as image:
        hints = hints_of(image, locate(image))
    forged = hints._replace(helpers={**hints.helpers, "__static_call_return0": places["acts"]})
    if empty:
        assert prove(bare, bound.output, hints=forged).sites
    else:
        with pytest.raises(VerificationError, match="is said to be __static_call_return0"):
            prove(bare, bound.output, hints=forged)


@pytest.mark.parametrize(("count", "kind"), [(4000, "data"), (4000, "zeros"), (60_000, "data")], ids=str)
def test_a_file_of_many_pieces_is_looked_through_in_time(count: int, kind: str, tmp_path: Path) -> None:
    """Each lies far from the others, and all of it looks like records that lead to code and to data."""
    base, size, start = 0xFFFF_FFFF_8100_0000, 1 << 22, 1 << 22
    body = struct.pack("<ii", -1000, 0x10) * (size // 8)
    each = size // count // 8 * 8 if kind == "data" else size
    loads = []
    for number in range(count):
        if kind == "data" or not number:
            place, at = base + number * 0x7000, start + number * each
            loads.append(struct.pack("<IIQQQQQQ", 1, 7, at, place, 0, each, each, 8))
        else:
            loads.append(struct.pack("<IIQQQQQQ", 1, 6, start, 0x40_0000 + number * 0x40000, 0, 0, 16, 8))
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base, 64, 0, 0, 64, 56, count, 64, 0, 0)
    path = tmp_path / "many"
    path.write_bytes((header + b"".join(loads)).ljust(start, b"\0") + body)
    assert staticcall_process("report", path).code == 0


@pytest.mark.parametrize("sections", [True, False], ids=["sections", "segments"])
def test_a_kernel_without_static_calls_has_no_table(sections: bool, tmp_path: Path) -> None:
    source = tmp_path / "none.S"
    source.write_text(".text\n.globl _start\n_start: call other\nother: ret\n.data\n.quad other, 0\n")
    bare = strip(build(tmp_path, "6.12.0", source=source), tmp_path / "bare", sections=sections)
    assert [finding["code"] for finding in report(bare)["findings"]] == ["no-static-calls"]


def _installed(program: str) -> Path:
    # What the path leads to as python3 may be a script that chooses one.
    found = sys.executable if program == "python3" else shutil.which(program)
    if found is None:
        _unavailable(f"not installed: {program}")
    return Path(found).resolve()


@pytest.mark.parametrize("program", ["bash", "python3", "gcc", "readelf"])
def test_a_program_without_static_calls_has_no_table(program: str, tmp_path: Path) -> None:
    whole = _installed(program)
    for path in (whole, take_sections(whole, tmp_path / "segments")):
        assert [finding["code"] for finding in report("--scan", path)["findings"]] == ["no-static-calls"]


def test_a_file_full_of_records_is_looked_through_in_time(tmp_path: Path) -> None:
    """Every second record leads to the same trampoline: a hundred thousand tables, and none."""
    count = 200_000
    base, code = 0xFFFF_FFFF_8100_0000, 0x1000
    # A call at `base`, its trampoline, the function, the key; then the records, each with a gap behind it.
    body = bytearray(b"\xe8" + struct.pack("<i", 3) + bytes(3))
    body += b"\xe9" + struct.pack("<i", 0x40 - 13) + bytes.fromhex("0fb9cc")
    body = body.ljust(0x40, b"\0") + b"\xc3"
    body = body.ljust(0x80, b"\0") + struct.pack("<QQ", base + 0x40, 0)
    body = body.ljust(code, b"\0")
    for number in range(count):
        place = code + 16 * number
        body += struct.pack("<iiQ", -place, 0x80 - place - 4, 0)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 0x1000, base, base, len(body), len(body), 0x1000)
    path = tmp_path / "full"
    path.write_bytes((header + load).ljust(0x1000, b"\0") + body)
    image = report(path)
    assert [finding["code"] for finding in image["findings"]] == ["ambiguous-table"]
    assert image["sites"] == []
