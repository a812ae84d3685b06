"""Keys that modules use and others define: every record of Debian's modules has one, in the kernel or in a module.

What is expected is read by hand: which file defines a symbol, what its kernel exports, and what the
pointer of its key holds.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from staticcall.locate.foreign import definer_of
from staticcall.locate.linked import locate
from staticcall.read.image import open_image
from tests.support import elf_object, kernels
from tests.support.module_trees import module_information, unpacked
from tests.support.small_kernels import SOURCE, build
from tests.support.tool import Json, report, staticcall, succeed
from tests.support.vmlinux import JMP, KEY, RETURN0, TRAMPOLINE, Vmlinux

pytestmark = pytest.mark.kernel

KERNEL = "vmlinux"
TAIL = 1
TABLE = ".static_call_sites"
TABLE_MARK = b"\0.rela.static_call_sites\0"


class Known(NamedTuple):
    """What a module's file has: which keys it defines with their functions, and which names its records have."""

    name: str
    needs: tuple[str, ...]
    defined: Mapping[str, str | None]
    used: frozenset[str]


@pytest.fixture(scope="module")
def tree(kernel: Vmlinux) -> Path:
    """All modules of a kernel, as they are shipped."""
    return kernels.image(kernel.path)


@pytest.fixture(scope="module")
def archives(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[Path, Path]:
    """Every module that has sites: as it is shipped, and as a file of its own."""
    folder, found = tmp_path_factory.mktemp("modules"), {}
    for archive in sorted(tree.rglob("*.ko*")):
        module = unpacked(archive, folder)
        if TABLE_MARK in module.read_bytes():
            found[archive] = module
        elif module != archive:
            module.unlink()
    return found


@pytest.fixture(scope="module")
def images(kernel: Vmlinux, tree: Path, archives: Mapping[Path, Path]) -> Sequence[Json]:
    """The reports on them."""
    around = ("--vmlinux", kernel.path, "--modules", tree)
    return [json.loads(line) for line in succeed("report", "--format", "jsonl", *around, *archives).splitlines()]


@pytest.fixture(scope="module")
def known(archives: Mapping[Path, Path]) -> Mapping[str, Known]:
    found = map(_known, archives.values())
    return {one.name: one for one in found}


def _known(path: Path) -> Known:
    elf = elf_object.read(path)
    keys = {
        (symbol.section, symbol.value): symbol.name.removeprefix(KEY)
        for symbol in elf.symbols
        if symbol.name.startswith(KEY) and symbol.section
    }
    defined: dict[str, str | None] = dict.fromkeys(keys.values())
    for number in {section for section, _ in keys}:
        for entry in elf.relocations_of(elf.sections[number]):
            name = keys.get((number, entry.offset))
            if name is not None:
                assert not entry.addend
                defined[name] = elf.symbols[entry.symbol].name
    used = frozenset(record.key for record in elf_object.records(elf))
    needs = tuple(name for name in module_information(path, "depends").split(",") if name)
    return Known(module_information(path, "name"), needs, defined, used)


def _tramp_keys(kernel: Vmlinux) -> Mapping[str, str]:
    """The kernel's table of keys for the trampolines that modules may call."""
    start, stop = (kernel.address(f"__{end}_static_call_tramp_key") for end in ("start", "stop"))
    section = kernel.section(start)
    with kernel.path.open("rb") as file:
        file.seek(section.offset + start - section.address)
        content = file.read(stop - start)
    names = {address: name for name, addresses in kernel.symbols.items() for address in addresses}
    found = {}
    for number, (trampoline, key) in enumerate(struct.iter_unpack("<ii", content)):
        place = start + 8 * number
        name = names[place + trampoline].removeprefix(TRAMPOLINE)
        found[name] = names[place + 4 + key].removeprefix(KEY)
    return found


def test_every_record_has_its_key_in_the_kernel_or_in_a_module(
    kernel: Vmlinux, images: Sequence[Json], known: Mapping[str, Known]
) -> None:
    tramp_keys = _tramp_keys(kernel)
    assert len(tramp_keys) >= 5
    counts = dict.fromkeys(("own", KERNEL, "module"), 0)
    for image in images:
        module = known[Path(image["path"]).name.partition(".")[0].replace("-", "_")]
        keys = {key["name"]: key for key in image["keys"]}
        for site in image["sites"]:
            key = keys[site["key"]]
            if key["name"] in module.defined:
                assert key["defined"]
                assert "defined_in" not in key
                counts["own"] += 1
            elif key["defined_in"] == KERNEL:
                assert not key["defined"]
                _assert_in_kernel(kernel, key, module, tramp_keys)
                counts[KERNEL] += 1
            else:
                definer = known[key["defined_in"]]
                assert definer.name in module.needs
                assert key["func"] == definer.defined[key["name"]]
                counts["module"] += 1
    assert all(counts.values())
    assert sum(counts.values()) == sum(image["summary"]["sites"] for image in images) > 5000
    assert {finding["code"] for image in images for finding in image["findings"]} == set()


def _assert_in_kernel(kernel: Vmlinux, key: Json, module: Known, tramp_keys: Mapping[str, str]) -> None:
    name = key["name"]
    by_trampoline = TRAMPOLINE + name in module.used
    assert by_trampoline is (name in tramp_keys)
    assert f"__ksymtab_{TRAMPOLINE if by_trampoline else KEY}{name}" in kernel.symbols
    func = kernel.keys[tramp_keys[name] if by_trampoline else name].func
    assert (func in kernel.symbols[key["func"]]) if func else key["func"] is None


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Which files this process opens."""
    found: list[str] = []
    listening = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and listening:
            found.append(str(arguments[0]))

    sys.addaudithook(hook)  # for ever
    yield found
    listening.clear()


def test_the_surroundings_of_many_modules_are_read_once(
    kernel: Vmlinux, tree: Path, tmp_path: Path, opened: list[str]
) -> None:
    own = tmp_path / "vmlinux"
    own.symlink_to(kernel.path)
    modules = [next(tree.rglob(f"{name}.ko*")) for name in ("kvm-intel", "kvm-amd", "nfsv4")]
    succeed("report", *modules, "--vmlinux", own, "--modules", tree)
    assert opened.count(str(own)) == 1
    assert sum(Path(path).name.partition(".")[0] == "kvm" for path in opened) == 1


def test_a_module_in_updates_comes_before_the_one_it_updates(
    kernel: Vmlinux, kvm_intel: Path, tree: Path, tmp_path: Path
) -> None:
    kvm = unpacked(next(tree.rglob("kvm.ko*")), tmp_path)
    modules = tmp_path / "updates" / "modules"  # what the tree itself lies in says nothing
    for folder, name in (
        ("kernel", "kvm_x86_cache_wax"),
        ("updates", "kvm_x86_cache_reg"),
        ("extra", "kvm_x86_other_reg"),
        ("weak-updates", "kvm_x86_later_reg"),
    ):
        (modules / folder).mkdir(parents=True)
        _renamed(kvm, modules / folder, "kvm_x86_cache_reg", name)
    # Neither is a module, whatever it is called.
    (modules / "updates" / "z" / "kvm.ko").mkdir(parents=True)
    (modules / "updates" / "z" / "kvm.ko.xz").symlink_to("nowhere")
    (modules / "updates" / "z" / "up").symlink_to(modules)
    image = report(kvm_intel, "--vmlinux", kernel.path, "--modules", modules)
    assert image["findings"] == []


# Without surroundings, or with others


@pytest.fixture(scope="module")
def kvm_intel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (archive,) = tree.rglob("kvm-intel.ko*")
    return unpacked(archive, tmp_path_factory.mktemp("kvm_intel"))


def _without_surroundings(image: Json) -> Json:
    for key in image["keys"]:
        if key.pop("defined_in", None):
            key["func"] = None
    return image


def test_surroundings_change_nothing_but_what_they_say(kernel: Vmlinux, tree: Path, kvm_intel: Path) -> None:
    with_them = report(kvm_intel, "--vmlinux", kernel.path, "--modules", tree)
    assert _without_surroundings(with_them) == report(kvm_intel)


def test_a_kernel_as_it_is_shipped_says_the_same_as_one_with_symbols(
    kernel: Vmlinux, tree: Path, kvm_intel: Path
) -> None:
    (shipped,) = tree.glob("boot/vmlinuz-*")
    said = [report(kvm_intel, "--vmlinux", path, "--modules", tree) for path in (kernel.path, shipped)]
    assert said[0] == said[1]


def test_the_text_names_who_defines_a_key(kernel: Vmlinux, tree: Path, kvm_intel: Path) -> None:
    lines = succeed("report", "-v", kvm_intel, "--vmlinux", kernel.path, "--modules", tree).splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["might_resched"])
    assert line.endswith(f"{RETURN0} (vmlinux)")


def test_modules_are_found_without_a_kernel(tree: Path, kvm_intel: Path) -> None:
    image = report(kvm_intel, "--modules", tree)
    assert {key.get("defined_in") for key in image["keys"]} == {None, "kvm"}
    assert image["findings"] == []


def test_the_module_of_another_kernel_is_told_apart(
    kernel: Vmlinux, tree: Path, kvm_intel: Path, vmlinux_612: Path, vmlinux_61: Path
) -> None:
    other = vmlinux_61 if kernel.path == vmlinux_612 else vmlinux_612
    image = report(kvm_intel, "--vmlinux", other, "--modules", tree)
    (finding,) = image["findings"]
    assert (finding["code"], finding["severity"]) == ("other-kernel", "error")
    assert kernel.release in finding["message"]
    assert KERNEL not in {key.get("defined_in") for key in image["keys"]}


def test_a_key_in_a_module_that_is_not_there_is_no_error(kernel: Vmlinux, tmp_path: Path, kvm_intel: Path) -> None:
    for around in ((), ("--modules", tmp_path)):
        image = report(kvm_intel, "--vmlinux", kernel.path, *around)
        assert {(one["code"], one["severity"]) for one in image["findings"]} == {("unresolved-key", "note")}
        assert all(one["message"].endswith("not looked into: kvm") for one in image["findings"])
        assert {key.get("defined_in") for key in image["keys"]} == {None, KERNEL}


def _renamed(module: Path, folder: Path, old: str, new: str) -> Path:
    """A copy in which a static call has another name, of the same length."""
    assert len(old) == len(new)
    data = module.read_bytes()
    for prefix in (KEY, TRAMPOLINE):
        # Whatever ends so: a name may be the end of a longer one, such as that of its export.
        data = data.replace(f"{prefix}{old}\0".encode(), f"{prefix}{new}\0".encode())
    copy = folder / module.name
    copy.write_bytes(data)
    return copy


def _finding(kernel: Vmlinux, tree: Path, module: Path) -> str:
    outcome = staticcall("report", "--format", "jsonl", "--vmlinux", kernel.path, "--modules", tree, module)
    assert (outcome.code, outcome.err) == (1, "")
    (finding,) = json.loads(outcome.out)["findings"]
    assert (finding["code"], finding["severity"]) == ("unresolved-key", "error")
    return str(finding["message"])


def test_a_key_that_nobody_defines_is_an_error(kernel: Vmlinux, tree: Path, kvm_intel: Path, tmp_path: Path) -> None:
    module = _renamed(kvm_intel, tmp_path, "kvm_x86_cache_reg", "kvm_x86_cache_wax")
    message = _finding(kernel, tree, module)
    assert "key __SCK__kvm_x86_cache_wax is not defined in the kernel or kvm" in message


def test_a_key_that_its_kernel_does_not_export_is_an_error(
    kernel: Vmlinux, tree: Path, kvm_intel: Path, tmp_path: Path
) -> None:
    used = "might_resched"
    hidden = next(
        name
        for name in sorted(kernel.keys)
        if len(name) == len(used)
        and not {f"__ksymtab_{KEY}{name}", f"__ksymtab_{TRAMPOLINE}{name}"} & {*kernel.symbols}
    )
    message = _finding(kernel, tree, _renamed(kvm_intel, tmp_path, used, hidden))
    assert f"__SCT__{hidden} is defined in vmlinux and not exported" in message


def test_a_trampoline_of_another_module_has_no_key_where_the_loader_looks(
    kernel: Vmlinux, tree: Path, kvm_intel: Path, tmp_path: Path
) -> None:
    """The records that name a key of kvm's are made to name its trampoline, which kvm exports too."""
    name, module = "kvm_x86_cache_reg", tmp_path / kvm_intel.name
    elf = elf_object.read(kvm_intel)
    (table,) = elf_object.tables(elf)
    names = [symbol.name for symbol in elf.symbols]
    own, home = names.index(KEY + name), names.index(TRAMPOLINE + name)
    data = bytearray(kvm_intel.read_bytes())
    entries = elf.relocations(table.relocations)
    assert own in {entry.symbol for entry in entries}
    for number, entry in enumerate(entries):
        if entry.symbol == own:
            struct.pack_into("<I", data, table.relocations.offset + 24 * number + 12, home)
    # Without a name the key is nobody's any more.
    struct.pack_into("<I", data, elf.sections[elf.symtab].offset + 24 * own, 0)
    module.write_bytes(data)
    message = _finding(kernel, tree, module)
    assert f"trampoline __SCT__{name} of kvm has no key in the kernel's table" in message


def test_what_a_foreign_key_leads_to_decides_like_that_of_an_own_one(
    kernel: Vmlinux, tree: Path, kvm_intel: Path, tmp_path: Path
) -> None:
    """One call by a key that is NULL in kvm becomes a tail call: which return the kernel writes there is open."""
    module, name = tmp_path / kvm_intel.name, "kvm_x86_cache_reg"
    elf = elf_object.read(kvm_intel)
    (table,) = elf_object.tables(elf)
    number, record = next((at, one) for at, one in enumerate(table.records) if one.key == KEY + name)
    data = bytearray(kvm_intel.read_bytes())
    data[elf.sections[record.section_number].offset + record.offset] = JMP
    data[table.relocations.offset + 24 * (2 * number + 1) + 16] |= TAIL
    module.write_bytes(data)
    reasons = []
    for around in ((), ("--vmlinux", kernel.path, "--modules", tree)):
        image = report("--policy", "kernel", "--key", name, module, *around)
        reasons.append({site["reason"] for site in image["sites"] if site["record"] == number})
    assert reasons == [{"kernel-form"}, {"return-form-chosen-at-boot"}]


@pytest.mark.parametrize("option", ["--vmlinux", "--modules"])
def test_a_file_of_the_wrong_kind_is_a_usage_error(kvm_intel: Path, option: str) -> None:
    outcome = staticcall("report", kvm_intel, option, kvm_intel)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--vmlinux", "--modules"])
def test_a_file_that_is_not_there_is_said_once(kvm_intel: Path, tmp_path: Path, option: str) -> None:
    outcome = staticcall("report", kvm_intel, kvm_intel, option, tmp_path / "nothing")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.count("\n") == 1


def test_a_patch_leaves_what_others_define_to_the_kernel(
    kernel: Vmlinux, tree: Path, kvm_intel: Path, tmp_path: Path
) -> None:
    """The kernel reads the key when it loads the module, and that may lead elsewhere by then."""
    outputs = []
    for number, around in enumerate([(), ("--vmlinux", kernel.path, "--modules", tree)]):
        out = tmp_path / f"{number}.ko"
        succeed("patch", kvm_intel, "--bind", "--policy", "kernel", "--strip-signature", "-o", out, *around)
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(("entries", "found"), [(2, True), (1 << 20, False)])
def test_a_table_larger_than_any_kernels_is_not_gone_through(entries: int, found: bool, tmp_path: Path) -> None:
    source = tmp_path / "large.S"
    ends = "__start_static_call_tramp_key", "__stop_static_call_tramp_key"
    source.write_text(
        f'#include "{SOURCE}"\n.section .rodata\n.globl {", ".join(ends)}\n{ends[0]}:\n'
        f".long __SCT__filled - ., __SCK__filled - .\n.fill {entries}, 8, 0\n{ends[1]}:\n"
    )
    with open_image(build(tmp_path, "6.12.0", source=source)) as image:
        pairs = definer_of(image, locate(image), "vmlinux").by_trampoline
    assert pairs == ({"filled": "filled"} if found else None)
