"""Small images linked like a kernel, of any version; what can be asked for is told in fixtures/kernel/kernel.S."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.toolchain import bytes_at, symbols

SOURCE = Path(__file__).parents[2] / "fixtures" / "kernel" / "kernel.S"


def build(folder: Path, version: str, *defines: str, source: Path = SOURCE, linking: Sequence[str] = ()) -> Path:
    """Build one; each combination has a file of its own in the folder. `linking` are more options of the linker's."""
    name = "-".join(["vmlinux", version, *defines, *linking])
    out = folder / name.translate({ord(odd): "_" for odd in '/"'})
    subprocess.run(
        [
            *("gcc", "-nostdlib", "-static", "-no-pie", f'-DVERSION="{version}"'),
            *(f"-D{name}" for name in defines),
            *(",".join(["-Wl,-Ttext-segment=0xffffffff81000000,--build-id=none", *linking]), "-o", out, source),
        ],
        check=True,
    )
    return out


def code_at(path: Path, label: str, size: int = 5) -> bytes:
    """The bytes at a label."""
    return bytes_at(path, symbols(path)[label], size)
