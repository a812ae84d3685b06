"""Debian's kernels with all their symbols, and what belongs to them, as test material.

No version is pinned: packages of old kernels leave the archive within weeks. What is current is asked of
apt, and apt is also what downloads, so that mirrors, proxies and signatures are the machine's own business.

    kernel("6.12")                      a cached kernel, downloaded only where there is none yet
    headers(kernel("6.12"))             what modules for that kernel are built with: the root of a file tree
    image(kernel("6.12"))               the package that is installed to boot it, with its modules: another root
    source(kernel("6.12"))              the package with its source: one more
    python -m tests.support.kernels     brings every series up to date and prints the paths (`make kernels`)

The cache is $STATICCALL_CACHE, or ~/.cache/staticcall, so that all clones on a machine share it:

    kernels/<series>/<package version>/vmlinux-<release>
    kernels/<series>/<package version>/packages/<name>/...
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SERIES = ("6.12", "6.1")
MODULES_SERIES = "6.12"  # the one whose modules the tests build, load and rewrite

# Each depends on the current kernel of one series. Which one the second names differs between Debian's
# releases, so every answer is checked against the series that is wanted.
_META_PACKAGES = ("linux-image-{series}-cloud-amd64-dbg", "linux-image-cloud-amd64-dbg")
_KEPT_VERSIONS = 2  # the current kernel and the one before it
_UNFINISHED = "unfinished-"
_IS_ROOT = os.geteuid() == 0
_APT_SECONDS = 120
_DOWNLOAD_SECONDS = 3600  # 300 MB over a slow line


class KernelMissingError(Exception):
    """There is no such kernel in the cache, and apt cannot get one."""


class _Package(NamedTuple):
    """One package at one version."""

    name: str
    version: str


def kernel(series: str) -> Path:
    """Return the newest cached kernel of a series, or download the current one where none is cached."""
    return _newest(series) or _locked_fetch(series, only_if_missing=True)


def refresh(series: str) -> Path:
    """Return the kernel of a series that apt calls current, downloading it unless it is cached."""
    return _locked_fetch(series, only_if_missing=False)


def headers(kernel: Path) -> Path:
    """Return the unpacked header and build packages of a cached kernel.

    Raises `KernelMissingError` also when the archive has moved on since the kernel was cached, as that for the
    image does; `refresh` then brings a kernel that has them.
    """
    return _companion(kernel, f"linux-headers-{_release(kernel)}")


def image(kernel: Path) -> Path:
    """Return the unpacked package with the modules of a cached kernel."""
    return _companion(kernel, f"linux-image-{_release(kernel)}")


def source(kernel: Path) -> Path:
    """Return the unpacked package with the source, still compressed, of a cached kernel."""
    return _companion(kernel, f"linux-source-{kernel.parent.parent.name}")


def main() -> int:
    """Bring every series up to date."""
    status = 0
    for series in SERIES:
        try:
            current = refresh(series)
            sys.stdout.write(f"{current}\n")
            if series == MODULES_SERIES:
                sys.stdout.write(f"{headers(current)}\n{image(current)}\n")
        except KernelMissingError as error:
            sys.stderr.write(f"kernels: {series}: {error}\n")
            status = 1
    return status


# The cache


def _kernels() -> Path:
    base = os.environ.get("STATICCALL_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "staticcall") / "kernels"


def _versions(series: str) -> list[Path]:
    """List the directories of a series that hold a kernel, newest first."""
    if series not in SERIES:
        raise ValueError(f"{series}: not one of {', '.join(SERIES)}")
    found = [image.parent for image in (_kernels() / series).glob("*/vmlinux-*")]
    return sorted(found, key=lambda folder: _by_version(folder.name), reverse=True)


def _newest(series: str) -> Path | None:
    versions = _versions(series)
    return next(versions[0].glob("vmlinux-*")) if versions else None


def _locked_fetch(series: str, *, only_if_missing: bool) -> Path:
    with _lock():
        cached = _newest(series)
        # Asked again under the lock: another worker may have finished the download in the meantime.
        if cached is not None and only_if_missing:
            return cached
        current = _fetch_current(series)
        for old in _versions(series)[_KEPT_VERSIONS:]:
            shutil.rmtree(old)
        return current


@contextmanager
def _lock() -> Iterator[None]:
    """Let one process at a time change the cache; the lock goes away with its holder, however that ends.

    One lock for all series, because apt would not update its lists for two callers at once either.
    """
    folder = _kernels()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch_current(series: str) -> Path:
    try:
        return _installed(series, _current_package(series))
    except KernelMissingError:
        if not _IS_ROOT:
            raise
    # Apt has no lists, or the archive has moved on since they were fetched.
    _update_lists()
    return _installed(series, _current_package(series))


def _installed(series: str, package: _Package) -> Path:
    folder = _kernels() / series / package.version
    return next(folder.glob("vmlinux-*"), None) or _install(package, folder)


def _install(package: _Package, folder: Path) -> Path:
    """Download and unpack beside the final place, then rename: a kernel that is there is a whole one."""
    folder.parent.mkdir(exist_ok=True)
    # Left by a download that was killed. Nobody else uses them: the caller holds the lock.
    for left in folder.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder.parent) as name:
        work = Path(name)
        archive = _download(package, work)
        image = _extract_vmlinux(archive, work)
        archive.unlink()
        image.parent.rename(folder)
    return folder / image.name


def _extract_vmlinux(archive: Path, work: Path) -> Path:
    """Take the kernel out of the package and leave its other gigabytes, the modules' symbols, there."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpack:
        extract = subprocess.run(
            ["tar", "-x", "-C", work, "--wildcards", "./usr/lib/debug/boot/vmlinux-*"],
            stdin=unpack.stdout,
            check=False,
        )
    images = list(work.glob("usr/lib/debug/boot/vmlinux-*"))
    if unpack.returncode or extract.returncode or len(images) != 1:
        raise KernelMissingError(f"{archive.name} does not unpack to one usr/lib/debug/boot/vmlinux-*")
    return images[0]


