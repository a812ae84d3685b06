"""Archives, read and rewritten, against what `ar`, `nm` and the linkers make of the same files."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from staticcall.errors import MalformedError, UnsupportedError
from staticcall.model.archive import Member, MemberKind
from staticcall.read.archive import read_members
from staticcall.read.object import is_archive
from staticcall.verify.archive import same_archive
from staticcall.write.archive import rebuild
from tests.support.archives import (
    FILES,
    LONG,
    MAGIC,
    TOOLS,
    Bench,
    Library,
    ask,
    index_by_nm,
    make_bench,
    new_contents,
    packed,
    rewritten,
    with_wide_index,
)
from tests.support.refusals import at_most
from tests.support.toolchain import Linker

SECONDS = 5


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("archives"))


@pytest.fixture(params=[f"{tool}-{dates}" for tool in TOOLS for dates in "DU"])
def library(bench: Bench, request: pytest.FixtureRequest) -> Library:
    if request.param not in bench.libraries:
        pytest.skip(f"not installed: {request.param}")
    return bench.libraries[request.param]


@pytest.fixture
def gnu(bench: Bench) -> Library:
    return bench.libraries["ar-D"]


# Reading


def test_members_are_those_that_ar_lists(library: Library, tmp_path: Path) -> None:
    archive = tmp_path / "lib.a"
    archive.write_bytes(library.old)
    members = read_members(library.old)
    files = [member for member in members if member.kind is MemberKind.MEMBER]

    assert [member.name for member in files] == ask(library.tool, "t", archive).decode().splitlines()
    assert [member.name for member in files] == [Path(name).name for name in FILES]
    assert b"".join(member.content(library.old) for member in files) == ask(library.tool, "p", archive)
    assert [member.kind for member in members[:2]] == [MemberKind.INDEX, MemberKind.NAMES]
    sizes = [
        int(size) for size in re.findall(r"^\S+ +\d+/\d+ +(\d+) ", ask("ar", "tv", archive).decode(), re.MULTILINE)
    ]
    assert [member.size for member in files] == sizes


def test_a_file_is_known_as_an_archive_by_its_first_bytes(library: Library) -> None:
    assert is_archive(library.old[:8])
    assert is_archive(b"!<thin>\n")
    assert not is_archive(b"\x7fELF\x02\x01\x01\0")
    assert not is_archive(b"!<arc")


def test_an_archive_without_members_has_none() -> None:
    assert read_members(MAGIC) == ()
    assert rebuild(MAGIC, (), {}) == MAGIC
    assert same_archive(MAGIC, MAGIC) == []


def test_an_archive_of_two_without_index_is_read() -> None:
    data = packed((b"a/", b"odd"), (b"b c/", b"even"))

    assert [(m.name, m.header, m.offset, m.size, m.end) for m in read_members(data)] == [
        ("a", 8, 68, 3, 72),
        ("b c", 72, 132, 4, 136),
    ]


def test_names_that_are_no_utf8_are_told_apart() -> None:
    data = packed((b"//", b"\xfe-long-enough-to-be-here/\n"), (b"/0", b""), (b"\xff/", b""))

    assert [member.name for member in read_members(data)] == ["//", "\\xfe-long-enough-to-be-here", "\\xff"]


def test_padding_may_be_missing_at_the_end() -> None:
    data = packed((b"a/", b"odd"))[:-1]
    members = read_members(data)

    assert rebuild(data, members, {}) == data
    assert rebuild(data, members, {0: b"odder"}) == packed((b"a/", b"odder"))
    assert [change.after for change in same_archive(data, packed((b"a/", b"odder")))] == [b"odder"]


def test_a_thin_archive_is_refused_with_advice(bench: Bench, tmp_path: Path) -> None:
    thin = tmp_path / "thin.a"
    ask("ar", "rcT", thin, bench.folder / "1" / "first.o")

    assert is_archive(thin.read_bytes())
    with pytest.raises(UnsupportedError, match=r"thin archive.*give these files"):
        read_members(thin.read_bytes())


@pytest.mark.skipif(not shutil.which("llvm-ar"), reason="not installed: llvm-ar")
@pytest.mark.parametrize("options", ["qc", "qcS"])
@pytest.mark.parametrize("name", ["first.o", LONG])
def test_an_archive_of_bsd_is_refused_with_advice(bench: Bench, tmp_path: Path, options: str, name: str) -> None:
    archive = tmp_path / "bsd.a"
    ask("llvm-ar", "--format=bsd", options, archive, bench.folder / "1" / name)

    with pytest.raises(UnsupportedError, match=r"BSD's format.*make it again"):
        read_members(archive.read_bytes())


ONE = packed((b"one/", b"content!"))
DAMAGED: Final = {
    "no archive": (b"\x7fELF", 0),
    "half a magic": (MAGIC[:-1], 0),
    "half a header": (ONE + b"two/", 76),
    "one byte too many": (ONE + b"\n", 76),
    "no end of a header": (ONE.replace(b"`\n", b"` "), 8),
    "no size": (ONE.replace(b"8         `", b"          `"), 56),
    "a size in hexadecimal": (ONE.replace(b"8         `", b"0x8       `"), 56),
    "a negative size": (ONE.replace(b"8         `", b"-8        `"), 56),
    "a size that is more than one number": (ONE.replace(b"8         `", b"8 8       `"), 56),
    "a size past the end": (ONE.replace(b"8         `", b"9999999999`"), 8),
    "a size one past the end": (ONE.replace(b"8         `", b"9         `"), 8),
    "a name and something else": (ONE.replace(b"one/  ", b"one/ x"), 8),
    "no long names": (packed((b"/0", b"")), 8),
    "a place behind the long names": (packed((b"//", b"long/\n"), (b"/6", b"")), 74),
    "a place far behind the long names": (packed((b"//", b"long/\n"), (b"/99999999999999", b"")), 74),
    "a place inside of a long name": (packed((b"//", b"long/\n"), (b"/1", b"")), 74),
    "a long name without a slash": (packed((b"//", b"long\n/\n"), (b"/0", b"")), 76),
    "a place in front of a newline": (packed((b"//", b"a/\n\nb/\n"), (b"/3", b"")), 76),
    "a long name without an end": (packed((b"//", b"long/"), (b"/0", b"")), 74),
    "an empty long name": (packed((b"//", b"/\n"), (b"/0", b"")), 70),
    "long names twice": (packed((b"//", b"long/\n"), (b"//", b"long/\n")), 74),
    "long names too late": (packed((b"a/", b""), (b"//", b"long/\n")), 68),
    "an index too late": (packed((b"a/", b""), (b"/", bytes(4))), 68),
    "two indexes": (packed((b"/", bytes(4)), (b"/SYM64/", bytes(8))), 72),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_with_its_place(name: str) -> None:
    data, offset = DAMAGED[name]

    with pytest.raises(MalformedError) as caught:
        read_members(data)

    assert caught.value.offset == offset


def test_a_special_member_of_others_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        read_members(packed((b"/<ECSYMBOLS>/", b"")))


def test_hostile_archives_take_neither_time_nor_memory() -> None:
    many = packed((b"//", b"\n" * 1_000_000 + b"x/\n"), *[(b"/%d" % i, b"") for i in range(20_000)])
    long = packed((b"//", b"x" * 4000 + b"/\n"), *[(b"/0", b"")] * 20_000)
    with at_most(SECONDS):
        with pytest.raises(MalformedError):
            read_members(many)
        members = read_members(long)
        assert len({id(member.name) for member in members}) == 2
        assert same_archive(long, rebuild(long, members, dict.fromkeys(range(1, 20_001), b"new")))


# Writing


@pytest.mark.parametrize(("name", "index"), [(b"/", struct.pack(">I", 1)), (b"/SYM64/", struct.pack(">Q", 1))])
def test_an_index_that_ends_with_the_archive_before_its_symbols_is_damage(name: bytes, index: bytes) -> None:
    data = packed((name, index))

    with pytest.raises(MalformedError):
        rebuild(data, read_members(data), {})
    with pytest.raises(MalformedError):
        same_archive(data, data)


def test_a_rewritten_archive_is_what_ar_makes_of_the_new_files(library: Library) -> None:
    assert library.old != library.new
    assert rewritten(library) == library.new


def test_an_archive_with_nothing_replaced_is_the_same(library: Library) -> None:
    members = read_members(library.old)

    assert rebuild(library.old, members, {}) == library.old
    assert rebuild(library.old, members, {2: members[2].content(library.old)}) == library.old


@pytest.mark.parametrize("position", range(2, 2 + len(FILES)))
def test_one_new_file_leaves_all_others_and_the_index_as_they_are(gnu: Library, tmp_path: Path, position: int) -> None:
    before, after = tmp_path / "before.a", tmp_path / "after.a"
    before.write_bytes(gnu.old)
    after.write_bytes(rewritten(gnu, position))
    news = new_contents(gnu)
    members = read_members(gnu.old)

    expected = [news[i] if i == position else members[i].content(gnu.old) for i in news]
    assert ask("ar", "p", after) == b"".join(expected)
    assert ask("ar", "t", after) == ask("ar", "t", before)
    assert index_by_nm(after) == index_by_nm(before)
    assert ask("nm", after) == ask("nm", before)


def test_the_index_of_a_rewritten_archive_is_what_ranlib_makes(gnu: Library, tmp_path: Path) -> None:
    archive = tmp_path / "lib.a"
    archive.write_bytes(rewritten(gnu, 2, 4))
    ask("ranlib", "-D", archive)

    assert archive.read_bytes() == rewritten(gnu, 2, 4)


@pytest.mark.parametrize("linker", ["bfd", "lld", "mold"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("wide", [False, True], ids=["32", "64"])
def test_a_program_links_with_a_rewritten_archive(
    bench: Bench, library: Library, tmp_path: Path, cc: str, linker: Linker, wide: bool
) -> None:
    if not shutil.which(cc) or not shutil.which(f"ld.{linker}"):
        pytest.skip(f"not installed: {cc} or {linker}")
    printed = []
    for data in (library.old, rewritten(library, 3, 6)):
        (tmp_path / "lib.a").write_bytes(with_wide_index(data) if wide else data)
        ask(cc, f"-fuse-ld={linker}", bench.main, "lib.a", "-o", "program", folder=tmp_path)
        printed.append(ask(tmp_path / "program").decode())

    assert printed == ["3 3 5 4\n", "3 6 10 4\n"]


def test_a_wide_index_follows_as_well(gnu: Library, tmp_path: Path) -> None:
    before, after = tmp_path / "before.a", tmp_path / "after.a"
    data = with_wide_index(gnu.old)
    members = read_members(data)
    before.write_bytes(data)
    after.write_bytes(rebuild(data, members, new_contents(gnu)))

    assert members[0].kind is MemberKind.INDEX64
    assert after.read_bytes() == with_wide_index(gnu.new)
    assert index_by_nm(after) == index_by_nm(before) != []
    assert [change.number for change in same_archive(data, after.read_bytes())] == [2, 3, 4, 6, 7, 8, 9]


def system_archives() -> Iterator[Path]:
    for name in ("libc.a", "libgcc.a", "libc_nonshared.a", "libstdc++.a"):
        path = Path(ask("gcc", f"-print-file-name={name}").decode().strip())
        if path.is_file() and path.read_bytes().startswith(MAGIC):
            yield path


def test_the_machines_own_archives_are_read_and_rewritten(tmp_path: Path) -> None:
    archives = list(system_archives())
    assert archives
    for path in archives:
        data = path.read_bytes()
        members = read_members(data)
        files = [i for i, member in enumerate(members) if member.kind is MemberKind.MEMBER]
        assert [members[i].name for i in files] == ask("ar", "t", path).decode().splitlines()
        assert rebuild(data, members, {}) == data

        chosen = {i: members[i].content(data) + b"\0" * (1 + i % 4) for i in files[::3]}
        after = tmp_path / path.name
        after.write_bytes(rebuild(data, members, chosen))
        assert index_by_nm(after) == index_by_nm(path)
        assert {change.number: change.after for change in same_archive(data, after.read_bytes())} == chosen


def test_an_archive_that_outgrows_its_index_is_refused(gnu: Library) -> None:
    members = list(read_members(gnu.old))
    news = {2: b"new"}
    # Nothing is copied before the places are known, so that no such member has to exist.
    members.insert(2, Member("huge", 1, 61, 1 << 32, MemberKind.MEMBER))

    with pytest.raises(UnsupportedError, match=r"too large for its symbol index.*SYM64"):
        rebuild(gnu.old, members, {3: news[2]})

    wide = with_wide_index(gnu.old)
    members = list(read_members(wide))
    members.insert(2, Member("huge", 1, 61, 1 << 32, MemberKind.MEMBER))
    assert rebuild(wide, members, {3: b"new"})


def test_a_member_that_outgrows_its_header_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="larger than a member can be"):
        rebuild(MAGIC, [Member("huge", 8, 68, 10**10, MemberKind.MEMBER)], {})


@pytest.mark.parametrize(
    "index",
    [
        b"",
        bytes(3),
        struct.pack(">II", 2, 80),
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">II", 1, 81) + b"name\0",
        struct.pack(">II", 1, 0xFFFFFFFF) + b"name\0",
    ],
    ids=["none", "short", "fewer", "very many", "beside", "past the end"],
)
@pytest.mark.parametrize("wide", [False, True], ids=["32", "64"])
def test_a_damaged_index_is_told_when_it_has_to_follow(index: bytes, wide: bool) -> None:
    if wide:
        words = (index[i : i + 4] for i in range(0, len(index) & ~3, 4))
        index = b"".join(bytes(4) + word for word in words)
    data = packed((b"/SYM64/" if wide else b"/", index), (b"a/", b"content"))
    members = read_members(data)

    with pytest.raises(MalformedError) as caught:
        rebuild(data, members, {1: b"new"})

    assert caught.value.offset == 68
    with pytest.raises(MalformedError):
        same_archive(data, data)
