"""What has to hold of the repository before it is released."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.version import InvalidVersion, Version

from release import changelog
from release.commands import run


def version_of(root: Path) -> str:
    """The version that a tree has, from the one place that says it: a plain text search, so nothing is imported."""
    for line in (root / "staticcall/__init__.py").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "__version__":
            return value.strip().strip("\"'")
    raise LookupError("staticcall/__init__.py has no __version__")


def commit_time(root: Path) -> str:
    """When the commit was made, in seconds since 1970, for SOURCE_DATE_EPOCH."""
    return run("git", "-C", root, "log", "-1", "--format=%ct").strip()


def problems(root: Path) -> Iterator[str]:
    """Everything that stands in the way of a release, one sentence each."""
    version = version_of(root)
    yield from tree_problems(root)
    yield from version_problems(version, run("git", "-C", root, "tag", "--list").split())
    yield from changelog_problems(version, (root / "CHANGELOG.md").read_text())


def tree_problems(root: Path) -> Iterator[str]:
    """A release is made of what is committed."""
    changed = run("git", "-C", root, "status", "--porcelain").splitlines()
    if changed:
        yield f"the tree has {len(changed)} changes that are not committed, {changed[0].split()[-1]} for one"


def version_problems(version: str, tags: Sequence[str]) -> Iterator[str]:
    """A version is newer than every version that was tagged; tags that are no versions do not count."""
    released = sorted(tagged for tag in tags if (tagged := _version(tag.removeprefix("v"))) is not None)
    present = _version(version)
    if present is None:
        yield f"{version} is no version"
    elif released and present <= released[-1]:
        yield f"{version} is not newer than {released[-1]}, which is tagged"


def changelog_problems(version: str, text: str) -> Iterator[str]:
    """The changelog has its shape, and says what this version brings."""
    yield from changelog.problems(text)
    told = [section for section in changelog.sections(text) if section.name in {version, changelog.UNRELEASED}]
    if not any(section.entries for section in told):
        yield f"the changelog says nothing about {version}"


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None
