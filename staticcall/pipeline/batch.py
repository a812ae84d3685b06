"""Many files, one after the other or several at a time; a file that fails does not take the others along."""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import StaticcallError, UnsupportedError, about
from staticcall.model.change import Edit, EditKind
from staticcall.model.report import ImageReport
from staticcall.model.sites import Policy, Severity
from staticcall.pipeline.look import Look, archive_at, report_image, report_members
from staticcall.pipeline.parallel import each
from staticcall.report.text import render_text


class Format(StrEnum):
    """The forms a report can have."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"


class Rendered(NamedTuple):
    """One file's report, or the error that came instead; `severities` are those of its findings."""

    text: str
    severities: frozenset[Severity]
    error: str
    exit_code: int


def render_files(
    paths: Iterable[Path], look: Look, form: Format, *, verbose: bool = False, jobs: int = 1
) -> Iterator[Rendered]:
    """Render the report of every file, in the order of the files."""
    render = partial(_render_file, look=look, form=form, verbose=verbose)
    return each(render, tuple(paths), jobs=jobs)


def _render_file(path: Path, *, look: Look, form: Format, verbose: bool) -> Rendered:
    try:
        if archive_at(path):
            if look.edits is not None:
                raise UnsupportedError("is an archive, and has no undo file", path=path, advice="extract the member")
            return _render_members(path, look, form, verbose=verbose)
        with report_image(path, look) as report:
            severities = frozenset(finding.severity for finding in report.findings)
            return Rendered("".join(_pieces(report, form, verbose=verbose)), severities, "", 0)
    except StaticcallError as error:
        return Rendered("", frozenset(), str(error), error.exit_code)


def _render_members(path: Path, look: Look, form: Format, *, verbose: bool) -> Rendered:
    """All objects of an archive, as the images that they are."""
    texts, severities = [], set[Severity]()
    for report in report_members(path, look):
        severities.update(finding.severity for finding in report.findings)
        with about(report.image.path):
            texts.append("".join(_pieces(report, form, verbose=verbose)))
    separator = {Format.TEXT: "\n", Format.JSON: ",\n", Format.JSONL: ""}[form]
    return Rendered(separator.join(texts), frozenset(severities), "", 0)


def _pieces(report: ImageReport, form: Format, *, verbose: bool) -> Iterator[str]:
    if form is Format.TEXT:
        return render_text(report, verbose=verbose)
    from staticcall.report.json import render_image  # noqa: PLC0415 - 15 ms that the text report does not need

    pieces = render_image(report)
    return pieces if form is Format.JSON else chain((piece.replace("\n", "") for piece in pieces), "\n")


def document_of(path: Path, look: Look, name: Path, edits: Sequence[Edit]) -> list[str]:
    """The JSON report of one file that these edits made, under another name, as a whole document in pieces."""
    pins = any(edit.kind is EditKind.RECORD for edit in edits)
    with report_image(path, look, name, edits if pins else None) as report:
        return list(join(["".join(_pieces(report, Format.JSON, verbose=False))], Format.JSON, look.policy))


def join(images: Iterable[str], form: Format, policy: Policy) -> Iterator[str]:
    """Rendered images as one document of their form, in pieces; nothing at all without an image."""
    images = iter(filter(None, images))  # an archive may hold no object
    first = next(images, None)
    if first is None:
        return
    if form is Format.JSON:
        from staticcall.report.json import render_document  # noqa: PLC0415 - not for the text report

        yield from render_document(policy, chain((first,), images))
        return
    yield first
    for image in images:
        yield "\n" + image if form is Format.TEXT else image


def publish(path: Path, document: Iterable[str], inputs: Iterable[Path] = ()) -> None:
    """Write a document to a file, atomically; raises `UsageError` where that is one of the inputs."""
    from staticcall.write.files import refuse_collisions  # noqa: PLC0415 - only for --output
    from staticcall.write.stage import publish_text  # noqa: PLC0415 - only for --output

    for one in inputs:
        refuse_collisions((one, path))
    publish_text(path, document)
