"""A place to work on damaged objects, and what holds of whatever comes of them."""

from __future__ import annotations

import resource
import struct
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support import elf_object
from tests.support.elf_object import Object, Section
from tests.support.object_mutations import SHT_LLVM_CALL_GRAPH_PROFILE
from tests.support.refusals import Arguments, at_most, contents, one_line
from tests.support.tool import POLICIES, Outcome, staticcall

SECONDS = 5
_MEGABYTE = 1 << 20
# What holds symbol numbers, or names of what is new: their contents may change.
_FOLLOWING: Final = (
    elf_object.SHT_SYMTAB,
    elf_object.SHT_STRTAB,
    elf_object.SHT_RELA,
    9,  # SHT_REL
    elf_object.SHT_GROUP,
    elf_object.SHT_SYMTAB_SHNDX,
    elf_object.SHT_LLVM_ADDRSIG,
    SHT_LLVM_CALL_GRAPH_PROFILE,
)


class Bench:
    """A folder with a good object and a bad one, where nothing but the named outputs may appear."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good, self.bad, self.out, self.edits = (folder / name for name in ("good", "bad", "out", "edits"))

    def put(self, good: bytes, bad: bytes) -> None:
        """Start anew with these two files."""
        for path in self.folder.iterdir():
            path.unlink()
        self.good.write_bytes(good)
        self.bad.write_bytes(bad)

    def run(self, *arguments: str | Path, codes: Collection[int]) -> Outcome:
        """Run the tool, and see what holds however it ends."""
        before = contents(self.folder)
        with at_most(SECONDS), _memory_of_at_most(100 * _MEGABYTE + 10 * self.bad.stat().st_size):
            outcome = staticcall(*arguments)
        assert outcome.code in codes, (arguments, outcome)
        after = contents(self.folder)
        if outcome.code in (0, 1):
            assert outcome.err == "", (arguments, outcome)
            assert after.keys() - before.keys() <= {"out", "edits"}
            own = {self.bad.name} if "--in-place" in arguments else set()
            assert all(after[name] == before[name] for name in before.keys() - own), "no input was touched"
        else:
            assert str(self.folder) in one_line(outcome), (arguments, outcome)
            assert "memory" not in outcome.err
            assert outcome.out == "", (arguments, outcome)
            assert after == before, (arguments, outcome)
        return outcome

    def clear(self) -> None:
        """Remove what a command wrote."""
        self.out.unlink(missing_ok=True)
        self.edits.unlink(missing_ok=True)


@contextmanager
def _memory_of_at_most(more: int) -> Iterator[None]:
    """Let this process have no more than so many bytes on top of what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def ways_to_annotate(bench: Bench) -> list[Arguments]:
    """Ways to annotate the bad object."""
    return [
        ("annotate", bench.bad, "-o", bench.out),
        ("annotate", "--module", bench.bad, "--in-place"),
        ("annotate", "--section", "static_call_sites", bench.bad, "-o", bench.out),
    ]


def ways_to_report(bench: Bench) -> list[Arguments]:
    """Ways to report on it."""
    return [
        *(("report", "-v", "--policy", policy, bench.bad) for policy in POLICIES),
        ("report", "--format", "json", "--scan", bench.bad),
    ]


def ways_to_patch(bench: Bench) -> list[Arguments]:
    """Ways to patch it; two_keys has what they name."""
    forced = ("--force", "null-returns-value")
    return [
        ("patch", bench.bad, "--bind", "-o", bench.out, "--edits", bench.edits),
        ("patch", bench.bad, "--set", "one=second_target", "--bind", "--in-place"),
        ("patch", bench.bad, "--set", "one=NULL", *forced, "-o", bench.out),
        ("patch", bench.bad, "--set", "two=RET0", "--set", "one=elsewhere", "-o", bench.out, "--strip-signature"),
    ]


def no_more_warnings(before: Path, after: Path) -> None:
    """See that readelf has no more to say about the second object than about the first."""
    old, new = (_warnings(path) for path in (before, after))
    assert len(new) <= len(old), new


def _warnings(path: Path) -> list[str]:
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, errors="replace", check=False)
    return done.stderr.splitlines()


def keeps_what_there_was(before: Path, after: Path, *, annotated: bool) -> None:
    """See, read by hand, that all old sections and relocations are there; nothing to see in what cannot be read."""
    if before.read_bytes() == after.read_bytes():
        return
    try:
        old = elf_object.read(before)
    except (struct.error, IndexError, ValueError):
        return
    new = elf_object.read(after)
    for was, now in zip(old.sections[1:], new.sections[1:], strict=False):
        assert _header(was) == _header(now)
        if was.type == elf_object.SHT_STRTAB:
            assert now.content.startswith(was.content)
        elif annotated and was.type not in _FOLLOWING:
            assert was.content == now.content
        elif annotated and was.type == elf_object.SHT_RELA and was.link == old.symtab:
            assert _entries(old, was) == _entries(new, now)
    if annotated:
        assert [*elf_object.tables(new), *elf_object.tables(new, "static_call_sites")]


def _header(section: Section) -> tuple[object, ...]:
    return (
        section.name,
        section.type,
        section.flags,
        section.address,
        section.link,
        section.alignment,
        section.entry_size,
    )


def _entries(elf: Object, section: Section) -> list[tuple[object, ...]]:
    """Relocations with their symbols instead of these symbols' numbers."""
    symbols = dict(enumerate(elf.symbols))
    return [(one.offset, one.type, one.addend, symbols.get(one.symbol, one.symbol)) for one in elf.relocations(section)]
