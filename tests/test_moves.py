"""Whether a kernel moves and which of its slots move along: by what evidence, and what is refused because of it.

The lists of real kernels come out of their bzImages, where the kernel's own tool put them; those of the small ones
are made here from what readelf says.
"""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from staticcall.model.moves import Motion
from staticcall.read.image import open_image
from staticcall.read.moves import read_moves
from tests.support import bzimage, small_kernels
from tests.support.elf_edit import DT_RELRSZ, Elf, tags
from tests.support.programs import Builder
from tests.support.refusals import one_line
from tests.support.tool import patch, refused, report, staticcall, succeed
from tests.support.toolchain import bytes_at, symbols
from tests.support.vmlinux import Vmlinux

SOURCE = small_kernels.SOURCE.with_name("claims.S")
KEPT = ("--emit-relocs",)
FUNCTION, NULL = ("--set", "empty=function"), ("--set", "filled=NULL", "--force-type")
OTHER = ("--set", "filled=other", "--policy", "kernel")
STAYING = b"# a kernel\nCONFIG_X86_64=y\n# CONFIG_RANDOMIZE_BASE is not set\n"
MOVING = b"CONFIG_X86_64=y\nCONFIG_RANDOMIZE_BASE=y\n"


def small(folder: Path, *defines: str, linking: Iterable[str] = ()) -> Path:
    return small_kernels.build(folder, "6.12.0", *defines, source=SOURCE, linking=tuple(linking))


def configured(folder: Path, configuration: bytes, linking: Iterable[str] = ()) -> Path:
    """A small kernel that carries a configuration."""
    (folder / "config.gz").write_bytes(gzip.compress(configuration))
    return small(folder, f'CONFIG="{folder / "config.gz"}"', linking=linking)


def slots(path: Path) -> set[int]:
    """Where the relocations that the linker kept have eight bytes relocated, in data, by readelf."""
    listing = subprocess.run(["readelf", "-rW", path], capture_output=True, text=True, check=True).stdout
    return {int(place, 16) for place in re.findall(r"^(\w{16}) +\w+ R_X86_64_64 ", listing, re.MULTILINE)}


def listed(path: Path, wide: Iterable[int], *, inverse: bool = True) -> Path:
    """A list as `relocs` writes it, before 6.14 with a part for inverse relocations."""
    words = [0, *sorted(wide), 0, *([0] if inverse else [])]
    path.write_bytes(b"".join(struct.pack("<I", word & 0xFFFFFFFF) for word in words))
    return path


# Kernels as they are booted


@pytest.mark.kernel
def test_a_bzimage_lists_the_keys_that_lead_anywhere_and_no_others(kernel: Vmlinux, unpacked: Path) -> None:
    wide = bzimage.relocated(unpacked.read_bytes()).wide

    assert {key.address for key in kernel.keys.values() if key.address in wide} == {
        key.address for key in kernel.keys.values() if key.func
    }
    assert len({bool(key.func) for key in kernel.keys.values()}) == 2


@pytest.mark.kernel
def test_the_list_behind_an_unpacked_kernel_is_read_as_the_kernel_reads_it(unpacked: Path) -> None:
    with open_image(unpacked) as image:
        moves = read_moves(image, None)

    assert moves.motion is Motion.MOVES
    assert moves.relocated == bzimage.relocated(unpacked.read_bytes()).wide


@pytest.mark.kernel
def test_that_list_serves_for_the_kernels_file_with_symbols(kernel: Vmlinux, unpacked: Path, tmp_path: Path) -> None:
    relocs = tmp_path / "vmlinux.relocs"
    relocs.write_bytes(bzimage.relocated(unpacked.read_bytes()).data)
    with open_image(kernel.path) as image:
        moves = read_moves(image, relocs)

    assert moves.motion is Motion.MOVES
    assert {key: moves.relocates(found.address) for key, found in kernel.keys.items()} == {
        key: bool(found.func) for key, found in kernel.keys.items()
    }


