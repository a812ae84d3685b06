"""Other tables of a kernel that name the code of static calls: what is said of it, and what is refused.

What a table says is decoded here a second time, by the declarations of the kernel's own headers.
"""

from __future__ import annotations

import lzma
import os
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import capstone
import pytest

from staticcall.locate.claims import locate_claims
from staticcall.model.claims import Owner
from staticcall.read.image import open_image
from tests.support import guest, small_kernels
from tests.support.elf_edit import Elf
from tests.support.modules import Development, Workshop
from tests.support.refusals import one_line
from tests.support.tool import Json, refused, report, staticcall, succeed
from tests.support.toolchain import symbols
from tests.support.vmlinux import Vmlinux, read

SOURCE = small_kernels.SOURCE.with_name("claims.S")
CONTESTED = Path(__file__).parents[1] / "fixtures" / "contested"

# How a table is asked of the small kernel, what its finding is called, and what comes of a patch of a site that it
# names from its first byte on.
OWNERS = {
    "ALTERNATIVES=12": ("overlaps-alternative", "refused"),
    "ALTERNATIVES=13": ("overlaps-alternative", "refused"),
    "ALTERNATIVES=14": ("overlaps-alternative", "refused"),
    "PARAVIRT": ("overlaps-paravirt", "refused"),
    "PARAVIRT=12": ("overlaps-paravirt", "refused"),
    "JUMP_LABELS": ("overlaps-jump-label", "refused"),
    "RETPOLINES": ("overlaps-retpoline", "patched"),
    "RETURNS": ("overlaps-return", "patched"),
    "CALLS": ("overlaps-call-thunk", "patched"),
    "LOCKS": ("overlaps-lock-prefix", "patched"),
    "EXCEPTIONS": ("overlaps-exception", "patched"),
    "BLACKLIST": ("in-kprobe-blacklist", "patched"),
}
NOTES = {"overlaps-exception", "in-kprobe-blacklist"}
# The tables by the headers of Linux 6.1 and 6.12: the size of an entry.
ENTRIES = {
    "__jump_table": 16,
    ".retpoline_sites": 4,
    ".return_sites": 4,
    ".call_sites": 4,
    ".smp_locks": 4,
    "__ex_table": 12,
    ".parainstructions": 16,
}
SET = ("--set", "filled=other", "--policy", "kernel")
CLAIM_CODES = {code for code, _ in OWNERS.values()} | {"unreadable-table"}


def small(folder: Path, *defines: str) -> Path:
    return small_kernels.build(folder, "6.12.0", *defines, source=SOURCE)


def claims_found(path: Path) -> list[Json]:
    return [one for one in report("--scan", path)["findings"] if one["code"] in CLAIM_CODES]


# What is said


@pytest.mark.parametrize("table", OWNERS)
@pytest.mark.parametrize("inside", [0, 4])
def test_a_site_that_another_table_names_is_reported(tmp_path: Path, table: str, inside: int) -> None:
    kernel = small(tmp_path, table, f"PLACE=filled_call+{inside}")
    (finding,) = claims_found(kernel)

    assert finding["code"] == OWNERS[table][0]
    assert finding["severity"] == ("note" if finding["code"] in NOTES else "warning")
    assert int(finding["address"], 16) == symbols(kernel)["filled_call"]


@pytest.mark.parametrize("table", [table for table in OWNERS if table != "BLACKLIST"])
@pytest.mark.parametrize("outside", [-5, 5])
def test_what_stands_beside_a_site_is_not(tmp_path: Path, table: str, outside: int) -> None:
    assert claims_found(small(tmp_path, table, f"PLACE=filled_call+{outside}")) == []


def test_an_alternative_may_begin_far_before_the_site(tmp_path: Path) -> None:
    reaching = small(tmp_path, "ALTERNATIVES=14", "PLACE=filled_call-60", "SIZE=61")
    short = small(tmp_path, "ALTERNATIVES=14", "PLACE=filled_call-60", "SIZE=60")

    labels = {address: name for name, address in symbols(reaching).items()}
    assert [labels[int(one["address"], 16)] for one in claims_found(reaching)] == ["filled_call"]
    assert claims_found(short) == []


