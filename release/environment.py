"""Fresh environments, and what has to work in one."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.utils import canonicalize_name

from release.commands import ReleaseError, python, run

_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)")
_DEMO_FLAGS = ("-std=c11", "-O2", "-g", "-fno-pie", "-no-pie")


class Environment:
    """A virtual environment without pip, so that nothing is in it but what was installed."""

    def __init__(self, folder: Path, interpreter: str | Path = sys.executable) -> None:
        """Make it in a folder that is not there yet, for an interpreter."""
        run(interpreter, "-m", "venv", "--without-pip", folder)
        self.folder = folder

    def program(self, name: str) -> Path:
        """One of its programs."""
        return self.folder / "bin" / name

    def install(self, *what: str | Path) -> None:
        """By pip, with dependencies from the index that pip is told of."""
        python("-m", "pip", "--python", self.program("python"), "install", "--quiet", "--no-input", *what)


def interpreters(root: Path) -> Iterator[tuple[str, Path]]:
    """The other interpreters of this machine that the classifiers name, on the path or pyenv's: version and program."""
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (root / "pyproject.toml").read_text())
    pyenv = Path(run("pyenv", "root").strip()) if shutil.which("pyenv") else None
    for version in named:
        of_pyenv = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")) if pyenv else []
        on_path = shutil.which(f"python{version}")
        for program in (*of_pyenv, *([Path(on_path)] if on_path else [])):
            if version != f"{sys.version_info.major}.{sys.version_info.minor}" and _works(program):
                yield version, program
                break


def _works(program: Path) -> bool:
    """A program on the path may be pyenv's, which stands for interpreters that are not chosen."""
    try:
        run(program, "-c", "import venv")
    except ReleaseError:
        return False
    return True


def locked(lock: Path) -> dict[str, str]:
    """The versions that a lock file names, by canonical name."""
    matches = [match for line in lock.read_text().splitlines() if (match := _PIN.match(line))]
    return {canonicalize_name(match[1]): match[2] for match in matches}


def pins(lock: Path, path: Path) -> Path:
    """The locked versions as constraints: without their hashes, which pip would want of the new wheel as well."""
    path.write_text("".join(f"{name}=={version}\n" for name, version in locked(lock).items()))
    return path


def smoke(program: Path, root: Path, folder: Path, version: str) -> None:
    """Report, patch, verify and revert a small program with an installed `staticcall`, away from the tree.

    Needs gcc. Raises `ReleaseError` where anything is not as it should be.
    """
    said = run(program, "--version", cwd=folder)
    if said.split()[-1] != version:
        raise ReleaseError(f"{program} says that it is {said.strip()!r}, and not {version}")
    run("gcc", *_DEMO_FLAGS, "-o", folder / "demo", root / "fixtures/demo/demo.c")
    run(program, "report", "demo", cwd=folder)
    edits = ("--edits", "undo.json")
    run(program, "patch", "demo", "--set", "checksum=checksum_fast", "-o", "fast", *edits, cwd=folder)
    run(program, "verify", "demo", "fast", cwd=folder)
    run(program, "revert", "fast", *edits, "-o", "again", cwd=folder)
    if (folder / "again").read_bytes() != (folder / "demo").read_bytes():
        raise ReleaseError("revert did not give the original")
    before, after = run(folder / "demo"), run(folder / "fast")
    if "checksum_plain" not in before or "checksum_fast" not in after:
        raise ReleaseError("the patched program does not call what it was led to")


def pipx_run(wheel: Path, folder: Path) -> str:
    """What `staticcall --version` prints in an environment that pipx makes for one run, below `folder`."""
    return python("-m", "pipx", "run", "--spec", wheel, "staticcall", "--version", env=_homes(folder)).strip()


def pipx_install(wheel: Path, folder: Path) -> Path:
    """The program that pipx installs below `folder`."""
    python("-m", "pipx", "install", wheel, env=_homes(folder))
    return folder / "pipx/bin/staticcall"


def _homes(folder: Path) -> dict[str, str]:
    return {
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "pipx/bin"),
        "PIPX_MAN_DIR": str(folder / "pipx/man"),
    }
