"""Boots a kernel in an emulator and takes its memory while it runs, as ELF cores.

    with paused guests:  run(kernel, work, commands=[..., PAUSE, ...], at_pause=look)

The guest is that of `guest`; where a command is `PAUSE` it waits, and `look(number, monitor)` is called in the host:
`monitor.dump(path, paging=True)` writes an ELF core of virtual addresses, with False one of physical ones. No time
passes in the guest meanwhile. A kernel that is packed (`vmlinuz`) chooses its addresses by itself.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from types import MappingProxyType
from typing import Any

from tests.support import guest

PAUSE = "echo ::pause::; read line"
MEGABYTES = 256  # a dump has as many
_NO_FILES: Mapping[str, Path] = MappingProxyType({})


class Monitor:
    """The emulator's machine protocol (QMP), on a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()  # the greeting
        self._do("qmp_capabilities")

    def _do(self, command: str, **arguments: object) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise guest.GuestError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise guest.GuestError(f"{command}: the emulator went away")

    def dump(self, path: Path, *, paging: bool) -> Path:
        """Write the guest's memory, as it is now, to a file."""
        self._do("dump-guest-memory", paging=paging, protocol=f"file:{path}")
        return path

    def stop(self) -> None:
        """Stop the guest's processors."""
        self._do("stop")

    def go_on(self) -> None:
        """Let them run."""
        self._do("cont")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def run(
    kernel: Path,
    work: Path,
    *,
    commands: Sequence[str],
    at_pause: Callable[[int, Monitor], object],
    files: Mapping[str, Path] = _NO_FILES,
    kernel_options: str = "",
    cpu: str = "qemu64",
) -> guest.Boot:
    """Boot, and call `at_pause` with the number of the pause, from 0 on, wherever the guest waits."""
    if missing := guest.missing_tools():
        raise guest.GuestError(f"a boot needs these packages: {', '.join(missing)}")
    initramfs = guest.make_initramfs(work, (), commands, files)
    path = work / "qmp"
    with subprocess.Popen(
        [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", cpu, "-m", str(MEGABYTES), "-nographic", "-no-reboot"),
            *("-nic", "none", "-qmp", f"unix:{path},server=on,wait=off", "-kernel", str(kernel)),
            *("-initrd", str(initramfs), "-append", f"{guest.KERNEL_OPTIONS} {kernel_options}".strip()),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as emulator:
        ends = Timer(guest.TIMEOUT_SECONDS, emulator.kill)
        ends.start()
        try:
            log = _talk(emulator, path, at_pause)
        finally:
            ends.cancel()
            emulator.kill()
    shutil.rmtree(work, ignore_errors=True)
    return guest.read_log(log, expected_places=0)


def _talk(emulator: subprocess.Popen[bytes], path: Path, at_pause: Callable[[int, Monitor], object]) -> str:
    assert emulator.stdout
    assert emulator.stdin
    log = b""
    pauses = 0
    for line in emulator.stdout:
        log += line
        if line.strip() == b"::pause::":
            monitor = Monitor(path)
            monitor.stop()
            at_pause(pauses, monitor)
            monitor.go_on()
            monitor.close()
            pauses += 1
            emulator.stdin.write(b"\n")
            emulator.stdin.flush()
    return log.decode(errors="replace").replace("\r\n", "\n")
