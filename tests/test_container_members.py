"""Members of packages, archives and initramfs are read by their names, or one after the other, and never written."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from staticcall.errors import InputError, MalformedError, StaticcallError, UnsupportedError
from staticcall.model.container import Member, MemberOf
from staticcall.read.inputs import container_at, each_member, members_of, open_input, sha256_of_input, split_member
from tests.support.containers import EACH, compressed, cpio, package, through
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import digest, report, staticcall, succeed

pytestmark = pytest.mark.usefixtures("packers")

PACKED = ("xz", "zstd", "gzip", "none")


@pytest.fixture(scope="module")
def elf(built: Builder) -> Path:
    return built("calls", "pie")


@pytest.fixture(scope="module")
def tree(elf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package would install: programs in all forms, links to them, and other files."""
    root = tmp_path_factory.mktemp("tree")
    folder = root / "usr" / "lib"
    folder.mkdir(parents=True)
    (folder / "plain").write_bytes(elf.read_bytes())
    (folder / "module.ko.xz").write_bytes(compressed("xz-module", elf.read_bytes()))
    (folder / "module.ko.zst").write_bytes(compressed("zstd", elf.read_bytes()))
    (folder / "module.lz4").write_bytes(compressed("lz4-legacy", elf.read_bytes()))
    (folder / "changelog.gz").write_bytes(compressed("gzip", b"nothing but text\n" * 100))
    (folder / "notes.txt").write_bytes(b"text")
    (folder / "empty").touch()
    (folder / "with (brackets)").write_bytes(elf.read_bytes())
    (folder / "a-name-that-is-so-long-that-no-header-has-room-for-it" / ("x" * 90)).mkdir(parents=True)
    (folder / "relative").symlink_to("plain")
    (folder / "absolute").symlink_to("/usr/lib/relative")
    (folder / "above").symlink_to("../lib/module.ko.xz")
    (folder / "nowhere").symlink_to("missing")
    (folder / "round").symlink_to("round")
    (folder / "second-name").hardlink_to(folder / "plain")
    return root


CANDIDATES = {"plain", "second-name", "module.ko.xz", "module.ko.zst", "module.lz4", "with (brackets)"}


