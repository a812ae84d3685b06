"""Two files, reports or trees, held against each other."""

from __future__ import annotations

import os
from dataclasses import dataclass

from staticcall.api.requests import PolicyWord, path_of, policy_of
from staticcall.errors import StrPath, UsageError, printable
from staticcall.model.diff import Diff as Difference
from staticcall.model.diff import ImageDiff, ImageFacts, Side
from staticcall.model.sites import Policy, PolicyName
from staticcall.pipeline.forms import Show
from staticcall.pipeline.look import Look


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """What differs between two sides, by names: addresses move from build to build.

    Attributes:
        old: The old side: its path, and the counts of all that is in it.
        new: The new side.
        added: Images that only the new side has.
        lost: Images that only the old side has.
        images: Images of both with changes: keys and sites added and lost, keys that lead elsewhere, sites of
            another form or with another verdict.
        policy: The policy by which both were judged.
    """

    old: Side
    new: Side
    added: tuple[ImageFacts, ...]
    lost: tuple[ImageFacts, ...]
    images: tuple[ImageDiff, ...]
    policy: Policy

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return self._difference().equal

    def to_json(self) -> str:
        """The difference as one JSON document, as `staticcall diff --format json` prints it.

        Returns:
            The text, with a newline at its end.

        Examples:
            >>> import json
            >>> json.loads(staticcall.diff("demo", "demo").to_json())["equal"]
            True
        """
        from staticcall.pipeline.diff import render_diff_json  # noqa: PLC0415 - for who asks

        return "".join(render_diff_json(self._difference(), self.policy))

    def render(self, format: str = "text", *, verbose: bool = False) -> str:  # noqa: A002 - as the CLI has it
        """The difference as `text` for a person, or as `json`.

        Args:
            format: `text` or `json`.
            verbose: Of text, all of it and not only the first of what there is much of.

        Returns:
            The whole text.

        Raises:
            UsageError: There is no such format.

        Examples:
            >>> print(staticcall.diff("demo", "demo").render())
            no difference: 1 image, 2 keys, 3 sites
        """
        if format == "json":
            return self.to_json()
        if format != "text":
            raise UsageError(f"there is no format {format!r} of a difference", advice="known are text and json")
        from staticcall.pipeline.diff import shown  # noqa: PLC0415 - for who asks

        return "".join(shown(self._difference(), Show(verbose)))

    def _difference(self) -> Difference:
        return Difference(self.old, self.new, self.added, self.lost, self.images)

    def __repr__(self) -> str:
        changes = sum(image.changes for image in self.images) + len(self.added) + len(self.lost)
        return printable(f"<Diff of {self.old.path} and {self.new.path}: changes {changes:,}>")


def diff(
    old: StrPath,
    new: StrPath,
    *,
    policy: PolicyName | PolicyWord = PolicyName.LUTOMIRSKI,
    line: int = 64,
    scan: bool = False,
    jobs: int = 1,
) -> Diff:
    """What changed from one build to another.

    Args:
        old: A report in JSON or JSON Lines, a file that `open` reads, or a folder or package with such files.
        new: The other one, of any of these kinds.
        policy: The policy by which sites are judged; a report brings its own along, which comes first.
        line: Bytes of a cache line, a power of two from 8 to 4096.
        scan: Search the code as well as the tables.
        jobs: Processes at a time, for folders and packages. More than 1 only in the main thread.

    Returns:
        The difference, a value.

    Raises:
        UsageError: The two are reports of two policies.
        InputError: One of them, or a file in it, cannot be read.

    Examples:
        >>> with staticcall.open("demo") as file:
        ...     _ = file.plan({"checksum": "checksum_fast"}).apply("demo.fast")
        >>> changed = staticcall.diff("demo", "demo.fast")
        >>> changed.equal
        False
        >>> [default for image in changed.images for default in image.defaults]
        [Default(key='checksum', old='checksum_plain', new='checksum_fast')]
    """
    from staticcall.pipeline.diff import diff_of  # noqa: PLC0415 - for who compares

    look = Look(policy=policy_of(policy, line), scan=scan)
    found, look = diff_of(os.fspath(path_of(old)), os.fspath(path_of(new)), look, jobs=jobs)
    return Diff(*found, policy=look.policy)