@pytest.mark.parametrize("table", [table for table in OWNERS if table not in ("RETURNS", "BLACKLIST")])
def test_a_trampoline_that_another_table_names_is_reported(tmp_path: Path, table: str) -> None:
    (finding,) = claims_found(small(tmp_path, table, "PLACE=__SCT__filled"))

    assert finding["code"] == OWNERS[table][0]
    assert "trampoline filled" in finding["message"]


def test_a_trampoline_that_returns_is_listed_as_a_return_and_that_is_normal(tmp_path: Path) -> None:
    # __static_call_fixup() knows it by its signature.
    kernel = small(tmp_path, "RETURNS", "PLACE=__SCT__empty")

    assert claims_found(kernel) == []
    succeed("patch", kernel, "-o", tmp_path / "out", "--set", "empty=other", "--force", "kaslr-slot")


# What is refused


@pytest.mark.parametrize("table", OWNERS)
def test_a_patch_is_refused_where_the_kernel_would_spoil_it(tmp_path: Path, table: str) -> None:
    kernel = small(tmp_path, table, "PLACE=filled_call")

    if OWNERS[table][1] == "refused":
        line = refused("patch", kernel, "-o", tmp_path / "out", *SET, code="contested-code")
        assert "key filled" in line
        assert f"{symbols(kernel)['filled_call']:#x}" in line
        assert not (tmp_path / "out").exists()
    else:
        succeed("patch", kernel, "-o", tmp_path / "out", *SET)


@pytest.mark.parametrize("table", OWNERS)
def test_only_edited_places_count(tmp_path: Path, table: str) -> None:
    kernel = small(tmp_path, table, "PLACE=empty_call")

    succeed("patch", kernel, "-o", tmp_path / "out", *SET)


@pytest.mark.parametrize("table", [table for table, (_, outcome) in OWNERS.items() if outcome == "refused"])
def test_a_trampoline_is_an_edited_place_too(tmp_path: Path, table: str) -> None:
    kernel = small(tmp_path, table, "PLACE=__SCT__filled")

    refused("patch", kernel, "-o", tmp_path / "out", *SET, code="contested-code")
    succeed("patch", kernel, "-o", tmp_path / "bound", "--bind")


@pytest.mark.parametrize("table", ["RETPOLINES", "RETURNS", "CALLS"])
def test_nobody_may_take_half_an_instruction_for_one(tmp_path: Path, table: str) -> None:
    kernel = small(tmp_path, table, "PLACE=filled_call+1")

    refused("patch", kernel, "-o", tmp_path / "out", *SET, code="contested-code")


@pytest.mark.parametrize("byte", [0xF0, 0x3E, 0x10])
def test_a_displacement_that_looks_like_a_lock_prefix_is_refused_where_one_is_listed(tmp_path: Path, byte: int) -> None:
    # The target is put so far behind the site that the displacement's first byte is this one.
    kernel = small(tmp_path, "LOCKS", "PLACE=filled_call+1")
    elf = Elf(kernel.read_bytes())
    at = symbols(kernel)["filled_call"] + 5
    place = elf.symbol("other")
    place["value"] = at + (byte - 0x100 if byte > 0x7F else byte)
    kernel.write_bytes(elf.data)

    if byte == 0x10:
        succeed("patch", kernel, "-o", tmp_path / "out", "--set", "filled=other")
    else:
        refused("patch", kernel, "-o", tmp_path / "out", "--set", "filled=other", code="contested-code")


# Damaged tables


