"""Many files, one after the other or several at a time; a file that fails does not take the others along."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from staticcall.errors import StaticcallError, UnsupportedError, about
from staticcall.model.change import Edit, EditKind
from staticcall.model.report import ImageReport
from staticcall.model.sites import Severity
from staticcall.model.tree import NO_STATIC_CALLS, Failure, Input
from staticcall.pipeline import trace
from staticcall.pipeline.forms import (
    PLAIN,
    SEPARATORS,
    Format,
    Show,
    failure_in,
    join,
    look_for,
    pieces_of,
)
from staticcall.pipeline.look import Look, archive_at, report_image, report_members
from staticcall.pipeline.parallel import each
from staticcall.read.found import holds_files

if TYPE_CHECKING:
    from concurrent.futures import Executor


class Rendered(NamedTuple):
    """One file's report, or the error that came instead; `severities` are those of its findings.

    Beside an error the text is what the form's documents say of it, mostly nothing.
    """

    text: str
    severities: frozenset[Severity]
    error: str
    exit_code: int


def trees_among(files: Iterable[str]) -> tuple[str, ...]:
    """Those that stand for all that is in them: folders, packages and initramfs."""
    return tuple(file for file in files if Path(file).is_dir() or holds_files(file))


def render_files(
    paths: Iterable[Path], look: Look, form: Format, *, show: Show = PLAIN, jobs: int = 1
) -> Iterator[Rendered]:
    """Render the report of every file, in the order of the files."""
    prepare(look)
    render = partial(_render_file, look=look, form=form, show=show)
    return each(render, tuple(paths), jobs=jobs)


def render_parts(
    parts: Sequence[Sequence[Input]], look: Look, form: Format, *, jobs: int = 1, executor: "Executor | None" = None
) -> Iterator[tuple[Rendered, ...]]:
    """Render the reports of files that lie in trees, in any form but text, part by part."""
    prepare(look)
    return each(partial(_render_part, look=look, form=form), parts, jobs=jobs, executor=executor)


def prepare(look: Look) -> None:
    """Read what is around all files once; every process that is forked later knows it."""
    if look.aids.vmlinux is not None or look.aids.modules is not None:
        from staticcall.pipeline.foreign import surroundings_of  # noqa: PLC0415 - only for --vmlinux and --modules

        surroundings_of(look.aids)


def _render_file(path: Path, *, look: Look, form: Format, show: Show) -> Rendered:
    try:
        if archive_at(path):
            if look.edits is not None:
                what = "is an archive, and has no undo file"
                raise UnsupportedError(what, path=path, advice="name one of its members, as FILE(MEMBER)")
            return _render_members(path, look, form, show)
        with report_image(path, look) as report:
            severities = frozenset(finding.severity for finding in report.findings)
            text = "".join(pieces_of(report, form, show))
            trace.done(path, "written as {}, {:,} characters", form.value, len(text))
            return Rendered(text, severities, "", 0)
    except StaticcallError as error:
        return Rendered(failure_in(form, str(error)), frozenset(), str(error), error.exit_code)


def _render_part(inputs: Sequence[Input], *, look: Look, form: Format) -> tuple[Rendered, ...]:
    rendered = []
    from staticcall.pipeline.tree import outcomes  # noqa: PLC0415 - only for trees

    for outcome in outcomes(inputs, look):
        if isinstance(outcome, Failure):
            rendered.append(Rendered(failure_in(form, outcome.message), frozenset(), *outcome))
        elif isinstance(outcome, ImageReport):
            try:
                with about(outcome.image.path):
                    text = "".join(pieces_of(outcome, form))
            except StaticcallError as error:
                rendered.append(Rendered(failure_in(form, str(error)), frozenset(), str(error), error.exit_code))
                continue
            # In a tree it is no news that a file has none.
            told = (finding for finding in outcome.findings if finding.code != NO_STATIC_CALLS)
            rendered.append(Rendered(text, frozenset(finding.severity for finding in told), "", 0))
    return tuple(rendered)


def _render_members(path: Path, look: Look, form: Format, show: Show) -> Rendered:
    """All objects of an archive, as the images that they are."""
    texts, severities = [], set[Severity]()
    for report in report_members(path, look):
        severities.update(finding.severity for finding in report.findings)
        with about(report.image.path):
            texts.append("".join(pieces_of(report, form, show)))
    return Rendered(SEPARATORS.get(form, "").join(texts), frozenset(severities), "", 0)


def document_of(path: Path, look: Look, name: Path, edits: Sequence[Edit], form: Format) -> list[str]:
    """The report of one file that these edits made, under another name, as a whole document in pieces."""
    pins = any(edit.kind is EditKind.RECORD for edit in edits)
    look = look_for(look, form)
    with report_image(path, look, name, edits if pins else None) as report:
        return list(join(["".join(pieces_of(report._replace(edits=tuple(edits)), form))], form, look.policy))


def publish(path: Path, document: Iterable[str], inputs: Iterable[Path] = ()) -> None:
    """Write a document to a file, atomically; raises `UsageError` where that is one of the inputs, or holds one."""
    from staticcall.read.inputs import split_member  # noqa: PLC0415 - only for --output
    from staticcall.write.files import refuse_collisions  # noqa: PLC0415 - only for --output
    from staticcall.write.stage import publish_text  # noqa: PLC0415 - only for --output

    for one in inputs:
        refuse_collisions((split_member(one)[0], path))
    publish_text(path, document)
