"""Boots a kernel file in an emulator and brings back what the running kernel says and holds.

The guest is an initramfs made on the spot: a static busybox, an /init script and `kcore_compare`, which
reads the kernel's memory. It needs no disk, no network and no privileges, and takes some five seconds.

    boot(vmlinux, tmp_path, places=[(address, expected_bytes)], commands=["uname -r"])
    boot(vmlinux, tmp_path, files={"x.ko": path}, commands=["insmod /files/x.ko"])

The kernel's own messages share the console with the guest's answers. So /init silences the kernel before it
says anything, frames every answer with markers, and prints the kernel's message buffer as the last answer:
whatever the console no longer shows is found there.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from elftools.elf.elffile import ELFFile

TIMEOUT_SECONDS = 180  # a boot takes five; the rest is for machines that have other things to do
LONGEST_PLACE = 15

_NO_FILES: Mapping[str, Path] = MappingProxyType({})

_HELPER_SOURCE = Path(__file__).parents[2] / "fixtures" / "guest" / "kcore_compare.c"
_PLACE = struct.Struct(f"<QB{LONGEST_PLACE}s")
_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "gcc": "gcc",
}

# panic=-1 with -no-reboot ends the emulator when the kernel panics. The time stamps tell the kernel's lines
# from all others.
KERNEL_OPTIONS = "console=ttyS0 panic=-1 printk.time=1 rdinit=/init"

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
# From here on only the end of the world may cut into what is printed here.
echo 1 > /proc/sys/kernel/printk
printf '\\n::guest user-space::\\n'
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug

answer() {
    name=$1
    shift
    printf '\\n::guest begin %s::\\n' "$name"
    "$@" 2>&1
    printf '\\n::guest end %s %d::\\n' "$name" $?
}

# How far the kernel runs from where 64-bit kernels are linked, but for what nobody configures.
moved() {
    text=$(grep -m 1 ' T _text$' /proc/kallsyms)
    [ -n "$text" ] && echo $((0x${text%% *} - 0xffffffff81000000))
}

answer preempt cat /sys/kernel/debug/sched/preempt
answer memory kcore_compare /places $(moved)
for command in $(ls /commands); do
    answer "$command" sh "/commands/$command"
done
answer messages dmesg
# Changing a terminal setting waits until the line has sent everything; switching the machine off does not.
stty -echo
poweroff -f
"""

_ANSWER = re.compile(
    r"^::guest begin (?P<name>\S+)::\n(?P<text>.*?)\n?^::guest end (?P=name) (?P<status>\d+)::$",
    re.MULTILINE | re.DOTALL,
)
_KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\].*")
_PROBLEM = re.compile(
    r"\bBUG\b|\bWARN(?:ING)?\b|\bOops\b|Call Trace|cut here|Kernel panic|general protection|double fault"
    r"|invalid opcode|[Uu]nable to handle|unexpected static_call insn|signature fail"
)
# Advice about the processor model, not about the kernel's health; no WARN() of the kernel starts like this.
_ADVICE = re.compile(r"\] (?:RETBleed|Spectre V2 ?|Speculative Return Stack Overflow): WARNING: ")


class GuestError(Exception):
    """The guest could not be made or started; how a kernel fares once started is no error but a Boot."""


class Boot(NamedTuple):
    """What came out of one boot."""

    log: str
    """The whole console."""
    reached_user_space: bool
    preempt: str
    """The kernel's preemption models, the chosen one in brackets."""
    problems: tuple[str, ...]
    """Every line in which the kernel complains, and every way in which the guest did not do its work."""
    compared: int
    """How many places were gone through."""
    memory: Mapping[int, bytes]
    """What memory holds at the places where it is not what was expected."""
    unmapped: tuple[int, ...]
    """The places that cannot be read."""
    outputs: tuple[str, ...]
    """What each extra command printed, to the letter, in their order."""

    def differing(self, addresses: Iterable[int]) -> tuple[int, ...]:
        """Tell which of these addresses differ; for a list of places made of several kinds."""
        return tuple(address for address in addresses if address in self.memory)


class _Answer(NamedTuple):
    text: str
    status: int


def missing_tools() -> tuple[str, ...]:
    """Name the Debian packages that a boot needs and this machine lacks."""
    return tuple(package for tool, package in _TOOLS.items() if shutil.which(tool) is None)


def boot(
    kernel: Path,
    work: Path,
    *,
    places: Sequence[tuple[int, bytes]] = (),
    commands: Sequence[str] = (),
    files: Mapping[str, Path] = _NO_FILES,
    kernel_options: str = "",
    cpu: str = "qemu64",
    seconds: float = TIMEOUT_SECONDS,
) -> Boot:
    """Boot a kernel, compare its memory with (address, expected bytes) places, run shell commands in it.

    Each of `files` lies in the guest as /files/NAME. Places are by linked addresses, wherever the kernel runs.

    `work` is a directory of the caller's for the initramfs; each boot needs another one. Leave out places in
    memory that the kernel frees at the end of its boot (.init.text): they hold filler or anything by then.

    What a kernel writes over its own code depends on the processor: with other models of `cpu` than the
    default, returns and NULL tail calls become jumps to that model's return thunk.

    A kernel that finds its static calls malformed stops before it has a console: nothing in the log, and no
    end before `seconds` have passed. A test that expects this can give it less.
    """
    if missing := missing_tools():
        raise GuestError(f"a boot needs these packages: {', '.join(missing)}")
    initramfs = make_initramfs(work, places, commands, files)
    # One processor model is named, not left to the emulator's version: the kernel patches itself for it.
    machine = ["-accel", "tcg", "-cpu", cpu, "-m", "1024", "-nographic", "-nic", "none", "-no-reboot"]
    options = f"{KERNEL_OPTIONS} {kernel_options}".strip()
    log, problems = _run([*machine, "-kernel", str(kernel), "-initrd", str(initramfs), "-append", options], seconds)
    return read_log(log, expected_places=len(places), also=problems)


