"""Debian's kernels as they are shipped, against the same builds with all their symbols.

Everything that a report says of a bare `vmlinuz` has to equal what it says of the `vmlinux` of the same build, whose
report is held against the kernel itself in `test_kernel_report.py`. Names are held against nm.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from staticcall.read.image import open_image
from staticcall.read.kallsyms import read_kallsyms
from tests.support import kernels, tool
from tests.support.tool import Json, staticcall, succeed
from tests.support.vmlinux import TABLE_START, TABLE_STOP, Vmlinux

pytestmark = pytest.mark.kernel


@cache
def report(path: Path, *options: str | Path) -> Json:
    return tool.report(*options, path)


def shipped(kernel: Vmlinux) -> Path:
    (found,) = kernels.image(kernel.path).glob("boot/vmlinuz-*")
    return found


@pytest.fixture(scope="module")
def system_map(kernel: Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build made of nm's list; Debian ships it apart from the kernel."""
    out = tmp_path_factory.mktemp("map") / "System.map"
    with out.open("wb") as file:
        subprocess.run(["nm", "-n", kernel.path], stdout=file, check=True)
    return out


def same_sites(bare: Json, named: Json, kernel: Vmlinux, *, nameless: frozenset[int] = frozenset()) -> None:
    """Check every field of every site; only where the file itself has them differs.

    Code of a weak function that another one replaced has no symbol. Sites in such code, `nameless`, are given to the
    function in front where nothing tells, as the kernel itself does in /proc/kallsyms.
    """
    extents = [extent for group in kernel.functions.values() for extent in group]
    assert len(bare["sites"]) == len(named["sites"]) == len(kernel.calls)
    for site, wanted in zip(bare["sites"], named["sites"], strict=True):
        assert site.keys() == wanted.keys()
        differ = {field for field in site if site[field] != wanted[field]} - {"file_offset"}
        address = int(site["address"], 16)
        if address in nameless:
            assert wanted["function"] is None
            assert not any(address in extent for extent in extents)
            name, _, offset = site["function"].rpartition("+")
            last = max(extent.start for extent in extents if extent.start <= address)
            assert (address - int(offset, 16), last in kernel.symbols[name]) == (last, True)
            differ.remove("function")
        assert not differ, (site, wanted)


def in_no_function(named: Json) -> frozenset[int]:
    """The sites that the kernel with all symbols has in no function."""
    return frozenset(int(site["address"], 16) for site in named["sites"] if site["function"] is None)


def test_a_shipped_kernel_reads_as_the_one_with_symbols(kernel: Vmlinux) -> None:
    bare, named = report(shipped(kernel)), report(kernel.path)
    assert bare["names"] == {"source": "kallsyms", "path": None}
    assert (named["names"], named["container"]) == ({"source": "symtab", "path": None}, [])
    assert [part.partition(":")[0] for part in bare["container"]] == ["bzImage"]
    same_sites(bare, named, kernel)
    for field in ("build_id", "elf_type", "machine", "keys", "summary", "findings"):
        assert bare[field] == named[field], field


def test_the_text_says_where_the_names_are_from(kernel: Vmlinux) -> None:
    assert "  names from kallsyms, the kernel's own list\n" in succeed("report", shipped(kernel))
    assert "names from" not in succeed("report", kernel.path)


def test_kallsyms_has_the_names_that_nm_has(kernel: Vmlinux, unpacked: Path) -> None:
    """All that it lists is true, and what it leaves out is nowhere in the image or was only made by tools."""
    with open_image(unpacked) as image:
        listing = read_kallsyms(image.source, image.sections, image.segments)
    assert listing is not None
    found: dict[str, set[int]] = defaultdict(set)
    for number, address in enumerate(listing.addresses):
        found[listing.name(number).decode()].add(address)
    assert len(found) > 50000
    assert all(addresses <= set(kernel.symbols[name]) for name, addresses in found.items())
    made = ("__crc_", "__kstrtab", ".L", "L0\1", "kallsyms_")
    for name in kernel.symbols.keys() - found.keys():
        if not name.startswith(made):
            assert not any(kernel.functions.get(name, ())), name


def test_no_function_is_cut_short(kernel: Vmlinux, unpacked: Path) -> None:
    """Where code has no name is told by signs; none of them is in the middle of what has one."""
    with open_image(unpacked) as image:
        for name, extents in kernel.functions.items():
            for extent in extents:
                # The last byte may be the int3 behind a tail jump, of which the unwinder knows nothing.
                if len(extent) > 1:
                    found = image.symbols.containing(extent.stop - 2)
                    assert found is not None, name


# Other sources of names


