"""Archives as `ar` and `llvm-ar` make them, in two generations of the same files, and some made by hand."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from staticcall.model.archive import MemberKind
from staticcall.read.archive import read_members
from staticcall.write.archive import rebuild
from tests.support.toolchain import TIMEOUT_SECONDS

MAGIC = b"!<arch>\n"
_INDEX_DATE = slice(8 + 16, 8 + 28)
TOOLS = ("ar", "llvm-ar")
LONG = "a-name-that-does-not-fit-the-header.o"
# In the archives' order; two have one name. Contents are objects where the name says so.
FILES: Final = (
    "first.o",
    LONG,
    "notes.txt",
    "empty",
    "other/first.o",
    "exactly-15-long",
    "another-name-that-does-not-fit.txt",
    "last.o",
)
MAIN = """
#include <stdio.h>
int one(void), two(void), three(void), four(void);
int main(void) { printf("%d %d %d %d\\n", one(), two(), three(), four()); return 0; }
"""
SOURCES: Final = {"first.o": "one", LONG: "two", "other/first.o": "three", "last.o": "four"}


class Library(NamedTuple):
    """One archive as `ar` makes it of the old files, and as it makes it of the new ones."""

    tool: str
    old: bytes
    new: bytes


class Bench(NamedTuple):
    """The files of the archives in two generations, and the archives by how they were made."""

    folder: Path
    main: Path
    libraries: dict[str, Library]


def ask(*command: str | Path, folder: Path | None = None) -> bytes:
    done = subprocess.run(
        command, capture_output=True, timeout=TIMEOUT_SECONDS, check=True, cwd=folder, env={**os.environ, "LC_ALL": "C"}
    )
    return done.stdout


def make_files(folder: Path, generation: int) -> None:
    """Objects that return what the generation says, and files of other kinds; all change their sizes."""
    (folder / "other").mkdir(parents=True)
    for name, function in SOURCES.items():
        source = folder / "source.c"
        more = f'static const char unused_{function}[] __attribute__((used)) = "{"x" * 99 * generation}";\n'
        source.write_text(f"int {function}(void) {{ return {generation * len(function)}; }}\n{more}")
        ask("gcc", "-O2", "-c", source, "-o", folder / name)
    (folder / "notes.txt").write_text("odd" if generation == 1 else "now even")
    (folder / "empty").write_text("")
    (folder / "exactly-15-long").write_text("even" * generation)
    (folder / "another-name-that-does-not-fit.txt").write_text("!" * generation)
    for path in folder.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def make_bench(folder: Path) -> Bench:
    """Build everything into an empty folder; only with those tools that there are."""
    folders = folder / "1", folder / "2"
    for i, generation in enumerate(folders, 1):
        make_files(generation, i)
    libraries = {}
    for tool in filter(shutil.which, TOOLS):
        for dates in "DU":  # zeros for date, user and group, or what the files have
            for generation in folders:
                ask(tool, f"qcs{dates}", f"{tool}-{dates}.a", *FILES, folder=generation)
            old, new = ((generation / f"{tool}-{dates}.a").read_bytes() for generation in folders)
            # The index has the date of its making, whatever those of the files are.
            new = new[: _INDEX_DATE.start] + old[_INDEX_DATE] + new[_INDEX_DATE.stop :]
            libraries[f"{tool}-{dates}"] = Library(tool, old, new)
    (folder / "main.c").write_text(MAIN)
    ask("gcc", "-O2", "-c", "main.c", folder=folder)
    return Bench(folder, folder / "main.o", libraries)


def new_contents(library: Library) -> dict[int, bytes]:
    """Every file's new content, by the member's position: those that `ar` itself put into the new archive."""
    news = read_members(library.new)
    return {i: member.content(library.new) for i, member in enumerate(news) if member.kind is MemberKind.MEMBER}


def rewritten(library: Library, *positions: int) -> bytes:
    """The old archive with new contents, for all files or those at some positions."""
    chosen = {i: content for i, content in new_contents(library).items() if not positions or i in positions}
    return rebuild(library.old, read_members(library.old), chosen)


def index_by_nm(archive: Path) -> list[str]:
    """The symbol index as nm prints it: "symbol in member"."""
    head, _, rest = ask("nm", "-s", archive).decode().partition("\nArchive index:\n")
    return (rest or head.removeprefix("Archive index:\n")).partition("\n\n")[0].splitlines()


def packed(*members: tuple[bytes, bytes], magic: bytes = MAGIC) -> bytes:
    """An archive by hand."""
    parts = [magic]
    for name, content in members:
        parts += [header(name, len(content)), content, b"\n"[: len(content) % 2]]
    return b"".join(parts)


def header(name: bytes, size: int) -> bytes:
    return b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (name, 0, 0, 0, 0o644, size)


def with_wide_index(data: bytes) -> bytes:
    """The same archive with `/SYM64/` for `/`: all places move by what the index grows."""
    size = int(data[56:66])
    content, rest = data[68 : 68 + size], data[68 + size + size % 2 :]
    (count,) = struct.unpack_from(">I", content)
    places = struct.unpack_from(f">{count}I", content, 4)
    names = content[4 + 4 * count :]
    names += bytes((len(names) + size) % 2)  # the size may be odd, the step must not
    growth = 8 + 8 * count + len(names) - (size + size % 2)
    growth += growth % 2
    wide = struct.pack(f">{1 + count}Q", count, *(place + growth for place in places)) + names
    wide += bytes((size + size % 2 + growth) - len(wide))
    return MAGIC + header(b"/SYM64/", len(wide)) + wide + rest
