"""What a run does to the system, as Python's audit events tell it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events of Python that would start a program, load code, or reach another machine.
_FORBIDDEN: Final = (
    *(
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.fork",
        "os.forkpty",
        "os.startfile",
    ),
    *("pty.spawn", "socket.", "ftplib.", "urllib.", "webbrowser.", "pickle.find_class"),
    *("os.symlink", "os.link", "os.mkdir", "os.rmdir", "shutil."),
)
# What is done to a temporary folder and in it.
_TIDYING: Final = ("os.mkdir", "os.rmdir", "shutil.rmtree")
_CHANGING: Final = ("os.rename", "os.remove", "os.truncate", "os.chmod", "os.chown", "os.utime")


class Watch:
    """An audit hook; there can be only one in a process, for good, and it only looks while it is told to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.folder: str | None = None
        self._temporary = ""
        sys.addaudithook(self._hook)

    @contextmanager
    def of(self, folder: Path, temporary: Path) -> Iterator[list[str]]:
        """Collect what happens outside of two folders, and what must not happen anywhere but in the temporary one."""
        self.seen = []
        self._temporary = f"{temporary}{os.sep}"
        self.folder = f"{folder}{os.sep}"
        try:
            yield self.seen
        finally:
            self.folder = None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = flags & _WRITING if isinstance(flags, int) else mode and set(mode) & set("wax+")
            if writes and not self._inside(path):
                self.seen.append(f"writes elsewhere: {path!r}")
        elif event in _CHANGING and not (event == "os.remove" and self._is_temporary(arguments)):
            self.seen.extend(
                f"{event} elsewhere: {path!r}" for path in arguments[:2] if not self._inside(path, follow=False)
            )
        elif event in _TIDYING and self._is_temporary(arguments):
            return
        elif event.startswith(_FORBIDDEN) or (event in ("compile", "exec", "os.putenv") and not _importing()):
            self.seen.append(f"forbidden event {event}: {arguments!r:.200}")

    def _inside(self, path: object, *, follow: bool = True) -> bool:
        """Whether a path is in the folder, or what it leads to; numbers are what was opened before."""
        if not isinstance(path, str | bytes | os.PathLike):
            return True
        name = os.fsdecode(path)
        if not follow:
            return f"{Path(name).parent.resolve()}{os.sep}".startswith(str(self.folder))
        return name == os.devnull or os.path.realpath(name).startswith((str(self.folder), self._temporary))

    def _is_temporary(self, arguments: tuple[Any, ...]) -> bool:
        """Whether what is made or removed is in the temporary folder; a name may be one in an open folder."""
        path, descriptor = arguments[0], arguments[-1]
        name = os.fsdecode(path)
        if isinstance(descriptor, int) and descriptor >= 0 and len(arguments) > 1:
            name = str(Path(f"/proc/self/fd/{descriptor}").readlink() / name)
        return f"{Path(name).parent.resolve()}{os.sep}".startswith(self._temporary)


def _importing() -> bool:
    """Whether Python's import system is at work, which the tool's late imports need."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
