"""What installers need, without an index: the wheels of a package and of all that it needs, and fresh environments.

The wheels of the dependencies are put together again from what is installed here. An installer resolves from them
alone, so what a wheel's metadata does not ask for is not there.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.toolchain import TIMEOUT_SECONDS

ROOT = Path(__file__).parents[2]
# A day in 2023: what is built with it is the same whenever that is.
EPOCH = "1700000000"

_OF_THE_INSTALLER = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json"}


class Distributions(NamedTuple):
    """What was built of one tree."""

    wheel: Path
    sdist: Path


def build(tree: Path, folder: Path) -> Distributions:
    """Both distributions of a tree, each made from the tree itself."""
    _hatchling("-d", folder, tree=tree)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Distributions(wheel, sdist)


def build_wheel(tree: Path, folder: Path) -> Path:
    """The wheel of a tree alone."""
    _hatchling("-t", "wheel", "-d", folder, tree=tree)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _hatchling(*options: str | Path, tree: Path) -> None:
    execute(sys.executable, "-m", "hatchling", "build", *options, cwd=tree, env={"SOURCE_DATE_EPOCH": EPOCH})


def snapshot(folder: Path) -> Path:
    """The tree as git has it, or would, and nothing else that a working copy may hold."""
    for name in _tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


def _tracked() -> set[str]:
    if (ROOT / ".git").exists():
        listed = execute("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    # An unpacked source distribution; what starts with a dot was made by tools, but for these two.
    tops = [top for top in ROOT.iterdir() if not top.name.startswith(".") or top.name in {".ci", ".gitignore"}]
    files = [file for top in tops for file in (top, *top.rglob("*")) if file.is_file()]
    names = [file.relative_to(ROOT) for file in files if "__pycache__" not in file.parts]
    return {str(name) for name in names if name.parts[0] not in {"build", "dist", "PKG-INFO"}}


def metadata(wheel: Path) -> Message:
    """What a wheel says about itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def closure(requirements: Iterable[str], extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """All installed distributions that requirements lead to, by canonical name."""
    found: dict[str, Distribution] = {}
    asked = [(Requirement(text), frozenset(extras)) for text in requirements]
    seen = set()
    while asked:
        requirement, of = asked.pop()
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in (*of, ""))
        name = canonicalize_name(requirement.name)
        if not wanted or (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        found[name] = distribution(requirement.name)
        asked += [(Requirement(text), frozenset(requirement.extras)) for text in found[name].requires or []]
    return found


def repack(installed: Distribution, folder: Path) -> Path:
    """The wheel that an installed distribution came from, but for what its installer added; not compressed."""
    tags = [line.removeprefix("Tag: ") for line in (installed.read_text("WHEEL") or "").splitlines() if "Tag: " in line]
    # A file's name has the tags as their product: py2.py3-none-any.
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*(tag.split("-") for tag in tags), strict=True))
    name = canonicalize_name(installed.name).replace("-", "_")
    path = folder / f"{name}-{installed.version}-{tag}.whl"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(path, "w") as archive:
        for file in installed.files or []:
            if ".." in file.parts or file.suffix == ".pyc" or file.name in _OF_THE_INSTALLER:
                continue
            archive.write(str(file.locate()), str(file))
            rows.writerow((file, f"{file.hash.mode}={file.hash.value}" if file.hash else "", file.size or ""))
        (info,) = {file.parts[0] for file in installed.files or [] if file.match("*.dist-info/METADATA")}
        rows.writerow((f"{info}/RECORD", "", ""))
        archive.writestr(f"{info}/RECORD", record.getvalue())
    return path


def stock(wheel: Path, folder: Path) -> dict[str, Distribution]:
    """Fill a folder with the wheels of all that one needs at run time; gives these."""
    needed = closure(metadata(wheel).get_all("Requires-Dist", []))
    for installed in needed.values():
        repack(installed, folder)
    return needed


def offline(wheels: Path, cache: Path) -> dict[str, str]:
    """The variables by which uv, and pipx with it, takes wheels from a folder and nothing from anywhere else."""
    return {
        "UV_CACHE_DIR": str(cache),
        "UV_FIND_LINKS": str(wheels),
        "UV_NO_CONFIG": "1",
        "UV_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
    }


def fresh(folder: Path, wheel: Path, env: Mapping[str, str]) -> Path:
    """A new environment with a wheel and what its metadata asks for; gives its folder of programs."""
    uv = (sys.executable, "-m", "uv", "--quiet")
    execute(*uv, "venv", "--python", sys.executable, folder, env=env)
    execute(*uv, "pip", "install", "--python", folder / "bin/python", wheel, env=env)
    return folder / "bin"


def execute(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program printed, which has to work; it sees neither this environment nor the index's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "UV_", "VIRT"))}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        cwd=cwd,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout
