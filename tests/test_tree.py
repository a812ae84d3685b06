"""Folders, packages and initramfs as inputs: every file in them that may have static calls, and one summary."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from staticcall.model.sites import Policy
from staticcall.pipeline.batch import render_parts
from staticcall.pipeline.forms import Format
from staticcall.pipeline.look import Look
from staticcall.pipeline.tree import in_parts, inputs_in, summary_of, survey_files, survey_of
from tests.support.objects import Objects
from tests.support.tool import Json, Outcome, report, staticcall, succeed, validate

GOOD = ("a/calls.o", "a/deep/tail.ko.xz", "b/lib.a", "b/none.ko", "b/old.gz")


@pytest.fixture(scope="module")
def good(made: Objects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects in a tree, as they are, compressed and in an archive, and other files beside them."""
    root = tmp_path_factory.mktemp("tree") / "root"
    for folder in ("a/deep", "b", "empty"):
        (root / folder).mkdir(parents=True)
    calls, tail = made("calls", "gcc"), made("tail_calls", "gcc")
    shutil.copy(calls, root / "a/calls.o")
    (root / "a/deep/tail.ko.xz").write_bytes(lzma.compress(tail.read_bytes()))
    subprocess.run(["ar", "rcs", root / "b/lib.a", calls, tail], check=True)
    subprocess.run(["as", "-o", root / "b/none.ko", "-"], input=b"nop\n", check=True)
    (root / "b/old.gz").write_bytes(gzip.compress(calls.read_bytes()))
    # What is passed over.
    (root / "modules.dep").write_text("kernel/a.ko:\n")
    (root / "b/notes.gz").write_bytes(gzip.compress(b"no object\n"))
    (root / "b/cut.xz").write_bytes(lzma.compress(b"no object\n")[:-9])
    (root / "b/other.o").write_bytes(calls.read_bytes()[:18] + b"\xb7\0" + calls.read_bytes()[20:])
    (root / "empty/file").touch()
    os.mkfifo(root / "a/pipe")
    (root / "a/again").symlink_to(root)
    (root / "a/again.o").symlink_to(root / "a/calls.o")
    return root


def images(*arguments: str | Path) -> list[Json]:
    return [json.loads(line) for line in succeed("report", "--format", "jsonl", *arguments).splitlines()]


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, (pattern, text)
    return int(found[1].replace(",", ""))


def test_all_files_of_a_tree_are_reported_as_if_they_were_named_one_by_one(good: Path) -> None:
    found = images(good)

    assert found == [image for name in GOOD for image in images(good / name)]
    assert [image["path"] for image in found] == [
        *(f"{good}/{name}" for name in GOOD[:2]),
        f"{good}/b/lib.a(calls-gcc.o)",
        f"{good}/b/lib.a(tail_calls-gcc.o)",
        *(f"{good}/{name}" for name in GOOD[3:]),
    ]


def test_the_summary_adds_up_what_is_reported_of_each_file(good: Path) -> None:
    found, text = images(good), succeed("report", good)

    sites = [site for image in found for site in image["sites"]]
    assert number(r"([\d,]+) sites,", text) == len(sites) > 0
    assert number(r"([\d,]+) keys by", text) == len({key["name"] for image in found for key in image["keys"]})
    for verdict in ("direct", "trampoline", "undecided"):
        assert number(rf"\n  {verdict} +([\d,]+) ", text) == sum(site["verdict"] == verdict for site in sites)
    for reason in {site["reason"] for site in sites}:
        assert number(rf"\n    {reason} +([\d,]+) ", text) == sum(site["reason"] == reason for site in sites)
    for form in {site["form"] for site in sites}:
        assert number(rf"\n  {form} +([\d,]+) ", text) == sum(site["form"] == form for site in sites)
    assert number(r"crossing a line\) +([\d,]+) ", text) == sum(image["summary"]["crossing"] for image in found)
    assert number(r"findings \(([\d,]+)\)", text) == sum(
        finding["code"] != "no-static-calls" for image in found for finding in image["findings"]
    )
    assert "  6 files read: 5 with static calls, 1 without\n" in text
    assert "unpacked: gzip 1, xz 1\n" in text
    assert "names by: symtab 5, none 1\n" in text


def test_other_files_are_counted_and_links_are_not_followed(good: Path) -> None:
    assert "\n  5 other files skipped\n" in succeed("report", good)


def test_a_file_without_static_calls_is_no_finding_in_a_tree(good: Path) -> None:
    assert staticcall("report", "--fail-on", "note", good / "b/none.ko").code == 1
    assert staticcall("report", "--fail-on", "note", good / "empty").code == 0
    (lonely := good.with_name("lonely")).mkdir(exist_ok=True)
    shutil.copy(good / "b/none.ko", lonely)
    for form in ("text", "json", "jsonl"):
        assert staticcall("report", "--fail-on", "note", "--format", form, lonely).code == 0


def test_a_verbose_summary_has_a_line_for_each_file(good: Path) -> None:
    lines = [line.split() for line in succeed("report", "-v", good).split("\n\n")[0].splitlines()]

    assert lines[0] == ["sites", "direct", "keys", "findings", "file"]
    assert [(int(sites), int(direct), path) for sites, direct, *_, path in lines[1:]] == [
        (image["summary"]["sites"], image["summary"]["direct"], image["path"]) for image in images(good)
    ]


def test_json_of_a_tree_is_one_document(good: Path) -> None:
    document = json.loads(succeed("report", "--format", "json", good))

    validate(document, "report")
    assert document["images"] == images(good)


