"""A folder with all the files that the examples of `--help` are about, small and made here.

    folder = make(tmp_path)
    for words in commands(text): ...

Places outside of it are inside as well: `/boot/vmlinuz` is `boot/vmlinuz`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from tests.support import boot_images, containers, small_kernels, toolchain
from tests.support.tool import succeed

# The names of Debian's kernel for those of the small one.
_NAMES = {"zero": "might_resched", "filled": "pv_sched_clock", "empty": "__perf_guest_state"}
_FUNCTIONS = {"other": "native_sched_clock", "early": "my_state"}
_OUTSIDE = {"/boot/": "boot/", "/lib/modules/": "modules/", "/proc/kcore": "kcore"}
# Sites of Debian's kernel, and some that are here.
_PLACES = {"do_one_initcall+0x169": "filled_call+0x0", ".text+0x1c4": ".text+0x0"}
_ADDRESS = "0xffffffff81002ce9"
_TYPE, _CORE = 16, 4
_DRIVER = """
void __SCT__step(void);
extern long __SCK__step;
long *key = &__SCK__step;
void caller(void) { __SCT__step(); }
"""


def make(folder: Path) -> Path:
    """Fill a folder, which exists and is empty."""
    kernel = _kernel(folder)
    for name in ("vmlinux-6.1", "vmlinux-6.12"):
        shutil.copy(kernel, folder / name)
    succeed("patch", kernel, "--bind", "-o", folder / "vmlinux.bound", "--edits", folder / "undo.json")
    pinned = ("--pin", "might_resched", "-o", folder / "vmlinux.pinned", "--edits", folder / "pins.json")
    succeed("patch", kernel, *pinned)
    (folder / "before.json").write_text(succeed("report", "--format", "json", kernel))
    _programs(folder)
    for name, image in (("kcore", kernel), ("dump", kernel), ("core.1234", folder / "app")):
        (folder / name).write_bytes(_core(image))
    _trees(folder, kernel)
    return folder


def commands(examples: list[str]) -> list[str]:
    """Each command of an example's lines."""
    return "\n".join(examples).replace("\\\n", "").splitlines()


def words(command: str) -> list[str]:
    """The arguments of a command in this folder, as a shell would give them; what is redirected is left out.

    The folder is the working directory.
    """
    for there, here in (_OUTSIDE | _PLACES).items():
        command = command.replace(there, here)
    if _ADDRESS in command:
        command = command.replace(_ADDRESS, hex(toolchain.symbols(Path("vmlinux"))["zero_tail"]))
    given = shlex.split(command.split(" > ")[0])
    assert given[0] == "staticcall"
    lists = [sorted(map(str, Path().glob(one))) if one.startswith("*") else [one] for one in given[1:]]
    return [word for words_ in lists for word in words_]


def _kernel(folder: Path) -> Path:
    built = small_kernels.build(folder, "6.12.1")
    pairs = [f"__SC{kind}__{old}=__SC{kind}__{new}" for old, new in _NAMES.items() for kind in "KT"]
    pairs += [f"{old}={new}" for old, new in _FUNCTIONS.items()]
    renaming = [word for pair in pairs for word in ("--redefine-sym", pair)]
    subprocess.run(["objcopy", *renaming, built, folder / "vmlinux"], check=True)
    built.unlink()
    return folder / "vmlinux"


def _core(image: Path) -> bytes:
    """The memory of what runs where it was linked and has changed nothing."""
    core = bytearray(image.read_bytes())
    core[_TYPE] = _CORE
    return bytes(core)


def _programs(folder: Path) -> None:
    shutil.copy(toolchain.build("demo", folder, kind="exec"), folder / "app")
    shutil.copy(toolchain.build("calls", folder, kind="shared"), folder / "libapp.so")
    source = folder / "driver.c"
    source.write_text(_DRIVER)
    (folder / "kernel/sched").mkdir(parents=True)
    for name in ("driver.o", "kernel/sched/core.o"):
        subprocess.run(["gcc", "-O2", "-fno-pic", "-c", source, "-o", folder / name], check=True)
    (folder / "build").mkdir()


def _trees(folder: Path, kernel: Path) -> None:
    for name in ("6.12", "6.12.1", "6.12.2"):
        (folder / "modules" / name).mkdir(parents=True)
        shutil.copy(folder / "driver.o", folder / "modules" / name / "driver.ko")
    (folder / "boot").mkdir()
    image = boot_images.make(boot_images.payload_of("gzip", kernel.read_bytes()))
    (folder / "boot/vmlinuz-6.12").write_bytes(image)
    (folder / "kvm.ko.xz").write_bytes(containers.compressed("xz", (folder / "driver.o").read_bytes()))
    inside = folder / "inside"
    shutil.copytree(folder / "boot", inside / "boot")
    containers.package(inside, folder / "linux-image.deb", "gzip")