@pytest.mark.kernel
def test_a_kernels_own_file_shows_that_it_moves(kernel: Vmlinux) -> None:
    """Debian's builds of 6.1 keep all relocations, those of 6.12 a few that a build forgets to strip."""
    with open_image(kernel.path) as image:
        moves = read_moves(image, None)
    answers = {bool(key.func) == moves.relocates(key.address) for key in kernel.keys.values()}
    kept = subprocess.run(["readelf", "-SW", kernel.path], capture_output=True, text=True, check=True).stdout

    assert moves.motion is Motion.MOVES
    assert answers == ({True} if " .rela.data " in kept else {False})
    assert "--emit-relocs" in moves.evidence


@pytest.mark.kernel
def test_a_kernel_without_any_relocation_shows_by_its_functions_that_it_moves(kernel: Vmlinux, tmp_path: Path) -> None:
    bare = tmp_path / "vmlinux"
    subprocess.run(["objcopy", "--strip-debug", "-R", ".rela*", kernel.path, bare], check=True)
    with open_image(bare) as image:
        moves = read_moves(image, None)

    assert moves.motion is Motion.MOVES
    assert "kaslr_get_random_long" in moves.evidence
    assert "kaslr_get_random_long" in kernel.symbols


@pytest.mark.kernel
def test_the_list_of_another_kernel_is_found_out(kernel: Vmlinux, unpacked: Path, tmp_path: Path) -> None:
    data = bytearray(bzimage.relocated(unpacked.read_bytes()).data)
    for place in range(4, len(data), 4):
        (word,) = struct.unpack_from("<I", data, place)
        struct.pack_into("<I", data, place, word + 4 if word else 0)
    (tmp_path / "other.relocs").write_bytes(data)
    outcome = staticcall(
        *("patch", kernel.path, "--dry-run", "--force-type", "--set", "might_resched=NULL"),
        *("--relocs", tmp_path / "other.relocs"),
    )

    assert outcome.code == 3
    assert "other.relocs: is no vmlinux.relocs of this kernel" in one_line(outcome)


# Relocations that the linker kept


def test_kept_relocations_decide_slot_by_slot(tmp_path: Path) -> None:
    kernel = small(tmp_path, linking=KEPT)
    keys = {key["name"]: int(key["address"], 16) for key in report(kernel)["keys"]}
    with open_image(kernel) as image:
        moves = read_moves(image, None)

    assert {name: moves.relocates(address) for name, address in keys.items()} == {
        name: address in slots(kernel) for name, address in keys.items()
    }
    assert slots(kernel) & set(keys.values())
    for wish, what in ((FUNCTION, "key empty is NULL"), (NULL, "key filled is not NULL")):
        line = refused("patch", kernel, "-o", tmp_path / "out", *wish, code="kaslr-slot")
        assert what in line
        assert "--emit-relocs" in line
    succeed("patch", kernel, "-o", tmp_path / "out", *OTHER)


def test_a_patch_leaves_kept_relocations_as_they_are(tmp_path: Path) -> None:
    kernel = small(tmp_path, linking=KEPT)
    changed = patch(kernel, tmp_path / "out", *OTHER)

    # `relocs` takes the places, and these are the same.
    assert slots(changed.output) == slots(kernel)
    (key,) = (edit for edit in changed.edits if edit["kind"] == "key")
    assert int(key["address"], 16) in slots(kernel)


# Lists


@pytest.mark.parametrize("inverse", [True, False])
def test_a_list_decides_slot_by_slot(tmp_path: Path, inverse: bool) -> None:
    kernel = small(tmp_path)
    relocs = listed(tmp_path / "vmlinux.relocs", slots(small(tmp_path, linking=KEPT)), inverse=inverse)
    options = ("--relocs", relocs)

    for wish, what in ((FUNCTION, "key empty is NULL"), (NULL, "key filled is not NULL")):
        line = refused("patch", kernel, "-o", tmp_path / "out", *wish, *options, code="kaslr-slot")
        assert what in line
        assert "vmlinux.relocs lists" in line
    succeed("patch", kernel, "-o", tmp_path / "out", *OTHER, *options)


