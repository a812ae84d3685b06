"""Kernel modules: Debian's own, and one that is built here and lives in a guest.

    kernel = development()
    control = Workshop(kernel, tmp_path).build("objtool")
    (life,) = lives(kernel, tmp_path / "guest", {"control": control}).values()
    life.before.answers["plain"]

Modules are built as Debian's packages of headers say, for exactly the kernel that the guest runs. Only what
kbuild calls `objtool` differs: a script stands there, which hands some of the work to the tool.
"""

from __future__ import annotations

import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import capstone
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.support import guest, kernels, vmlinux
from tests.support.toolchain import TIMEOUT_SECONDS, BuildError

MODULE = "static_call_demo"
TABLE = ".static_call_sites"
ARGUMENT = 144  # DEMO_ARGUMENT of the module

# Who makes `.static_call_sites`: all of Debian's objtool; objtool for the rest and the tool for that; the tool and
# nobody for the rest; objtool for the rest and nobody for that.
Annotator = Literal["objtool", "beside", "alone", "nobody"]

# This kernel warns when it meets a return thunk that nobody recorded for it, which also is objtool's work.
_WITHOUT_OBJTOOL = ("KCFLAGS=-mfunction-return=keep",)

# Where the module's places may lead in the kernel.
_KERNEL_FUNCTIONS = (
    vmlinux.RETURN0,
    vmlinux.RETURN_THUNK,
    "__SCT__might_resched",
    "__cond_resched",
    "int_sqrt",
)
_RELOCATION = re.compile(
    r"^([0-9a-f]{16}) +[0-9a-f]+ (R_X86_64_\w+) +(?:[0-9a-f]{16} +(\S+) ([+-]) )?([0-9a-f]+)$", re.MULTILINE
)
_SIGNATURE_MARK = b"~Module signature appended~\n"
_ADDRESS_MASK = (1 << 64) - 1

_REPOSITORY = Path(__file__).parents[2]
_SOURCES = _REPOSITORY / "fixtures" / "module"
_OTHERS = """\
for argument do
    shift
    [ "$argument" = --static-call ] || set -- "$@" "$argument"
done
{objtool} "$@" || exit
"""
_OURS = """\
for object do :; done
{tool} annotate --in-place --module "$object" || exit
"""
_SCRIPTS: Final[Mapping[Annotator, str]] = MappingProxyType(
    {
        "objtool": 'exec {objtool} "$@"\n',
        "beside": _OTHERS + _OURS,
        "alone": _OURS,
        "nobody": _OTHERS,
    }
)

# The kernel tells everything that concerns this life between the two countings of its messages.
_LIFE = """\
old=$(dmesg | wc -l)
echo '::insmod'; {insmod} /files/{file}; echo "status $?"
cd /sys/module/{module}/parameters && {{
    echo '::sections'; for name in $(ls -A ../sections); do echo "$name $(cat "../sections/$name")"; done
    echo '::before answers'; cat answers
    echo '::before code'; cat code
    echo full > /sys/kernel/debug/sched/preempt
    echo '::preempted code'; cat code
    echo voluntary > /sys/kernel/debug/sched/preempt
    echo x > update
    echo '::after answers'; cat answers
    echo '::after code'; cat code
    cd /
}}
echo '::rmmod'; rmmod {module}; echo "status $?"
echo '::left'; ls /sys/module | grep -x {module}
echo '::messages'; dmesg | tail -n "+$((old + 1))"
"""
_PART = re.compile(r"^::(?P<name>[a-z ]+)\n(?P<text>.*?)(?=^::|\Z)", re.MULTILINE | re.DOTALL)


class Development(NamedTuple):
    """A kernel and what modules for it are built with."""

    vmlinux: Path
    headers: Path
    """The folder that kbuild takes for the kernel's build."""
    makefile: Path
    objtool: Path
    modules: Path
    """The folder of Debian's modules, `.ko.xz`."""


def development() -> Development:
    """The cached kernel with its packages, or, where the archive has them no more, the current one.

    Raises `KernelMissingError` where apt cannot get them.
    """
    try:
        return _development(kernels.kernel(kernels.MODULES_SERIES))
    except kernels.KernelMissingError:
        return _development(kernels.refresh(kernels.MODULES_SERIES))


def _development(image: Path) -> Development:
    root, release = kernels.headers(image), image.name.removeprefix("vmlinux-")
    (makefile,) = root.glob("usr/src/linux-headers-*-common/Makefile")
    headers = root / "usr" / "src" / f"linux-headers-{release}"
    modules = next(kernels.image(image).glob(f"**/lib/modules/{release}/kernel"))
    return Development(image, headers, makefile, headers / "tools" / "objtool" / "objtool", modules)