def test_a_system_map_names_the_same(kernel: Vmlinux, unpacked: Path, system_map: Path) -> None:
    bare = tool.report("--system-map", system_map, unpacked)
    assert bare["names"] == {"source": "system-map", "path": str(system_map)}
    same_sites(bare, report(kernel.path), kernel)
    assert bare["keys"] == report(kernel.path)["keys"]


def test_names_of_code_alone_name_the_keys_as_well(
    kernel: Vmlinux, unpacked: Path, system_map: Path, tmp_path: Path
) -> None:
    """What a kernel lists without CONFIG_KALLSYMS_ALL: trampolines have names then, and keys and tables have none."""
    code = tmp_path / "code"
    with code.open("wb") as file:
        subprocess.run(["grep", "-E", " [tTwW] ", system_map], stdout=file, check=True)
    bare = tool.report("--system-map", code, unpacked)
    # Before 6.4 what has no name is told apart with the table of jumps that are patched, which has none here either.
    named = report(kernel.path)
    assert len(in_no_function(named)) <= 1
    old = kernel.release.startswith("6.1.")
    same_sites(bare, named, kernel, nameless=in_no_function(named) if old else frozenset())
    assert bare["keys"] == named["keys"]


def test_a_debug_file_names_the_same(kernel: Vmlinux, unpacked: Path) -> None:
    bare = tool.report("--debug-file", kernel.path, unpacked)
    assert bare["names"] == {"source": "debug-file", "path": str(kernel.path)}
    for field in ("keys", "summary", "findings"):
        assert bare[field] == report(kernel.path)[field], field
    for site, wanted in zip(bare["sites"], report(kernel.path)["sites"], strict=True):
        assert site | {"file_offset": 0} == wanted | {"file_offset": 0}


@pytest.mark.parametrize("place", [".build-id", "boot", "lib"])
def test_a_folder_of_debug_files_is_searched(kernel: Vmlinux, unpacked: Path, tmp_path: Path, place: str) -> None:
    build_id = report(kernel.path)["build_id"]
    at = {
        ".build-id": f".build-id/{build_id[:2]}/{build_id[2:]}.debug",
        "boot": f"boot/vmlinux-{kernel.release}",
        "lib": f"lib/modules/{kernel.release}/vmlinux",
    }[place]
    file = tmp_path / at
    file.parent.mkdir(parents=True)
    file.symlink_to(kernel.path)
    assert tool.report("--debug-dir", tmp_path, unpacked)["names"] == {"source": "debug-file", "path": str(file)}


def test_a_folder_without_the_debug_file_leaves_what_there_is(unpacked: Path, tmp_path: Path) -> None:
    assert tool.report("--debug-dir", tmp_path, unpacked)["names"]["source"] == "kallsyms"


def test_names_of_another_kernel_are_refused(vmlinux_612: Path, vmlinux_61: Path, tmp_path: Path) -> None:
    system_map = tmp_path / "System.map"
    with system_map.open("wb") as file:
        subprocess.run(["nm", "-n", vmlinux_61], stdout=file, check=True)
    foreign = staticcall("report", "--system-map", system_map, vmlinux_612)
    assert (foreign.code, foreign.out, foreign.err.count("\n")) == (3, "", 1)
    assert "the names are not this file's" in foreign.err
    other = staticcall("report", "--debug-file", vmlinux_61, vmlinux_612)
    assert (other.code, other.out, other.err.count("\n")) == (3, "", 1)
    for path in (vmlinux_61, vmlinux_612):
        assert report(path)["build_id"] in other.err


def test_addresses_of_a_kernel_that_was_moved_are_refused(kernel: Vmlinux, tmp_path: Path) -> None:
    """/proc/kallsyms of a running kernel, where KASLR has moved all by some multiple of 2 MiB, or hides it."""
    names = [TABLE_START, TABLE_STOP, "linux_banner", "_text"]
    for slide, reason in ((0x1A00000, "the names are not this file's"), (None, "has 0 for every address")):
        lines = [f"{0 if slide is None else kernel.address(name) + slide:016x} T {name}\n" for name in names]
        path = tmp_path / "kallsyms"
        path.write_text("".join(lines))
        refused = staticcall("report", "--system-map", path, kernel.path)
        assert (refused.code, refused.err.count("\n")) == (3, 1)
        assert reason in refused.err


def test_debians_placeholder_is_known(kernel: Vmlinux) -> None:
    (placeholder,) = kernels.image(kernel.path).glob("boot/System.map-*")
    refused = staticcall("report", "--system-map", placeholder, kernel.path)
    assert (refused.code, refused.err.count("\n")) == (3, 1)
    assert "only says where the real System.map is" in refused.err
