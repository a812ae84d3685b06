"""Files as the programs that everybody has pack them: compressed, in packages, archives and initramfs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.support.toolchain import TIMEOUT_SECONDS

# How kernels, modules, packages and people compress, each by a name of its own.
COMPRESSORS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gzip": ("gzip", "-nc9"),
        "gzip-fast": ("gzip", "-nc1"),
        "gzip-middle": ("gzip", "-nc"),
        "xz-module": ("xz", "-c", "--check=crc32", "--lzma2=dict=1MiB"),
        "xz-kernel": ("xz", "-c", "--check=crc32", "--x86", "--lzma2=dict=32MiB"),
        "xz-delta": ("xz", "-c", "--check=none", "--delta=dist=4", "--lzma2=preset=1,lc=0,lp=2"),
        "xz": ("xz", "-c"),
        "xz-blocks": ("xz", "-c", "-T2", "--block-size=65536", "--check=sha256"),
        "zstd": ("zstd", "-qc"),
        "zstd-long": ("zstd", "-qc", "-12", "--long=27"),
        "zstd-bare": ("zstd", "-qc", "--no-check", "-1"),
        "lz4-legacy": ("lz4", "-qcl9"),
        "lz4": ("lz4", "-qc"),
        "lz4-frame": ("lz4", "-qc", "-B4", "-BD", "-BX", "--content-size"),
        "lz4-bare": ("lz4", "-qc", "--no-frame-crc"),
        "bzip2": ("bzip2", "-c9"),
        "bzip2-small": ("bzip2", "-c1"),
        "lzma": ("lzma", "-c9"),
        "lzo": ("lzop", "-c9"),
        "lzo-crc": ("lzop", "-c1", "--crc32"),
    }
)
# A simple one of each codec.
EACH: Final = ("gzip", "xz-module", "zstd", "lz4-legacy", "lz4", "bzip2", "lzma", "lzo")
UNPACKERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gzip": ("gzip", "-dc"),
        "xz": ("xz", "-dc"),
        "zstd": ("zstd", "-dqc"),
        "lz4": ("lz4", "-dqc"),
        "bzip2": ("bzip2", "-dc"),
        "lzma": ("lzma", "-dc"),
        "lzo": ("lzop", "-dc"),
    }
)
_CONTROL = "Package: made\nVersion: 1\nArchitecture: amd64\nMaintainer: M <m@example.org>\nDescription: made\n"


def missing_tools() -> list[str]:
    """Name what is needed here and this machine lacks."""
    tools = {command[0] for command in (*COMPRESSORS.values(), *UNPACKERS.values())} | {"dpkg-deb", "cpio", "ar"}
    return sorted(tool for tool in tools if shutil.which(tool) is None)


def through(command: Iterable[str], data: bytes, folder: Path | None = None) -> bytes:
    """What a program makes of its standard input."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        [*command], input=data, capture_output=True, check=True, timeout=TIMEOUT_SECONDS, cwd=folder, env=environment
    )
    return done.stdout


def compressed(name: str, data: bytes) -> bytes:
    """Data as the program of this name compresses it."""
    return through(COMPRESSORS[name], data)


def unpacker(name: str) -> tuple[str, ...]:
    """The program that unpacks what the one of this name compressed."""
    return UNPACKERS[name.split("-", maxsplit=1)[0]]


def package(folder: Path, out: Path, compression: str) -> Path:
    """A package of Debian that installs all that is in a folder."""
    control = folder / "DEBIAN"
    control.mkdir(exist_ok=True)
    (control / "control").write_text(_CONTROL)
    # Umasks of some machines are more than dpkg-deb takes.
    control.chmod(0o755)
    command = ("dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", str(folder), str(out))
    through(command, b"")
    shutil.rmtree(control)
    return out


def cpio(folder: Path, form: str = "newc") -> bytes:
    """All that is in a folder as an archive, its files in the order of their names."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    text = "".join(f"{name}\n" for name in names)
    return through(("cpio", "--quiet", "-o", "-H", form), text.encode(), folder)