@pytest.mark.parametrize("table", [table for table in OWNERS if table not in ("BLACKLIST", "PARAVIRT=12")])
def test_a_table_that_is_none_is_reported_and_refuses_a_patch_unless_forced(tmp_path: Path, table: str) -> None:
    kernel = small(tmp_path, table, "RUBBISH")
    (finding,) = claims_found(kernel)

    assert (finding["code"], finding["severity"]) == ("unreadable-table", "warning")
    if table != "EXCEPTIONS":
        line = refused("patch", kernel, "-o", tmp_path / "out", *SET, code="unreadable-table")
        assert "--force unreadable-table" in line
    succeed("patch", kernel, "-o", tmp_path / "out", *SET, "--force", "unreadable-table")


@pytest.mark.parametrize("table", ["ALTERNATIVES=14", "JUMP_LABELS", "CALLS", "LOCKS", "EXCEPTIONS", "PARAVIRT"])
def test_a_table_of_places_without_code_is_none(tmp_path: Path, table: str) -> None:
    (finding,) = claims_found(small(tmp_path, table, "PLACE=__SCK__filled+0x10000000"))

    assert finding["code"] == "unreadable-table"


@pytest.mark.parametrize("section", [".altinstructions", "__ex_table", ".call_sites"])
@pytest.mark.parametrize("fields", [{"addr": 8}, {"size": 1 << 50}, {"addr": (1 << 64) - 4}])
def test_a_table_outside_of_the_file_ends_nothing(tmp_path: Path, section: str, fields: dict[str, int]) -> None:
    kernel = small(tmp_path, "ALTERNATIVES=14", "EXCEPTIONS", "CALLS")
    elf = Elf(kernel.read_bytes())
    elf.section(section).update(fields)
    kernel.write_bytes(elf.data)
    outcome = staticcall("report", "--fail-on", "never", kernel)

    assert outcome.code in (0, 3), outcome
    if outcome.code:
        one_line(outcome)


def test_a_size_that_goes_round_the_address_space_is_refused_before_it_is_read(tmp_path: Path) -> None:
    kernel = small(tmp_path, "JUMP_LABELS")
    elf = Elf(kernel.read_bytes())
    start, stop = (elf.symbol(f"__{end}___jump_table") for end in ("start", "stop"))
    stop["value"] = start["value"] - 16
    kernel.write_bytes(elf.data)

    (finding,) = claims_found(kernel)
    assert finding["code"] == "unreadable-table"


@pytest.mark.parametrize("end", ["__start___jump_table", "__stop___jump_table"])
def test_a_table_with_one_end_only_is_unreadable(tmp_path: Path, end: str) -> None:
    kernel = small(tmp_path, "JUMP_LABELS", "PLACE=filled_call")
    subprocess.run(["objcopy", "-N", end, kernel], check=True)
    (finding,) = claims_found(kernel)

    assert finding["code"] == "unreadable-table"
    refused("patch", kernel, "-o", tmp_path / "out", *SET, code="unreadable-table")


def test_a_section_of_its_name_does_not_hide_the_table_that_symbols_bound(tmp_path: Path) -> None:
    kernel, decoy = small(tmp_path, "JUMP_LABELS", "PLACE=filled_call"), "__jump_table"
    (tmp_path / "zeros").write_bytes(bytes(16))
    subprocess.run(
        [
            *("objcopy", "--add-section", f"{decoy}={tmp_path / 'zeros'}", "--set-section-flags", f"{decoy}=alloc"),
            *("--change-section-address", f"{decoy}={symbols(kernel)['_start']}", kernel),
        ],
        check=True,
    )

    assert "overlaps-jump-label" in {one["code"] for one in claims_found(kernel)}


def test_an_object_may_replace_code_by_nothing(tmp_path: Path) -> None:
    module = tmp_path / "module.o"
    defines = ("-DALTERNATIVES=14", "-DPLACE=filled_call", "-DNEW=0", '-DVERSION="6.12.0"')
    subprocess.run(["gcc", "-c", *defines, "-o", module, SOURCE], check=True)

    assert [one["code"] for one in claims_found(module)] == ["overlaps-alternative"]


# Modules, built with the kernel's own macros