def missing_tools(kernel: Development) -> tuple[str, ...]:
    """Name what a build of modules needs and this machine lacks."""
    variables = (kernel.headers / ".kernelvariables").read_text(encoding="utf-8")
    compiler = re.search(r"\bgcc-\d+", variables)
    needed = ("make", compiler[0] if compiler else "gcc", "ld")
    return tuple(tool for tool in needed if shutil.which(tool) is None)


# Debian's modules


def packaged(kernel: Development, name: str, folder: Path) -> Path:
    """Unpack a module of Debian's, such as "kvm", into a folder."""
    (archive,) = kernel.modules.rglob(f"{name}.ko.xz")
    module = folder / f"{name}.ko"
    module.write_bytes(lzma.decompress(archive.read_bytes()))
    return module


class Relocation(NamedTuple):
    """One entry of a relocation section, its symbol by name; a section's symbol has the section's."""

    place: int
    kind: str
    symbol: str
    addend: int


class Record(NamedTuple):
    """One record of a module's table, as its two relocations have it, and the instruction's first byte."""

    section: str
    offset: int
    symbol: str
    """The key's, or the trampoline's where the module may not update the key."""
    tail: bool
    opcode: int


def relocations(module: Path) -> dict[str, list[Relocation]]:
    """All relocations by the section that they are for, in their order, by readelf."""
    listing = subprocess.run(["readelf", "-rW", module], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[Relocation]] = {}
    for part in listing.split("Relocation section '.rela")[1:]:
        section, _, lines = part.partition("'")
        found[section] = [
            Relocation(int(place, 16), kind, symbol, int(sign + addend, 16))
            for place, kind, symbol, sign, addend in _RELOCATION.findall(lines)
        ]
    return found


def records(module: Path) -> list[Record]:
    """The table of a module as its file has it."""
    entries = relocations(module).get(TABLE, [])
    assert [entry.place for entry in entries] == [4 * index for index in range(len(entries))]
    assert {entry.kind for entry in entries} <= {"R_X86_64_PC32"}
    with module.open("rb") as file:
        elf = ELFFile(file)
        code = {section.name: section.data() for section in elf.iter_sections() if section["sh_type"] == "SHT_PROGBITS"}
    return [
        Record(site.symbol, site.addend, key.symbol, bool(key.addend & 1), code[site.symbol][site.addend])
        for site, key in zip(entries[::2], entries[1::2], strict=True)
    ]


def unsigned(module: bytes) -> bytes:
    """A module's file without the signature that may stand at its end.

    There stand the signature, 12 bytes of which the last four are the signature's size (big-endian), and a mark.
    """
    if not module.endswith(_SIGNATURE_MARK):
        return module
    end = len(module) - len(_SIGNATURE_MARK)
    return module[: end - 12 - int.from_bytes(module[end - 4 : end], "big")]


# Building


class Workshop:
    """Builds the module of `fixtures/module`, or of another folder with a module's name.

    One build after the other: they share what the compiler made.
    """

    def __init__(self, kernel: Development, folder: Path, sources: Path = _SOURCES, module: str = MODULE) -> None:
        self._kernel = kernel
        self._module = module
        self._folder = Path(shutil.copytree(sources, folder / "module"))

    def build(self, annotator: Annotator, retarget: Sequence[str] = ()) -> Path:
        """Build the module; with the options `retarget` the tool patches the object before kbuild links it.

        Raises `BuildError` with what kbuild said.
        """
        name = "-".join([annotator, *(["retargeted"] if retarget else [])])
        script = self._script(name, annotator, retarget)
        options = [f"M={self._folder}", f"objtool={script}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
        options += _WITHOUT_OBJTOOL if annotator == "alone" else ()
        command = ["make", "-C", str(self._kernel.headers), "-f", str(self._kernel.makefile), *options, "modules"]
        environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(_REPOSITORY)}
        # kbuild would take a -j or a variable of the `make` that runs the tests for its own.
        environment = {name: value for name, value in environment.items() if not name.startswith("MAKE")}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        if done.returncode or "warning:" in done.stderr.lower():
            raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
        return Path(shutil.copy(self._folder / f"{self._module}.ko", self._folder.parent / f"{name}.ko"))

    def _script(self, name: str, annotator: Annotator, retarget: Sequence[str]) -> Path:
        tool = shlex.join([sys.executable, "-m", "staticcall"])
        lines = _SCRIPTS[annotator].format(objtool=shlex.quote(str(self._kernel.objtool)), tool=tool)
        if retarget:
            lines += f'{tool} patch "$object" --in-place {shlex.join(retarget)} || exit\n'
        # Each has its own name, by which kbuild sees that it has to link anew.
        script = self._folder.parent / f"annotate-{name}"
        script.write_text(f"#!/bin/sh\n{lines}", encoding="utf-8")
        script.chmod(0o755)
        return script


# Living