def _run(arguments: Sequence[str], seconds: float) -> tuple[str, tuple[str, ...]]:
    """Run the emulator to its end, and give the console and what is wrong about that end."""
    try:
        done = subprocess.run(
            ["qemu-system-x86_64", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        return _console_text(expired.stdout or b""), (f"guest: no end within {seconds:g} s",)
    if done.returncode:
        raise GuestError(f"qemu-system-x86_64: {done.stderr.decode(errors='replace').strip()}")
    return _console_text(done.stdout), ()


def _console_text(console: bytes) -> str:
    return console.decode(errors="replace").replace("\r\n", "\n")


# The initramfs


def make_initramfs(
    work: Path, places: Sequence[tuple[int, bytes]], commands: Sequence[str], files: Mapping[str, Path]
) -> Path:
    """Make the guest's file tree in a folder of the caller's; see `boot`."""
    root = work / "initramfs"
    for folder in ("bin", "commands", "dev", "files", "proc", "sys"):
        (root / folder).mkdir(parents=True)
    shutil.copy(_static_busybox(), root / "bin" / "busybox")
    _compile_helper(root / "bin" / "kcore_compare")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    (root / "places").write_bytes(b"".join(_place_record(address, expected) for address, expected in places))
    for index, command in enumerate(commands):
        # The guest runs them in the order in which it lists them: as text.
        (root / "commands" / _command_name(index)).write_text(f"{command}\n")
    for name, file in files.items():
        shutil.copy(file, root / "files" / name)

    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    archive = work / "initramfs.cpio"
    with archive.open("wb") as output:
        subprocess.run(
            ["cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"],
            cwd=root,
            input="\n".join(names).encode(),
            stdout=output,
            check=True,
        )
    return archive


def _command_name(index: int) -> str:
    return f"command-{index:04}"


def _place_record(address: int, expected: bytes) -> bytes:
    if not 1 <= len(expected) <= LONGEST_PLACE:
        raise ValueError(f"{address:#x}: a place has 1 to {LONGEST_PLACE} bytes, not {len(expected)}")
    return _PLACE.pack(address, len(expected), expected)


def _static_busybox() -> Path:
    path = Path(shutil.which("busybox") or "")
    with path.open("rb") as file:
        if any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(file).iter_segments()):
            # There is no loader and no library in the guest: /init would not even start.
            raise GuestError(f"{path} is dynamically linked; install busybox-static")
    return path


def _compile_helper(program: Path) -> None:
    flags = ["-static", "-O2", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(["gcc", *flags, "-o", program, _HELPER_SOURCE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise GuestError(f"{_HELPER_SOURCE.name}: {done.stderr.strip()}")


# Reading the console


def read_log(log: str, *, expected_places: int, also: Sequence[str] = ()) -> Boot:
    """Take a console apart. What is missing in it, because the guest died, shows in `problems`."""
    answers = {found["name"]: _Answer(found["text"], int(found["status"])) for found in _ANSWER.finditer(log)}
    memory_answer = answers.get("memory", _Answer("", 1))
    compared = re.search(r"^compared (\d+) ", memory_answer.text, re.MULTILINE)
    count = int(compared[1]) if compared else 0
    outputs = [answers[name].text for name in sorted(answers) if name.startswith("command-")]
    problems = [*also, *_kernel_complaints(log)]
    if "messages" not in answers:
        problems.append("guest: it ended before its last answer")
    elif count != expected_places or memory_answer.status:
        problems.append(f"guest: {count} of {expected_places} places compared: {memory_answer.text[-200:]}")
    return Boot(
        log=log,
        reached_user_space="\n::guest user-space::\n" in log,
        preempt=answers["preempt"].text.strip() if "preempt" in answers else "",
        problems=tuple(problems),
        compared=count,
        memory=MappingProxyType(
            {
                int(address, 16): bytes.fromhex(actual)
                for address, actual in re.findall(r"^differs (\w+) (\w+)$", memory_answer.text, re.MULTILINE)
            }
        ),
        unmapped=tuple(
            int(address, 16) for address in re.findall(r"^unmapped (\w+)$", memory_answer.text, re.MULTILINE)
        ),
        outputs=tuple(outputs),
    )


def _kernel_complaints(log: str) -> list[str]:
    """Find the kernel's lines that tell of trouble, each once: the message buffer repeats the console."""
    # What a test's own commands print is the test's to judge; it may well quote such lines.
    own = _ANSWER.sub(lambda found: "" if found["name"].startswith("command-") else found[0], log)
    lines = dict.fromkeys(line[0].rstrip() for line in _KERNEL_LINE.finditer(own))
    return [line for line in lines if _PROBLEM.search(line) and not _ADVICE.search(line)]