def _release(kernel: Path) -> str:
    return kernel.name.removeprefix("vmlinux-")


def _companion(kernel: Path, name: str) -> Path:
    """Return the file tree of a package of a kernel's own version, and of what that package is built with."""
    folder = kernel.parent / "packages" / name
    if folder.is_dir():
        return folder
    with _lock():
        if folder.is_dir():
            return folder  # another worker was faster
        try:
            _unpack(_Package(name, kernel.parent.name), folder)
        except KernelMissingError:
            if not _IS_ROOT:
                raise
            _update_lists()
            _unpack(_Package(name, kernel.parent.name), folder)
    return folder


def _unpack(package: _Package, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    # As in _install.
    for left in folder.parent.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left)
    depends = " ".join(record.get("Depends", "") for record in _apt_records([package.name]))
    names = [package.name, *re.findall(r"\blinux-(?:headers|kbuild)-[^\s,]+", depends)]
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder.parent) as temporary:
        tree = Path(temporary) / "tree"
        for name in names:
            work = Path(temporary) / name
            work.mkdir()
            archive = _download(_Package(name, package.version), work)
            done = _run(["dpkg-deb", "--extract", str(archive), str(tree)], _DOWNLOAD_SECONDS)
            if done.returncode:
                raise KernelMissingError(f"{archive.name} does not unpack: {done.stderr.strip()}")
        tree.rename(folder)


# Apt


def _current_package(series: str) -> _Package:
    package = _from_meta_package(series) or _highest_known(series)
    if package is None:
        raise KernelMissingError(
            f"apt knows no linux-image-{series}.*-cloud-amd64-dbg; it needs the lists of a Debian release "
            "that has this series, fetched by `apt-get update`"
        )
    return package


def _from_meta_package(series: str) -> _Package | None:
    for record in _apt_records([meta.format(series=series) for meta in _META_PACKAGES]):
        for name, version in re.findall(r"(\S+) \(= ([^ )]+)\)", record.get("Depends", "")):
            if _belongs(name, series):
                return _Package(name, version)
    return None


def _highest_known(series: str) -> _Package | None:
    names = _run(["apt-cache", "pkgnames", f"linux-image-{series}."], _APT_SECONDS).stdout.split()
    records = _apt_records([name for name in names if _belongs(name, series)])
    packages = [_Package(record["Package"], record["Version"]) for record in records]
    return max(packages, key=lambda package: _by_version(package.version), default=None)


def _belongs(name: str, series: str) -> bool:
    return re.fullmatch(rf"linux-image-{re.escape(series)}\.\d\S*-cloud-amd64-dbg", name) is not None


def _apt_records(names: Sequence[str]) -> list[dict[str, str]]:
    """Read what apt knows of the installable version of each package; unknown names are left out."""
    if not names:
        return []
    # It fails when any one name is unknown, and prints the records of the others all the same.
    shown = _run(["apt-cache", "--no-all-versions", "show", *names], _APT_SECONDS).stdout
    # Continuation lines start with a space; no field that matters here has any.
    return [dict(re.findall(r"^([\w-]+): (.*)$", record, re.MULTILINE)) for record in shown.split("\n\n") if record]


def _download(package: _Package, work: Path) -> Path:
    # The user that root's apt changes to for downloads has no way into a home directory.
    sandbox = ["-o", "APT::Sandbox::User=root"]
    wanted = f"{package.name}={package.version}"
    done = _run(["apt-get", "-q", *sandbox, "download", wanted], _DOWNLOAD_SECONDS, cwd=work)
    archives = list(work.glob("*.deb"))
    if done.returncode or len(archives) != 1:
        reason = "; ".join(done.stderr.split("\n")).strip("; ") or "nothing arrived"
        raise KernelMissingError(f"cannot download {wanted} (offline, or `apt-get update` is due): {reason}")
    return archives[0]


def _update_lists() -> None:
    # Its failure shows in what is asked of apt next, with a better message.
    _run(["apt-get", "-q", "update"], _DOWNLOAD_SECONDS)


def _run(command: Sequence[str], seconds: int, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of apt's programs; its failure is the caller's to judge, its absence is an error here."""
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise KernelMissingError(f"{command[0]}: {error}") from error


def _compare_versions(one: str, other: str) -> int:
    if one == other:
        return 0
    higher = _run(["dpkg", "--compare-versions", one, "gt", other], _APT_SECONDS).returncode == 0
    return 1 if higher else -1


_by_version = functools.cmp_to_key(_compare_versions)


if __name__ == "__main__":
    raise SystemExit(main())
