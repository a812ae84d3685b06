"""Objects of the kernel as the compilers made them: before kbuild hands them to objtool.

    corpus = objects(development())
    corpus / "gcc" / "kernel" / "sched" / "core.o"
    python -m tests.support.kbuild      builds them where they are not there yet, and prints the folder

They are compiled from Debian's source of the very kernel that the other tests use, with Debian's configuration of
it, and take some minutes. What stays is the objects alone, beside the kernel in its cache:

    kernels/<series>/<package version>/objects-<recipe>/<compiler>/...
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.support import kernels, modules
from tests.support.modules import Development
from tests.support.programs import COMPILERS
from tests.support.toolchain import Compiler

# Modules of several parts, which kbuild links with `ld -r`; their parts come along.
LINKED_MODULES = ("arch/x86/kvm/kvm.o", "arch/x86/kvm/kvm-amd.o", "arch/x86/crypto/aesni-intel.o")

_BUILD_SECONDS = 3600
_CONFIGURATION = (
    *("--disable", "DEBUG_INFO"),
    *("--disable", "DEBUG_INFO_BTF"),
    *("--disable", "DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT"),
    *("--enable", "DEBUG_INFO_NONE"),
    *("--disable", "MODULE_SIG"),
    *("--disable", "MODVERSIONS"),
    *("--set-str", "MODULE_SIG_KEY", ""),
    *("--set-str", "SYSTEM_TRUSTED_KEYS", ""),
)
_SCHEDULER = tuple(f"kernel/sched/{name}.o" for name in ("build_policy", "build_utility", "core", "fair"))
_BY_FOLDER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "arch/x86/entry": "common",
        "arch/x86/events": "core amd/core",
        "arch/x86/kernel": "irq process static_call",
        "arch/x86/kernel/apic": "apic init io_apic vector",
        "arch/x86/mm": "fault",
        "block": "blk-mq",
        "drivers/base/power": "main",
        "drivers/block": "virtio_blk",
        "drivers/cpufreq": "amd-pstate cpufreq",
        "drivers/cpuidle": "cpuidle",
        "drivers/xen": "grant-table",
        "fs": "dax exec fs-writeback locks namei",
        "init": "main",
        "io_uring": "io_uring",
        "kernel": "cpu exit fork signal smp softirq static_call_inline workqueue",
        "kernel/bpf": "core",
        "kernel/events": "core",
        "kernel/module": "main",
        "kernel/rcu": "tree",
        "kernel/time": "hrtimer timer",
        "kernel/trace": "fgraph",
        "lib": "xarray",
        "mm": "compaction filemap hugetlb memory page_alloc percpu slub util vmalloc vmscan",
        "net/bridge": "br_multicast",
        "net/core": "dev neighbour skbuff",
        "net/ipv4": "tcp_input",
        "security": "security",
    }
)
_TARGETS: Final[Mapping[Compiler, Sequence[str]]] = MappingProxyType(
    {
        "gcc": (
            *_SCHEDULER,
            *(f"{folder}/{name}.o" for folder, names in _BY_FOLDER.items() for name in names.split()),
            *LINKED_MODULES,
        ),
        "clang": (
            *_SCHEDULER,
            "arch/x86/crypto/aesni-intel.o",
            "arch/x86/events/core.o",
            "arch/x86/kernel/apic/apic.o",
            "arch/x86/kvm/mmu/tdp_mmu.o",
            "drivers/cpufreq/amd-pstate.o",
            "init/main.o",
            "kernel/softirq.o",
            "mm/page_alloc.o",
            "net/core/dev.o",
            "security/security.o",
        ),
    }
)
_TOOLS: Final[Mapping[Compiler, Sequence[str]]] = MappingProxyType(
    {"gcc": ("CC=gcc", "LD=ld.bfd"), "clang": ("CC=clang", "LD=ld.lld")}
)
_NEEDED = ("bc", "bison", "clang", "flex", "gcc", "ld.bfd", "ld.lld", "make", "tar", "xz")


def objects(kernel: Development) -> Path:
    """Return the folder of a kernel's objects, and build them where there are none.

    Raises `kernels.KernelMissingError` where the source or a tool cannot be had.
    """
    folder = kernel.vmlinux.parent / f"objects-{_recipe()}"
    if not folder.is_dir():
        with _lock(folder.parent):
            if not folder.is_dir():  # else another worker was faster
                _build(kernel, folder)
    return folder


def main() -> int:
    """Build what is missing for the kernel of the cache."""
    try:
        sys.stdout.write(f"{objects(modules.development())}\n")
    except kernels.KernelMissingError as error:
        sys.stderr.write(f"kbuild: {error}\n")
        return 1
    return 0


def _recipe() -> str:
    """A name for all that decides what the folder holds, besides the kernel and the compilers."""
    return hashlib.sha256(repr((_CONFIGURATION, dict(_TARGETS), dict(_TOOLS))).encode()).hexdigest()[:12]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time build; another lock than that of the kernels, which is taken within."""
    with (folder / "objects.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(kernel: Development, folder: Path) -> None:
    """Build beside the final place, then rename: objects that are there are all there."""
    if missing := [tool for tool in _NEEDED if shutil.which(tool) is None]:
        raise kernels.KernelMissingError(f"its objects cannot be built without {', '.join(missing)}")
    package = kernels.source(kernel.vmlinux)
    # Left by builds that were killed, or that followed another recipe.
    for left in folder.parent.glob("objects-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="objects-unfinished-", dir=folder.parent) as name:
        work = Path(name)
        (archive,) = package.glob("usr/src/linux-source-*.tar.xz")
        _run("tar", "-xJf", archive, "-C", work)
        (source,) = work.glob("linux-source-*")
        for compiler in COMPILERS:
            _compile(kernel, source, compiler, work)
        (work / "objects").rename(folder)
    # 150 MB that nothing else needs.
    shutil.rmtree(package)


def _compile(kernel: Development, source: Path, compiler: Compiler, work: Path) -> None:
    """Configure, compile and collect what is new since then: the rest are programs that kbuild itself runs."""
    tree = work / compiler
    tree.mkdir()
    shutil.copy(kernel.headers / ".config", tree)
    _run(source / "scripts" / "config", "--file", tree / ".config", *_CONFIGURATION)
    # kbuild calls `objtool` for every object that it has compiled, and for those that it has linked.
    options = [f"O={tree}", "objtool=/bin/true", f"-j{os.cpu_count() or 1}", *_TOOLS[compiler]]
    _run("make", "-s", "-C", source, *options, "olddefconfig")
    _run("make", "-s", "-C", source, *options, "prepare")
    before = set(tree.rglob("*.o"))
    _run("make", "-s", "-C", source, *options, *_TARGETS[compiler])
    for path in sorted(set(tree.rglob("*.o")) - before):
        copy = work / "objects" / compiler / path.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def _run(*command: str | Path) -> None:
    # kbuild would take a -j or a variable of the `make` that runs the tests for its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command,
        env={**environment, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise kernels.KernelMissingError(f"{shlex.join(map(str, command))}: exit code {done.returncode}\n{said}")


if __name__ == "__main__":
    raise SystemExit(main())