def test_a_function_in_a_slot_that_nothing_relocates_is_no_better_than_the_one_before(tmp_path: Path) -> None:
    kernel = small(tmp_path)
    wide = slots(small(tmp_path, linking=KEPT)) - {symbols(kernel)["__SCK__filled"]}
    options = (*OTHER, "--relocs", listed(tmp_path / "vmlinux.relocs", wide))

    line = refused("patch", kernel, "-o", tmp_path / "out", *options, code="kaslr-slot")
    assert "key filled has a slot that nothing relocates" in line
    succeed("patch", kernel, "-o", tmp_path / "out", *options, "--force", "kaslr-slot")


@pytest.mark.parametrize(
    "words",
    [
        (),
        (0,),
        (0, 0),
        (0, 0xFFFF),
        (1, 0, 0),
        (0, 0x81002000, 0, 0, 0),
        (0, 0x70000000, 0, 0),
        (0, 0x81000000, 0x81000001, 0x81000002, 0, 0),
    ],
    ids=["empty", "one-stop", "zeros", "one-list", "no-start", "too-many-stops", "elsewhere", "no-pointers"],
)
def test_what_is_no_list_is_refused_as_a_file_and_proves_nothing_behind_one(
    tmp_path: Path, words: tuple[int, ...]
) -> None:
    kernel, relocs = small(tmp_path), tmp_path / "vmlinux.relocs"
    relocs.write_bytes(b"".join(struct.pack("<I", word) for word in words))
    outcome = staticcall("patch", kernel, "-o", tmp_path / "out", *OTHER, "--relocs", relocs)
    assert outcome.code == 3
    assert "is no vmlinux.relocs of this kernel" in one_line(outcome)

    kernel.write_bytes(kernel.read_bytes() + relocs.read_bytes())
    line = refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    assert "nothing in the file says" in line
    assert "--relocs" in line


# The configuration


def test_a_kernel_that_provably_stays_may_gain_and_lose_functions(tmp_path: Path) -> None:
    kernel = configured(tmp_path, STAYING)

    for wish in (FUNCTION, (*NULL, "--policy", "kernel")):
        changed = patch(kernel, tmp_path / "out", *wish)
        succeed("verify", kernel, changed.output)
        changed.revert()
        changed.output.unlink()
    empty, function = (symbols(kernel)[name] for name in ("__SCK__empty", "function"))
    patch(kernel, tmp_path / "out", *FUNCTION)
    assert bytes_at(tmp_path / "out", empty, 8) == struct.pack("<Q", function)


@pytest.mark.parametrize(
    ("configuration", "evidence"),
    [
        (MOVING, "has CONFIG_RANDOMIZE_BASE"),
        (b"CONFIG_ARM64=y\n", "nothing in the file says"),
        (b"", "nothing in the file says"),
        (b"CONFIG_X86_64=y\n" + b"#" * (1 << 24), "nothing in the file says"),
    ],
    ids=["moving", "foreign", "empty", "huge"],
)
def test_any_other_configuration_proves_no_such_thing(tmp_path: Path, configuration: bytes, evidence: str) -> None:
    kernel = configured(tmp_path, configuration)

    line = refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    assert evidence in line
    _not_verified(kernel, tmp_path)


def test_a_damaged_configuration_proves_nothing(tmp_path: Path) -> None:
    kernel = configured(tmp_path, STAYING)
    data = bytearray(kernel.read_bytes())
    data[data.index(b"IKCFG_ST") + 20] ^= 0xFF
    kernel.write_bytes(data)

    assert "nothing in the file says" in refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    _not_verified(kernel, tmp_path)


def test_kept_relocations_outweigh_a_configuration(tmp_path: Path) -> None:
    kernel = configured(tmp_path, STAYING, linking=KEPT)

    assert "--emit-relocs" in refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    _not_verified(kernel, tmp_path)