def test_files_and_trees_may_be_mixed(good: Path) -> None:
    alone = succeed("report", good / "a/calls.o")

    assert succeed("report", good / "b", good / "a/calls.o") == alone + "\n" + succeed("report", good / "b")
    assert len(images(good / "b", good / "a")) == len(images(good))


@pytest.fixture
def damaged(good: Path, tmp_path: Path) -> Path:
    """The same tree with files that should be modules, or begin like objects, and are broken."""
    root = tmp_path / "damaged"
    shutil.copytree(good, root, symlinks=True, ignore=shutil.ignore_patterns("pipe"))
    whole = (root / "a/calls.o").read_bytes()
    (root / "a/cut.o").write_bytes(whole[: len(whole) // 2])
    (root / "a/header.o").write_bytes(whole[:10])
    (root / "b/cut.ko.xz").write_bytes((root / "a/deep/tail.ko.xz").read_bytes()[:-50])
    (root / "b/empty.ko").touch()
    (root / "b/text.ko").write_text("no module\n")
    return root


def _without(outcome: Outcome, root: Path) -> tuple[int, str, str]:
    return outcome.code, outcome.out.replace(str(root), ""), outcome.err.replace(str(root), "")


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_damaged_files_are_said_and_the_others_reported(damaged: Path, good: Path, form: str) -> None:
    code, out, err = _without(staticcall("report", "--format", form, damaged), damaged)

    assert code == 3
    told = [line.split(": ")[1] for line in err.splitlines()]
    assert told == ["/a/cut.o", "/a/header.o", "/b/cut.ko.xz", "/b/empty.ko", "/b/text.ko"]
    expected = _without(staticcall("report", "--format", form, good), good)[1]
    assert out == expected.replace("files skipped\n", "files skipped, 5 failed\n")


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_the_number_of_processes_makes_no_difference(damaged: Path, form: str) -> None:
    many = damaged / "many"
    many.mkdir()
    for copy in range(60):
        shutil.copy(damaged / "a/calls.o", many / f"{copy}.o")
    one = staticcall("report", "-v", "--format", form, damaged)

    assert one.out
    assert staticcall("report", "-v", "--format", form, "-j", "3", damaged) == one


def test_a_folder_that_cannot_be_read_is_said(good: Path, tmp_path: Path) -> None:
    # Root may read everything, but not a path that is too long to name.
    deep, here = tmp_path / "deep", Path.cwd()
    deep.mkdir()
    shutil.copy(good / "a/calls.o", deep)
    try:
        os.chdir(deep)
        for _ in range(20):
            Path("n" * 250).mkdir()
            os.chdir("n" * 250)
    finally:
        os.chdir(here)
    outcome = staticcall("report", deep)

    assert outcome.code == 3
    assert outcome.err.count("\n") == 1
    assert "cannot be read: File name too long" in outcome.err
    assert "1 file read" in outcome.out


def test_a_tree_without_such_files_is_no_error(good: Path) -> None:
    assert "  0 files read: 0 with static calls, 0 without\n  1 other file skipped\n" in succeed(
        "report", good / "empty"
    )
    assert succeed("report", "--format", "jsonl", good / "empty") == ""


def _packed(good: Path, folder: Path, kind: str) -> Path:
    tree = folder / "tree"
    shutil.copytree(good, tree / "lib", symlinks=True, ignore=shutil.ignore_patterns("pipe", "again", "lib.a"))
    if kind == "deb":
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            "Package: some\nVersion: 1\nArchitecture: amd64\nMaintainer: none <none@example.org>\nDescription: some\n"
        )
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, folder / "some.deb"], check=True)
        return folder / "some.deb"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    packed = subprocess.run(["cpio", "-o", "-H", "newc"], cwd=tree, input=names.encode(), stdout=-1, check=True).stdout
    (folder / kind).write_bytes(packed if kind == "cpio" else gzip.compress(packed))
    return folder / kind


@pytest.mark.usefixtures("packers")
@pytest.mark.parametrize("kind", ["deb", "cpio", "cpio.gz"])
def test_of_a_package_or_an_initramfs_all_files_are_read(good: Path, tmp_path: Path, kind: str) -> None:
    archive = _packed(good, tmp_path, kind)

    found = {image["path"]: image for image in images(archive)}
    names = [name for name in GOOD if name != "b/lib.a"]
    for name in names:
        (own,) = (image for path, image in found.items() if path.endswith(f"lib/{name})"))
        assert own["sites"] == report(good / name)["sites"]
    assert len(found) == len(names)
    assert "4 files read: 3 with static calls, 1 without" in succeed("report", archive)


@pytest.mark.parametrize("form", [Format.TEXT, Format.JSONL])
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_any_executor_gives_what_one_process_gives(damaged: Path, kind: str, form: Format) -> None:
    look, parts = Look(), [(one,) for one in inputs_in(str(damaged))]

    def run(executor: Executor | None) -> object:
        if form is Format.TEXT:
            survey = survey_of(survey_files(parts, look, verbose=True, executor=executor))
            return summary_of("", survey, Policy()), survey.failures
        return list(render_parts(parts, look, form, executor=executor))

    # A process that is forked while threads run may wait for a lock that none of them will give back.
    pool = ThreadPoolExecutor(3) if kind == "threads" else ProcessPoolExecutor(2, get_context("spawn"))
    with pool as executor:
        assert run(executor) == run(None)


def test_parts_are_small_and_hold_every_file(good: Path) -> None:
    inputs = list(inputs_in(str(good)))
    parts = in_parts(inputs * 10)

    assert [one for part in parts for one in part] == inputs * 10
    assert max(map(len, parts)) < len(inputs) * 10