class Place(NamedTuple):
    """The instructions of one of the module's functions, as they were in memory."""

    code: bytes
    branches: frozenset[str]
    """Where its calls and jumps lead, by name; other places in it and the return thunk are left out."""


class State(NamedTuple):
    """What the module said at one time, by the name of the place that calls."""

    answers: Mapping[str, int]
    places: Mapping[str, Place]


class Life(NamedTuple):
    """What a guest saw of a module between insmod and rmmod."""

    loaded: bool
    unloaded: bool
    before: State
    preempted: State
    """While the kernel's preemption model was `full`."""
    after: State
    """After static_call_update()."""
    init: int | None
    exit: int | None
    text: str
    """All of it, the kernel's messages too."""


class _Function(NamedTuple):
    """A function of a module's file."""

    name: str
    section: str
    offset: int
    size: int


class Loading(NamedTuple):
    """How modules get into the guest's kernel: the command that loads one, files and options of the kernel for that.

    `packed` are the files that it loads instead of the modules of these names.
    """

    command: str = "insmod"
    files: Mapping[str, Path] = MappingProxyType({})
    options: str = ""
    packed: Mapping[str, Path] = MappingProxyType({})


_PLAINLY: Final = Loading()


def lives(
    kernel: Development, work: Path, modules: Mapping[str, Path], loading: Loading = _PLAINLY
) -> tuple[guest.Boot, dict[str, Life]]:
    """Boot the kernel once, and load, ask, update and unload one module after the other."""
    files = {f"{name}.ko": loading.packed.get(name, path) for name, path in modules.items()}
    commands = [_LIFE.format(insmod=loading.command, file=name, module=MODULE) for name in files]
    # The model is named: it decides where the kernel's own keys lead.
    options = f"preempt=voluntary {loading.options}".strip()
    booted = guest.boot(
        kernel.vmlinux, work, files={**files, **loading.files}, commands=commands, kernel_options=options
    )
    # A kernel that is booted as vmlinux is not moved: its addresses are those of the file.
    image = vmlinux.read(kernel.vmlinux)
    names = {image.address(name): name for name in _KERNEL_FUNCTIONS}
    return booted, {
        name: _read_life(text, _functions(path), names)
        for (name, path), text in zip(modules.items(), booted.outputs, strict=False)
    }


def _functions(module: Path) -> list[_Function]:
    with module.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        return [
            _Function(
                symbol.name, elf.get_section(symbol["st_shndx"]).name, int(symbol["st_value"]), int(symbol["st_size"])
            )
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and isinstance(symbol["st_shndx"], int)
        ]


def _read_life(text: str, functions: Sequence[_Function], kernel_names: Mapping[int, str]) -> Life:
    parts = {found["name"]: found["text"] for found in _PART.finditer(f"{text}\n")}
    sections = dict(re.findall(r"^(\S+) 0x(\w+)$", parts.get("sections", ""), re.MULTILINE))
    placed = [
        (function, int(sections[function.section], 16) + function.offset)
        for function in functions
        if function.section in sections
    ]
    names = {**kernel_names, **{address: function.name for function, address in placed}}
    sizes = {address: function.size for function, address in placed}
    before, preempted, after = (_read_state(parts, when, sizes, names) for when in ("before", "preempted", "after"))
    messages = parts.get("messages", "")
    init, end = (re.search(rf"{MODULE}: {when} (\d+)", messages) for when in ("init", "exit"))
    return Life(
        loaded="status 0" in parts.get("insmod", ""),
        unloaded="status 0" in parts.get("rmmod", "") and not parts.get("left", "").strip(),
        before=before,
        preempted=preempted,
        after=after,
        init=int(init[1]) if init else None,
        exit=int(end[1]) if end else None,
        text=text,
    )


def _read_state(parts: Mapping[str, str], when: str, sizes: Mapping[int, int], names: Mapping[int, str]) -> State:
    answers = re.findall(r"^(\w+) (\d+)$", parts.get(f"{when} answers", ""), re.MULTILINE)
    codes = re.findall(r"^(\w+) ([0-9a-f]+) ([0-9a-f]+)$", parts.get(f"{when} code", ""), re.MULTILINE)
    places = {}
    for name, start, code in codes:
        address = int(start, 16)
        places[name] = _read_place(address, bytes.fromhex(code)[: sizes[address]], names)
    return State({name: int(number) for name, number in answers}, places)


def _read_place(address: int, code: bytes, names: Mapping[int, str]) -> Place:
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    # Capstone has addresses signed.
    branches = {
        instruction.operands[0].imm & _ADDRESS_MASK
        for instruction in disassembler.disasm(code, address)
        if instruction.group(capstone.CS_GRP_BRANCH_RELATIVE)
    }
    outside = {names.get(branch, f"{branch:#x}") for branch in branches if not address <= branch < address + len(code)}
    return Place(code, frozenset(outside - {vmlinux.RETURN_THUNK}))