@pytest.mark.parametrize("other", [STAYING, MOVING])
@pytest.mark.parametrize("own", [True, False])
def test_a_configuration_in_another_section_proves_nothing(tmp_path: Path, own: bool, other: bytes) -> None:
    kernel = configured(tmp_path, STAYING) if own else small(tmp_path)
    (tmp_path / "other").write_bytes(b"IKCFG_ST" + gzip.compress(other) + b"IKCFG_ED")
    options = (
        "--set-section-flags",
        ".other=alloc,readonly,data",
        "--change-section-address",
        ".other=0xffffffff82000000",
    )
    subprocess.run(["objcopy", "--add-section", f".other={tmp_path / 'other'}", *options, kernel], check=True)

    assert "nothing in the file says" in refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    _not_verified(kernel, tmp_path)


@pytest.mark.parametrize("damage", ["no-end", "two-members"])
def test_a_configuration_without_a_clear_end_proves_nothing(tmp_path: Path, damage: str) -> None:
    kernel = configured(tmp_path, STAYING)
    data = kernel.read_bytes()
    if damage == "no-end":
        kernel.write_bytes(data.replace(b"IKCFG_ED", b"IKCFG_XX"))
    else:
        (tmp_path / "config.gz").write_bytes(gzip.compress(STAYING) + gzip.compress(MOVING))
        kernel = small(tmp_path, f'CONFIG="{tmp_path / "config.gz"}"')

    assert "nothing in the file says" in refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    _not_verified(kernel, tmp_path)


def test_bytes_behind_the_file_may_be_a_list_of_a_kind_that_is_not_known(tmp_path: Path) -> None:
    kernel = configured(tmp_path, STAYING)
    kernel.write_bytes(kernel.read_bytes() + b"whatever")

    line = refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    assert "behind the ELF file may be a list" in line
    _not_verified(kernel, tmp_path)


def test_the_name_of_a_kept_relocation_section_does_not_matter(tmp_path: Path) -> None:
    kernel = configured(tmp_path, STAYING, linking=KEPT)
    kernel.write_bytes(kernel.read_bytes().replace(b".rela.", b".kept."))

    assert "--emit-relocs" in refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    _not_verified(kernel, tmp_path)


def _not_verified(kernel: Path, folder: Path) -> None:
    """See that the verifier, which looks for itself, takes this kernel for one that may move."""
    succeed("patch", kernel, "-o", folder / "forced", *FUNCTION, "--force", "kaslr-slot")
    outcome = staticcall("verify", kernel, folder / "forced")
    assert outcome.code == 5
    assert "relocations did not follow" in one_line(outcome)
    succeed("verify", "--allow", "kaslr-slot", kernel, folder / "forced")


# Symbols


@pytest.mark.parametrize("name", ["kaslr_get_random_long", "kernel_randomize_memory"])
def test_functions_of_kaslr_show_that_a_kernel_moves(tmp_path: Path, name: str) -> None:
    kernel = small(tmp_path, linking=(f"--defsym={name}=function",))

    line = refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    assert f"it has {name}" in line
    assert "nokaslr" in line


def test_functions_of_kaslr_outweigh_a_configuration(tmp_path: Path) -> None:
    kernel = configured(tmp_path, STAYING, linking=("--defsym=kaslr_get_random_long=function",))

    line = refused("patch", kernel, "-o", tmp_path / "out", *FUNCTION, code="kaslr-slot")
    assert "it has kaslr_get_random_long" in line
    _not_verified(kernel, tmp_path)


# Programs and shared objects


def test_a_slot_of_a_program_that_lost_its_relocation_is_not_changed(built: Builder, tmp_path: Path) -> None:
    program = tmp_path / "program"
    elf = Elf(built("calls", "pie", relr=True).read_bytes())
    tags({DT_RELRSZ: 0})(elf)
    program.write_bytes(elf.data)

    line = refused("patch", program, "-o", tmp_path / "out", "--set", "alpha=alpha_fast", code="slot-relocation")
    assert "key alpha has a slot that nothing relocates" in line
