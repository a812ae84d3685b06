"""Types of real kernels' functions: as gdb and bpftool read them, and what is refused because of them."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from staticcall.model.image import Image
from staticcall.model.types import Prototype, TypeSource
from staticcall.read.btf_types import BtfTypes
from staticcall.read.dwarf_types import DwarfTypes
from staticcall.read.image import open_image
from tests.support import btf_dump, modules
from tests.support.c_types import require
from tests.support.tool import refused, staticcall, succeed
from tests.support.vmlinux import Vmlinux

pytestmark = pytest.mark.kernel

# In every kernel of the two series, with their types in C.
CLOCK = "pv_sched_clock"  # u64 native_sched_clock(void)
SAME_TYPE = "trace_clock_jiffies"  # u64 (void)
OTHER_TYPE = "sched_clock_cpu"  # u64 (int)
RETURNS_NOTHING = "amd_pstate_update_perf"  # void (struct amd_cpudata *, u32, u32, u32, bool)
RESCHED = "might_resched"  # int __cond_resched(void)


def _text(source: TypeSource, image: Image, name: str) -> str | None:
    (symbol,) = image.symbols.named(name)
    type_ = source.type_of(name, symbol.address)
    assert type_ is None or isinstance(type_, Prototype)
    return type_.declared() if type_ else None


# ---- what the types are ----


def test_btf_says_of_functions_what_bpftool_says(kernel: Vmlinux) -> None:
    btf_dump.bpftool()
    expected = btf_dump.functions(kernel.path)
    names = sorted(name for name in expected if len(kernel.symbols.get(name, ())) == 1)
    assert len(names) > 20_000
    with open_image(kernel.path) as image:
        types = BtfTypes(image)
        for name in random.Random(1).sample(names, 120):  # noqa: S311 - the same in every run
            assert {_text(types, image, name)} == expected[name], name


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["612"], indirect=True)
def test_both_kinds_of_type_data_say_what_gdb_says(kernel: Vmlinux) -> None:
    require("gdb")
    at = {addresses[0]: name for name, addresses in kernel.symbols.items() if len(addresses) == 1}
    # Gdb takes half a second for each.
    targets = sorted({at[key.func] for key in kernel.keys.values() if key.func in at} - {"__static_call_return0"})
    names = random.Random(2).sample(targets, 4)  # noqa: S311 - the same in every run
    names += ["bsearch", "vsnprintf", "sort_r", "kthread_create_on_node", "smp_call_function_single"]
    asked = [option for name in names for option in ("-ex", f"whatis {name}")]
    done = subprocess.run(
        ["gdb", "-batch", "-nx", *asked, kernel.path], capture_output=True, text=True, timeout=600, check=True
    )
    expected = [line.removeprefix("type = ") for line in done.stdout.splitlines() if line.startswith("type = ")]
    with open_image(kernel.path) as image:
        for types in (BtfTypes(image), DwarfTypes(image)):
            assert [_text(types, image, name) for name in names] == expected


def test_a_module_is_read_on_top_of_its_kernel(development: modules.Development, tmp_path: Path) -> None:
    btf_dump.bpftool()
    for name in ("kvm", "dm-mod"):
        path = modules.packaged(development, name, tmp_path)
        expected = btf_dump.functions(path, base=development.vmlinux)
        with open_image(development.vmlinux) as kernel, open_image(path) as image:
            types = BtfTypes(image, kernel)
            names = sorted(n for n in expected if len(image.symbols.named(n)) == 1)
            assert len(names) > 100
            for function in random.Random(3).sample(names, 60):  # noqa: S311 - the same in every run
                assert {_text(types, image, function)} == expected[function], function


# ---- what comes of it ----


def test_a_function_of_another_type_is_refused_with_both(kernel: Vmlinux, tmp_path: Path) -> None:
    wish = ("patch", kernel.path, "--set", f"{CLOCK}={OTHER_TYPE}")
    line = refused(*wish, "-o", tmp_path / "out", code="type-mismatch")
    assert f"u64 {OTHER_TYPE}(int) instead of u64 native_sched_clock(void)" in line
    assert "by BTF" in line
    assert "--force-type" in line
    assert not any(tmp_path.iterdir())
    out = succeed(*wish, "--force-type", "--dry-run")
    assert f"{CLOCK}: native_sched_clock -> {OTHER_TYPE}" in out
    assert f"u64 {OTHER_TYPE}(int) instead of u64 native_sched_clock(void)" in out


def test_a_function_of_the_same_type_is_said_to_be_one(kernel: Vmlinux) -> None:
    out = succeed("patch", kernel.path, "--set", f"{CLOCK}={SAME_TYPE}", "--dry-run")
    assert f"types agree by BTF: u64 {SAME_TYPE}(void)" in out


def test_what_a_key_that_only_returns_0_is_for_its_trampoline_says(vmlinux_612: Path) -> None:
    """Its function is one for all types; BTF has no declarations, DWARF has that of the trampoline."""
    wish = ("patch", vmlinux_612, "--dry-run", "--set")
    assert "types agree by DWARF and BTF: int __cond_resched(void)" in succeed(*wish, f"{RESCHED}=__cond_resched")
    line = refused(*wish, f"{RESCHED}={SAME_TYPE}", code="type-mismatch")
    assert f"u64 {SAME_TYPE}(void) instead of int {RESCHED}(void)" in line


def test_without_dwarf_nothing_is_known_of_such_a_key(slim: Vmlinux) -> None:
    keys = [key for key in slim.keys.values() if key.func == slim.address("__static_call_return0")]
    name = min(key.name for key in keys)
    out = succeed("patch", slim.path, "--dry-run", "--set", f"{name}={SAME_TYPE}")
    assert f"types not compared: no type data of key {name}" in out


def test_null_is_for_keys_that_return_nothing(kernel: Vmlinux) -> None:
    wish = ("patch", kernel.path, "--dry-run", "--force", "kaslr-slot", "--set")
    assert "returns nothing by BTF: void pstate_update_perf(" in succeed(*wish, f"{RETURNS_NOTHING}=NULL")
    line = refused(*wish, f"{CLOCK}=NULL", code="null-returns-value")
    assert "u64 native_sched_clock(void)" in line
    for force in (("--force-type",), ("--force", "null-returns-value")):
        assert "forced although" in succeed(*wish, f"{CLOCK}=NULL", *force)


def test_ret0_is_for_keys_that_return_an_integer_or_a_pointer(kernel: Vmlinux) -> None:
    wish = ("patch", kernel.path, "--dry-run", "--set")
    assert "returns an integer by BTF: u64 native_sched_clock(void)" in succeed(*wish, f"{CLOCK}=RET0")
    line = refused(*wish, f"{RETURNS_NOTHING}=RET0", code="ret0-returns-no-integer")
    assert "void pstate_update_perf(" in line
    assert "forced although" in succeed(*wish, f"{RETURNS_NOTHING}=RET0", "--force-type")


def test_a_function_in_assembly_has_no_type(vmlinux_612: Path) -> None:
    """Its BTF was made from what the assembler says of it, and says that it takes and returns nothing."""
    out = succeed("patch", vmlinux_612, "--dry-run", "--set", f"{CLOCK}=clear_page_erms")
    assert "types not compared: no type data of clear_page_erms" in out


# ---- modules ----


@pytest.fixture(scope="module")
def kvm(development: modules.Development, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return modules.packaged(development, "kvm", tmp_path_factory.mktemp("kvm"))


def test_a_module_is_compared_with_the_help_of_its_kernel(development: modules.Development, kvm: Path) -> None:
    wish = ("patch", kvm, "--dry-run", "--strip-signature", "--vmlinux", development.vmlinux, "--set")
    # TRACE_EVENT(kvm_pio) and (kvm_eoi) of arch/x86/kvm/trace.h.
    line = refused(*wish, "tp_func_kvm_pio=__traceiter_kvm_eoi", code="type-mismatch")
    assert "int __traceiter_kvm_eoi(void *, struct kvm_lapic *, int) instead of int __traceiter_kvm_pio(void *" in line
    out = succeed(*wish, "tp_func_kvm_eoi=__traceiter_kvm_pv_eoi")
    assert "types agree by BTF: int __traceiter_kvm_pv_eoi(void *, struct kvm_lapic *, int)" in out


def test_what_a_module_imports_is_of_its_kernels_types(development: modules.Development, kvm: Path) -> None:
    wish = ("patch", kvm, "--dry-run", "--strip-signature", "--vmlinux", development.vmlinux, "--set")
    line = refused(*wish, "tp_func_kvm_fpu=schedule", code="type-mismatch")
    assert "void schedule(void) instead of int __traceiter_kvm_fpu(void *, int)" in line


def test_a_module_alone_says_what_is_missing(kvm: Path) -> None:
    wish = ("patch", kvm, "--dry-run", "--strip-signature", "--set", "tp_func_kvm_pio=__traceiter_kvm_eoi")
    assert "types not compared: no type data of key tp_func_kvm_pio; " in (out := succeed(*wish))
    assert "give --vmlinux" in out


def test_another_kernel_than_the_modules_is_noticed(kvm: Path, vmlinux_61: Path) -> None:
    wish = ("patch", kvm, "--dry-run", "--strip-signature", "--vmlinux", vmlinux_61, "--set")
    outcome = staticcall(*wish, "tp_func_kvm_pio=__traceiter_kvm_eoi")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f"staticcall: {vmlinux_61}: has other type data than the kernel")
    assert outcome.err.count("\n") == 1
    out = succeed(*wish, "tp_func_kvm_pio=__traceiter_kvm_eoi", "--force-type")
    assert "types not compared: has other type data" in out