@pytest.mark.kernel
def test_a_module_with_contested_sites_is_told_of_and_only_the_harmless_are_patched(
    development: Development, tmp_path: Path
) -> None:
    module = Workshop(development, tmp_path, CONTESTED, "static_call_contested").build("objtool")

    assert Counter(one["code"] for one in report(module)["findings"]) == {
        "overlaps-alternative": 1,
        "overlaps-lock-prefix": 1,
        "overlaps-exception": 1,
    }
    out = tmp_path / "out.ko"
    refused("patch", module, "-o", out, "--set", "in_alternative=contested_other", code="contested-code")
    for key in ("at_lock", "at_fault", "alone"):
        succeed("patch", module, "-o", out, "--set", f"{key}=contested_other", "--policy", "kernel")
        out.unlink()


@pytest.mark.kernel
def test_every_entry_of_the_tables_of_debians_modules_is_found_and_none_is_at_a_static_call(
    development: Development, tmp_path: Path
) -> None:
    module = tmp_path / "module.ko"
    seen: Counter[str] = Counter()
    for archive in sorted(development.modules.rglob("*.ko.xz"))[::8]:
        module.write_bytes(lzma.decompress(archive.read_bytes()))
        sizes = _section_sizes(module)
        expected = Counter({name: size // ENTRIES[name] for name, size in sizes.items() if name in ENTRIES})
        if sizes.get(".altinstructions"):
            expected[".altinstructions"] = sizes[".altinstructions"] // 14
        with open_image(module) as image:
            code = [(s.address, s.address + s.size) for s in image.sections if s.executable]
            everywhere = [(at, at + 8) for start, stop in code for at in range(start, stop, 8)]
            claims = locate_claims(image, everywhere)
        found = Counter(str(claim.owner) for claim in claims.found)
        assert not claims.unreadable, archive
        assert {name: count for name, count in found.items() if name in expected} == expected, archive
        assert not CLAIM_CODES & {one["code"] for one in report(module)["findings"]}, archive
        seen += expected
    assert seen.keys() >= {".altinstructions", "__jump_table", ".call_sites", ".return_sites", ".smp_locks"}


def _section_sizes(path: Path) -> Counter[str]:
    listing = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    sizes: Counter[str] = Counter()
    for name, size in re.findall(r"\] (\S+) +PROGBITS +\S+ \S+ (\S+)", listing):
        sizes[name] += int(size, 16)
    return sizes


# Kernels


@pytest.mark.kernel
def test_every_entry_of_a_kernels_tables_is_read_as_its_headers_declare_it(kernel: Vmlinux) -> None:
    expected = Counter(_declared(kernel))
    with open_image(kernel.path) as image:
        claims = locate_claims(image, [(address, address + 1) for _, address, _ in expected])

    assert claims.unreadable == ()
    found = Counter((str(owner), address, size) for owner, address, size in claims.found)
    assert {claim: n for claim, n in found.items() if claim[0] != Owner.KPROBE_BLACKLIST} == expected
    assert {owner for owner, _, _ in expected} >= {".altinstructions", "__jump_table", ".return_sites", "__ex_table"}


@pytest.mark.kernel
def test_no_static_call_of_a_kernel_is_contested_and_some_are_where_no_kprobe_may_be(kernel: Vmlinux) -> None:
    start, stop = (kernel.address(f"__{end}_kprobe_blacklist") for end in ("start", "stop"))
    listed = {address for (address,) in struct.iter_unpack("<Q", _bytes_at(kernel, start, stop - start))}
    functions = [extent for extents in kernel.functions.values() for extent in extents if extent.start in listed]
    inside = {call.address for call in kernel.calls if any(call.address in extent for extent in functions)}

    found = claims_found(kernel.path)
    assert {one["code"] for one in found} == {"in-kprobe-blacklist"}
    assert {int(one["address"], 16) for one in found} == inside


@pytest.mark.kernel
def test_a_kernel_is_bound_whole_as_if_there_were_no_other_tables(kernel: Vmlinux) -> None:
    plan = succeed("patch", kernel.path, "--dry-run", "--bind", "--policy", "kernel")

    direct = sum(kernel.is_direct(call, "kernel") for call in kernel.calls)
    assert f"{direct:,} sites direct" in plan


@pytest.mark.kernel
@pytest.mark.boot
@pytest.mark.usefixtures("guest_tools")
def test_a_booting_kernel_makes_no_returns_of_trampolines_that_were_returns(vmlinux_612: Path, tmp_path: Path) -> None:
    """Trampolines of NULL are among the kernel's returns, which its start rewrites on processors such as this one."""
    kernel = read(vmlinux_612)
    # Slots for more security modules than there are: nobody leads them anywhere or calls them.
    keys = [key for key in kernel.keys.values() if re.fullmatch(r"lsm_static_call_\w+_10", key.name)][:20]
    returns = {address for owner, address, _ in _declared(kernel) if owner == ".return_sites"}
    assert {key.func for key in keys} == {0}
    assert {key.trampoline for key in keys} <= returns

    sets = [option for key in keys for option in ("--set", f"{key.name}=int_sqrt")]
    out = tmp_path / "vmlinux"
    succeed("patch", kernel.path, "-o", out, *sets, "--force", "kaslr-slot", "--force-type")
    section = kernel.section(keys[0].trampoline)
    with out.open("rb") as file:
        codes = [os.pread(file.fileno(), 8, section.offset + key.trampoline - section.address) for key in keys]
    places = list(zip([key.trampoline for key in keys], codes, strict=True))
    booted = guest.boot(out, tmp_path / "guest", places=places, cpu="EPYC")
    out.unlink()

    assert booted.reached_user_space, booted.log
    assert (booted.problems, booted.compared, booted.unmapped) == ((), len(keys), ())
    assert booted.memory == {}
    assert not {code[:5] for code in codes} & {key.trampoline_code[:5] for key in keys}


def _declared(kernel: Vmlinux) -> Iterator[tuple[str, int, int]]:
    """Every entry of the tables: owner, address, and size, where an instruction's is what a disassembler says."""
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    release = tuple(map(int, re.findall(r"\d+", kernel.release)[:2]))
    layout = "<iiHHBB" if release >= (6, 3) else "<iiHBB"
    for name, place, entry in _entries(kernel, ".altinstructions", struct.Struct(layout)):
        yield name, place + entry[0], entry[-2]
    for name, _, (address, _, length) in _entries(kernel, ".parainstructions", struct.Struct("<QBB6x")):
        yield name, address, length
    start, stop = (kernel.address(f"__{end}___jump_table") for end in ("start", "stop"))
    for number, (code, _, _) in enumerate(struct.iter_unpack("<iiq", _bytes_at(kernel, start, stop - start))):
        address = start + 16 * number + code
        (size,) = [size for _, size, _, _ in decoder.disasm_lite(_bytes_at(kernel, address, 5), address, 1)]
        yield "__jump_table", address, size
    for owner, size in ((".retpoline_sites", 5), (".return_sites", 5), (".call_sites", 5), (".smp_locks", 1)):
        for name, place, (offset,) in _entries(kernel, owner, struct.Struct("<i")):
            if offset:
                yield name, place + offset, size
    for name, place, (code, _, _) in _entries(kernel, "__ex_table", struct.Struct("<iii")):
        yield name, place + code, 1


def _entries(kernel: Vmlinux, name: str, layout: struct.Struct) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    for section in kernel.sections:
        if section.name == name:
            table = _bytes_at(kernel, section.address, section.size)
            for number, entry in enumerate(layout.iter_unpack(table)):
                yield name, section.address + layout.size * number, entry


def _bytes_at(kernel: Vmlinux, address: int, size: int) -> bytes:
    section = kernel.section(address)
    with kernel.path.open("rb") as file:
        return os.pread(file.fileno(), size, section.offset + address - section.address)