@pytest.fixture(scope="module")
def packages(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tree in each archive that there is, by a name for it."""
    folder = tmp_path_factory.mktemp("packages")
    made = {form: package(tree, folder / f"{form}.deb", form) for form in PACKED}
    early = folder / "early"
    (early / "kernel" / "x86").mkdir(parents=True)
    (early / "kernel" / "x86" / "microcode.bin").write_bytes(bytes(range(256)) * 9)
    main, first = cpio(tree), cpio(early)
    parts = {
        "cpio": main,
        "crc": cpio(tree, "crc"),
        "zstd-cpio": compressed("zstd", main),
        "initrd": first + bytes(512) + compressed("zstd", main),
        "initrd-parts": first + compressed("xz", first) + bytes(8) + compressed("gzip", main + bytes(32) + first),
    }
    for name, data in parts.items():
        made[name] = folder / name
        made[name].write_bytes(data)
    return made


ARCHIVES = (*PACKED, "cpio", "crc", "zstd-cpio", "initrd", "initrd-parts")


def inside(name: str) -> bytes:
    with open_input(Path(name)) as (source, _):
        return source.whole()


# One member


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("form", ["{}", "./{}", "/{}"])
def test_a_member_is_read_by_its_name(name: str, form: str, packages: dict[str, Path], elf: Path) -> None:
    for member in sorted(CANDIDATES):
        path = f"{packages[name]}({form.format(f'usr/lib/{member}')})"
        assert inside(path) == elf.read_bytes(), path


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("link", ["relative", "absolute", "above"])
def test_links_are_followed_within_the_archive(name: str, link: str, packages: dict[str, Path], elf: Path) -> None:
    assert inside(f"{packages[name]}(usr/lib/{link})") == elf.read_bytes()


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("usr/lib/nowhere", "has no member usr/lib/nowhere"),
        ("usr/lib/round", "is a link to a link, and so on"),
        ("usr/lib", "is no regular file"),
        ("usr/lib/plan", "has no member usr/lib/plan: the nearest are usr/lib/plain"),
        ("module.ko.xz", "has no member module.ko.xz: the nearest are usr/lib/module.ko.xz"),
        ("", "has no member"),
        ("../../etc/passwd", "has no member"),
    ],
)
def test_what_is_no_file_is_refused(name: str, member: str, message: str, packages: dict[str, Path]) -> None:
    if member == "usr/lib" and packages[name].suffix == ".deb":
        message = "has no member usr/lib"
    outcome = staticcall("report", f"{packages[name]}({member})")

    assert outcome.code == 3
    assert outcome.err.startswith(f"staticcall: {packages[name]}({member}): ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_report_names_the_member(packages: dict[str, Path], elf: Path) -> None:
    path = f"{packages['xz']}(./usr/lib/module.ko.xz)"
    image = report(path, "--hash")

    assert image["path"] == path
    assert image["container"] == ["deb", "xz"]
    assert image["sites"] == report(elf)["sites"]


@pytest.mark.parametrize("name", ["xz", "initrd"])
def test_a_report_on_all_members_has_the_hash_of_each(name: str, packages: dict[str, Path], tree: Path) -> None:
    lines = succeed("report", "--format", "jsonl", "--hash", "--fail-on", "never", packages[name]).splitlines()
    start = f"{packages[name]}("
    hashes = {image["path"].removeprefix(start)[:-1]: image["sha256"] for image in map(json.loads, lines)}

    assert len(hashes) > 1
    assert hashes == {member: digest(tree / member) for member in hashes}


def test_layers_say_which_member(packages: dict[str, Path]) -> None:
    with open_input(Path(f"{packages['initrd']}(usr/lib/relative)")) as (_, layers):
        assert layers == (Member(MemberOf.CPIO, "usr/lib/plain"),)


def test_a_digest_is_that_of_the_member_as_it_stands(packages: dict[str, Path], tree: Path) -> None:
    member = tree / "usr/lib/module.ko.xz"

    assert sha256_of_input(Path(f"{packages['zstd']}(usr/lib/module.ko.xz)")) == digest(member)
    assert sha256_of_input(member) == digest(member)


def test_a_member_of_a_member_is_named_in_its_turn(packages: dict[str, Path], elf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "boot"
    folder.mkdir()
    shutil.copy(packages["initrd"], folder / "initrd.img")
    outer = package(tmp_path, tmp_path.parent / f"{tmp_path.name}.deb", "xz")

    assert inside(f"{outer}(boot/initrd.img)(usr/lib/module.ko.zst)") == elf.read_bytes()
    assert inside(f"{outer}(boot/initrd.img)(usr/lib/with (brackets))") == elf.read_bytes()
    with pytest.raises(InputError, match="has no member x"):
        inside(f"{outer}(boot/initrd.img)(x)")


def test_a_file_of_this_very_name_comes_first(packages: dict[str, Path], tmp_path: Path, elf: Path) -> None:
    name = tmp_path / "package.deb(member)"
    shutil.copy(packages["xz"], tmp_path / "package.deb")
    assert split_member(name) == (tmp_path / "package.deb", "member")

    name.write_bytes(elf.read_bytes())

    assert split_member(name) == (name, None)
    assert inside(str(name)) == elf.read_bytes()


def test_a_name_without_a_file_is_no_member(tmp_path: Path) -> None:
    outcome = staticcall("report", tmp_path / "missing.deb(member)")

    assert outcome.code == 3
    assert "cannot be opened" in outcome.err


def test_only_archives_have_members(elf: Path) -> None:
    with pytest.raises(InputError, match="is no archive"):
        inside(f"{elf}(member)")


def test_an_object_of_an_archive_is_read(made: Objects, tmp_path: Path) -> None:
    archive = tmp_path / "lib.a"
    shutil.copy(made("calls"), tmp_path / "calls.o")
    through(("ar", "rcs", str(archive), "calls.o"), b"", tmp_path)

    image = report(f"{archive}(calls.o)")

    assert image["container"] == ["archive"]
    assert image["sites"] == report(made("calls"))["sites"]


# All members


@pytest.mark.parametrize("name", ARCHIVES)
def test_each_member_that_could_hold_calls_is_given_once(name: str, packages: dict[str, Path], tree: Path) -> None:
    found = dict(each_member(packages[name]))
    names = {path.removeprefix("./usr/lib/").removeprefix("usr/lib/") for path in found}

    # Of names of one file some archives have the content once only.
    assert names | {"plain", "second-name"} == CANDIDATES
    assert names & {"plain", "second-name"}
    assert all((tree / path).read_bytes() == content for path, content in found.items())


@pytest.mark.parametrize("name", ARCHIVES)
def test_all_names_are_those_that_the_programs_list(name: str, packages: dict[str, Path]) -> None:
    path = packages[name]
    if path.suffix == ".deb":
        tar = through(("dpkg-deb", "--fsys-tarfile", str(path)), b"")
        wanted = through(("tar", "-t"), tar).decode().splitlines()
        folders = [line for line in wanted if line.endswith("/")]
        assert {entry.name for entry in members_of(path)} == {*wanted} - {*folders}
    elif name in ("cpio", "crc"):
        wanted = through(("cpio", "-t", "--quiet"), path.read_bytes()).decode().splitlines()
        assert [entry.name for entry in members_of(path)] == wanted


def test_an_archive_is_told_by_its_content(packages: dict[str, Path], elf: Path) -> None:
    kinds = {name: container_at(path) for name, path in packages.items()}

    assert {kinds[name] for name in PACKED} == {MemberOf.DEB}
    assert kinds["initrd"] is MemberOf.CPIO
    assert container_at(elf) is None
    assert container_at(Path(f"{packages['xz']}(usr/lib/plain)")) is None


@pytest.mark.parametrize("name", EACH)
def test_an_initramfs_is_told_whatever_its_blocks(name: str, elf: Path, tmp_path: Path) -> None:
    """Some codecs say nothing before they have megabytes."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "1").write_bytes(random.Random(name).randbytes(1_000_000))  # noqa: S311 - no secret
    (folder / "2").write_bytes(elf.read_bytes())
    path = tmp_path / "initrd"
    path.write_bytes(compressed(name, cpio(folder)))

    assert list(each_member(path)) == [("2", elf.read_bytes())]
    assert inside(f"{path}(2)") == elf.read_bytes()


def test_of_an_archive_in_a_compressed_file_a_member_has_to_be_named(packages: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedError, match="holds many files"):
        inside(str(packages["zstd-cpio"]))


# Damage


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_truncated_archive_is_refused(name: str, packages: dict[str, Path], tmp_path: Path) -> None:
    data = packages[name].read_bytes()
    cut = tmp_path / "cut"
    for part in (0.3, 0.6, 0.9):
        cut.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InputError):
            list(each_member(cut))


