"""The release's checks: what they let pass, and what they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import staticcall
from release import build, changelog, checks, environment, sbom
from release.commands import ReleaseError
from tests.support.wheelhouse import ROOT, execute

GOOD = """# Changelog

## [Unreleased]

### Added
- One thing,
  told in two lines.

## [1.10.0] - 2024-02-29

### Fixed
- Another.

## 1.9.0 - 2024-02-29

### Removed
- A third.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small repository, all committed."""
    root = tmp_path / "repository"
    (root / "staticcall").mkdir(parents=True)
    (root / "staticcall/__init__.py").write_text('"""It."""\n\n__version__ = "1.11.0"\n')
    (root / "CHANGELOG.md").write_text(GOOD)
    _git(root, "init", "--quiet")
    _commit(root)
    return root


def _git(root: Path, *arguments: str) -> None:
    execute("git", "-C", root, "-c", "user.name=tester", "-c", "user.email=tester@localhost", *arguments)


def _commit(root: Path) -> None:
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", "a state")


# ---- the changelog ----


def test_this_changelog_has_its_shape_and_tells_of_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()

    assert list(checks.changelog_problems(staticcall.__version__, text)) == []


def test_a_changelog_is_read_section_by_section() -> None:
    newest, tenth, ninth = changelog.sections(GOOD)

    assert newest == ("Unreleased", "", {"Added": ["One thing, told in two lines."]})
    assert tenth == ("1.10.0", "2024-02-29", {"Fixed": ["Another."]})
    assert ninth.name == "1.9.0"
    assert list(changelog.problems(GOOD)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("# Changelog", "Changes", "no title"),
        ("## [Unreleased]", "## 1.11.0 - 2024-03-01", "the first section is not Unreleased"),
        ("## [Unreleased]", "## Unreleased - 2024-03-01", "Unreleased has a date"),
        ("[1.10.0] - 2024-02-29", "[1.10.0]", "1.10.0 has no date"),
        ("[1.10.0] - 2024-02-29", "[1.10.0] - 2023-02-29", "1.10.0 has no date"),
        ("[1.10.0] - 2024-02-29", "[1.10.0] - 29.02.2024", "1.10.0 has no date"),
        ("[1.10.0] - 2024-02-29", "[1.8.0] - 2024-02-29", "1.8.0 stands over 1.9.0"),
        ("[1.10.0] - 2024-02-29", "[1.10.0] - 2024-02-28", "1.10.0 stands over 1.9.0"),
        ("## [1.10.0]", "## [next]", "next is no version"),
        ("### Removed", "### Gone", "has a heading 'Gone'"),
        ("- A third.\n", "", "1.9.0 has nothing under Removed"),
        ("### Fixed\n- Another.\n", "", "1.10.0 has no entries"),
    ],
)
def test_what_is_wrong_with_a_changelog_is_named(old: str, new: str, problem: str) -> None:
    assert old in GOOD

    found = list(changelog.problems(GOOD.replace(old, new, 1)))

    assert len(found) == 1
    assert problem in found[0]


def test_a_version_that_the_changelog_does_not_tell_of_is_named() -> None:
    silent = GOOD.replace("### Added\n- One thing,\n  told in two lines.\n", "")

    assert list(checks.changelog_problems("1.11.0", GOOD)) == []
    assert list(checks.changelog_problems("1.10.0", silent)) == []
    assert list(checks.changelog_problems("1.11.0", silent)) == ["the changelog says nothing about 1.11.0"]


# ---- the repository ----


def test_a_repository_that_is_ready_has_no_problems(repository: Path) -> None:
    _git(repository, "tag", "v1.10.0")
    _git(repository, "tag", "before-the-move")

    assert checks.version_of(repository) == "1.11.0"
    assert list(checks.problems(repository)) == []
    assert checks.commit_time(repository).isdigit()


@pytest.mark.parametrize("name", ["new.py", "staticcall/__init__.py"])
def test_what_is_not_committed_is_named(repository: Path, name: str) -> None:
    with (repository / name).open("a") as file:
        file.write("# more\n")

    (problem,) = checks.problems(repository)

    assert "not committed" in problem
    assert name in problem


# As texts, 1.9.0 is the newest of all.
@pytest.mark.parametrize("tags", [("v1.11.0",), ("1.11.0",), ("v1.9.0", "v2.0.0"), ("v1.9.0", "v1.11.0.post1")])
def test_a_version_that_is_not_newer_is_named(repository: Path, tags: tuple[str, ...]) -> None:
    for tag in tags:
        _git(repository, "tag", tag)

    (problem,) = checks.problems(repository)

    assert "1.11.0 is not newer than" in problem


def test_the_version_is_said_once() -> None:
    assert checks.version_of(ROOT) == staticcall.__version__


# ---- what is made ----


def test_sums_are_what_sha256sum_reads(tmp_path: Path) -> None:
    for name in ("b.whl", "a.tar.gz"):
        (tmp_path / name).write_bytes(name.encode())

    sums = build.write_sums(tmp_path.iterdir(), tmp_path)

    assert execute("sha256sum", "--check", "--strict", sums.name, cwd=tmp_path) == "a.tar.gz: OK\nb.whl: OK\n"


def test_a_release_replaces_the_one_before_and_no_other_file(tmp_path: Path) -> None:
    folder, made = tmp_path / "dist", tmp_path / "made"
    for place, names in (
        (folder, ("staticcall-1.0.0.tar.gz", "SHA256SUMS", "mine.whl")),
        (made, ("staticcall-1.1.0.tar.gz",)),
    ):
        place.mkdir()
        for name in names:
            (place / name).write_text(name)

    copied = build.publish(made.iterdir(), folder)

    assert {path.name for path in folder.iterdir()} == {"staticcall-1.1.0.tar.gz", "SHA256SUMS", "mine.whl"}
    assert [path.name for path in copied] == ["staticcall-1.1.0.tar.gz", "SHA256SUMS"]
    assert "1.1.0" in copied[-1].read_text()


def test_builds_that_differ_are_told(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [tmp_path / name for name in ("a.whl", "a.tar.gz", "other/a.whl", "other/a.tar.gz")]
    for path in paths:
        path.write_text("the same")
    first, second = build.Distributions(*paths[:2]), build.Distributions(*paths[2:])

    build.require_same(first, second, "again")
    second.sdist.write_text("not same")

    with pytest.raises(ReleaseError, match=r"a\.tar\.gz is not the same again"):
        build.require_same(first, second, "again")


def test_the_locked_versions_become_constraints(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text(
        "one==1.0 \\\n    --hash=sha256:00\ntwo[more]==2.0 ; python_version < '4' \\\n    --hash=sha256:11\n"
    )

    assert environment.pins(lock, tmp_path / "pins").read_text() == "one==1.0\ntwo==2.0\n"


@pytest.mark.parametrize("line", ["Some.Thing==2.0", "other==1.0", ""])
def test_a_version_that_is_not_locked_is_told(tmp_path: Path, line: str) -> None:
    lock = tmp_path / "requirements.lock"
    bill = json.dumps({"components": [{"name": "some-thing", "version": "1.0"}]})

    lock.write_text("Some.Thing==1.0\n")
    sbom.require_locked(bill, lock)
    lock.write_text(line)

    with pytest.raises(ReleaseError, match=r"some-thing 1\.0 was installed"):
        sbom.require_locked(bill, lock)


def test_a_program_that_is_not_what_was_built_is_told(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program

    with pytest.raises(ReleaseError, match=r"says that it is"):
        environment.smoke(Path(program), ROOT, tmp_path, "1.0.0")
