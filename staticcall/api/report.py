"""What a file's static calls are, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from staticcall.api.requests import FormatWord, format_of
from staticcall.errors import printable
from staticcall.model.image import NameSource
from staticcall.model.sites import Finding, Policy
from staticcall.model.values import ImageValues, Key, Site, Summary, Trampoline
from staticcall.pipeline.forms import Format
from staticcall.pipeline.look import Look
from staticcall.pipeline.opened import Stamp, render_again, render_json


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a report is from: how the file was looked at, and what tells whether it is still the same."""

    look: Look
    stamp: Stamp


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """The static calls of one file, and what a policy makes of them.

    Made by `File.report`. A value: it never changes, can be pickled, and needs the file no more, but for `render`.

    Attributes:
        path: The file, as it was given to `open`; of a member `FILE(MEMBER)`.
        sha256: SHA-256 of the file in hex; None unless `hashed` asked for it.
        build_id: The build id in hex; None where the file has none.
        elf_type: `EXEC`, `DYN` (PIE and shared objects) or `REL`.
        container: What the ELF file was inside of, the outermost first: `xz`, `bzImage:zstd`, `deb`, ...
        names: Where the names come from: `symtab`, `kallsyms`, `debug-file`, ..., with the path of another file.
        policy: The policy by which sites were judged, and the bytes of a cache line.
        sites: In the order of their addresses.
        keys: In the order of their addresses, those without sites among them.
        trampolines: Those of the keys.
        findings: What a person should know about the file, see their severity.
        summary: The counts.

    Examples:
        >>> with staticcall.open("demo") as file:
        ...     report = file.report()
        >>> report
        <Report on demo: sites 3 (... direct), keys 2, policy lutomirski, cache line of 64 bytes>
        >>> [(key.name, key.func, key.sites) for key in report.keys]
        [('log', None, 2), ('checksum', 'checksum_plain', 1)]
        >>> sorted({site.function_name for site in report.sites if site.key == "checksum"})
        ['sum_picture']
    """

    path: Path
    sha256: str | None
    build_id: str | None
    elf_type: str
    container: tuple[str, ...]
    names: NameSource
    policy: Policy
    sites: tuple[Site, ...]
    keys: tuple[Key, ...]
    trampolines: tuple[Trampoline, ...]
    findings: tuple[Finding, ...]
    summary: Summary = field(hash=False)  # it has mappings
    _origin: Origin = field(compare=False)

    def to_json(self) -> str:
        """The report as one JSON document, the same that `staticcall report --format json` prints.

        `staticcall schema report` prints its schema. The file is not read again.

        Returns:
            The text, with a newline at its end.

        Examples:
            >>> import json
            >>> with staticcall.open("demo") as file:
            ...     document = json.loads(file.report().to_json())
            >>> document["schema_version"], document["policy"]
            (1, {'name': 'lutomirski', 'line': 64})
            >>> document["images"][0]["summary"]["sites"]
            3
        """
        return render_json(self._values())

    def render(self, format: Format | FormatWord, *, verbose: bool = False) -> str:  # noqa: A002 - as the CLI has it
        """The report in a form of `staticcall report --format`.

        JSON is made of the value alone. For any other form the file is read again, since these show more of it than
        a report holds; it has to be there, and the same.

        Args:
            format: `text`, `json`, `jsonl`, `html`, `sarif`, `csv` or `markdown`.
            verbose: Of text, all of it and not only the first of what there is much of.

        Returns:
            The whole document.

        Raises:
            UsageError: There is no such format.
            InputError: The file is gone, or another one has its name.

        Examples:
            >>> with staticcall.open("demo") as file:
            ...     report = file.report(policy="kernel")
            >>> print(report.render("text"))
            demo
              EXEC x86_64...
              3 sites, 2 keys (2 with sites), 2 trampolines
            ...
        """
        form = format_of(format)
        if form in (Format.JSON, Format.JSONL):
            return render_json(self._values(), lines=form is Format.JSONL)
        look = self._origin.look
        return render_again(self.path, look, form, self._origin.stamp, verbose=verbose)

    def _values(self) -> ImageValues:
        return ImageValues(
            path=self.path,
            sha256=self.sha256,
            build_id=self.build_id,
            elf_type=self.elf_type,
            container=self.container,
            names=self.names,
            policy=self.policy,
            sites=self.sites,
            keys=self.keys,
            trampolines=self.trampolines,
            summary=self.summary,
            findings=self.findings,
        )

    def __repr__(self) -> str:
        counts, policy = self.summary, self.policy
        return printable(
            f"<Report on {self.path}: sites {counts.sites:,} ({counts.direct:,} direct), keys {counts.keys:,},"
            f" policy {policy.name}, cache line of {policy.line} bytes>"
        )

    def _repr_html_(self) -> str:
        """What notebooks show: the counts by verdict and reason."""
        rows = (f"<tr><td>{escape(reason)}</td><td>{count:,}</td></tr>" for reason, count in self._counts())
        return f"<table><caption>{escape(repr(self)[1:-1])}</caption>{''.join(rows)}</table>"

    def _counts(self) -> list[tuple[str, int]]:
        counts = self.summary
        verdicts = [("direct", counts.direct), ("trampoline", counts.trampoline), ("undecided", counts.undecided)]
        return [*verdicts, *counts.reasons.items(), ("(crossing a line)", counts.crossing)]


def report_of(values: ImageValues, origin: Origin) -> Report:
    """The report out of what was read of a file."""
    return Report(
        path=values.path,
        sha256=values.sha256,
        build_id=values.build_id,
        elf_type=values.elf_type,
        container=values.container,
        names=values.names,
        policy=values.policy,
        sites=tuple(values.sites),
        keys=tuple(values.keys),
        trampolines=tuple(values.trampolines),
        findings=values.findings,
        summary=values.summary,
        _origin=origin,
    )
