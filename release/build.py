"""Makes the wheel and the source distribution, twice and from two places, and sees that they are the same."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from release.commands import ReleaseError, python

SUMS = "SHA256SUMS"


class Distributions(NamedTuple):
    """The two files of a release."""

    wheel: Path
    sdist: Path


def build(root: Path, folder: Path, epoch: str) -> Distributions:
    """Both from the tree at `root` by the installed hatchling; `epoch` is SOURCE_DATE_EPOCH in seconds since 1970."""
    # A wheel is otherwise made from the source distribution; here each comes from the tree.
    python(
        *("-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", folder, root),
        env={"SOURCE_DATE_EPOCH": epoch},
    )
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return Distributions(wheel, sdist)


def publish(files: Iterable[Path], folder: Path) -> list[Path]:
    """Copy what was made into a folder, with its sums; a release that was there before goes, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("staticcall-*.whl", "staticcall-*.tar.gz", "staticcall-*.cdx.json", SUMS):
        for old in folder.glob(pattern):
            old.unlink()
    copied = [Path(shutil.copy(file, folder)) for file in files]
    return [*copied, write_sums(copied, folder)]


def unpack(sdist: Path, folder: Path) -> Path:
    """The tree that a source distribution holds, in a new folder below `folder`."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


def require_same(first: Distributions, second: Distributions, what: str) -> None:
    """Raises `ReleaseError` where two builds differ in a byte."""
    for one, other in zip(first, second, strict=True):
        if one.name != other.name or not filecmp.cmp(one, other, shallow=False):
            raise ReleaseError(f"{one.name} is not the same {what}")


def write_sums(files: Iterable[Path], folder: Path) -> Path:
    """SHA256SUMS as `sha256sum --check` reads it, sorted by name."""
    path = folder / SUMS
    names = sorted(files, key=lambda file: file.name)
    path.write_text("".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in names))
    return path