@pytest.mark.parametrize("name", ARCHIVES)
def test_damage_is_one_error_or_none(name: str, packages: dict[str, Path], tmp_path: Path) -> None:
    chance = random.Random(name)  # noqa: S311 - no secret
    data = packages[name].read_bytes()
    path = tmp_path / "damaged"
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[chance.randrange(8, len(data) if chance.random() < 0.5 else 400)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            list(each_member(path))
        except StaticcallError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"070701" + b"z" * 104, "no number"),
        (b"070701" + b"0" * 104, "name of 0 bytes"),
        (b"070701" + b"0" * 88 + b"FFFFFFFF" + b"0" * 8, "name of 4294967295 bytes"),
        (b"070701", "ends inside of a header"),
        (b"!<arch>\ndebian-binary   ", "ends inside of a header"),
        (b"!<arch>\ndebian-binary   " + b"0           0     0     100644  x         `\n", "no header"),
        (b"!<arch>\ndebian-binary   " + b"0           0     0     100644  9         `\n", "ends inside of a file"),
        (b"!<arch>\ndebian-binary   " + b"0           0     0     100644  4         `\n2.0\n", "has no data.tar"),
    ],
)
def test_headers_that_cannot_be_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.write_bytes(data)

    with pytest.raises(MalformedError, match=message):
        list(each_member(path))


def _tar_header(kind: bytes, size: bytes) -> bytes:
    header = bytearray(512)
    header[:1], header[100:108], header[124:136] = b"a", b"0000644\0", size
    header[148:156], header[156:157], header[257:265] = b" " * 8, kind, b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _number(value: int) -> bytes:
    """A size as GNU tar writes those that have no room as text; it may be negative."""
    return bytes([0xFF if value < 0 else 0x80]) + (value & ((1 << 88) - 1)).to_bytes(11, "big")


@pytest.mark.parametrize("kind", [b"0", b"5", b"L", b"K", b"S", b"x", b"g"])
@pytest.mark.parametrize("size", [-(1 << 80), -512, -1, 2, 512, 1 << 40, (1 << 87) - 1])
def test_no_header_of_a_tar_file_hangs_or_crashes_it(kind: bytes, size: int, tmp_path: Path) -> None:
    """The standard library follows some of them into each other, as deep as its stack is."""
    block = b"\0".rjust(512, b"9") if kind == b"L" else b"11 path=ab\n".ljust(512, b"\0")
    tar = (_tar_header(kind, _number(size)) + block) * 3000
    parts = {b"debian-binary": b"2.0\n", b"control.tar": b"", b"data.tar": tar}
    path = tmp_path / "made.deb"
    path.write_bytes(
        b"!<arch>\n"
        + b"".join(
            name.ljust(16) + b"0           0     0     100644  " + str(len(data)).encode().ljust(10) + b"`\n" + data
            for name, data in parts.items()
        )
    )

    try:
        list(each_member(path))
    except InputError as error:
        assert "\n" not in str(error)


def test_a_package_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with (root / "zeros").open("wb") as file:
        file.truncate(300 << 20)
    bomb = tmp_path / "bomb.deb"
    subprocess.run(["dpkg-deb", "-Zzstd", "-z1", "--root-owner-group", "-b", _with_control(root), bomb], check=True)

    with pytest.raises(UnsupportedError, match="more than 268,435,456 bytes"):
        list(each_member(bomb))


def _with_control(root: Path) -> Path:
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN").chmod(0o755)
    control = "Package: made\nVersion: 1\nArchitecture: amd64\nMaintainer: M <m@example.org>\nDescription: made\n"
    (root / "DEBIAN" / "control").write_text(control)
    return root


def test_nothing_is_written_beside_an_archive(packages: dict[str, Path]) -> None:
    before = sorted(packages["xz"].parent.iterdir())
    succeed("report", f"{packages['xz']}(usr/lib/module.ko.xz)")

    assert sorted(packages["xz"].parent.iterdir()) == before
