"""The forms of a report, and which renderer makes each; all but the text's are imported when they are asked for."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from staticcall.model.report import ImageReport
from staticcall.model.sites import Policy
from staticcall.report.text import render_text

if TYPE_CHECKING:
    from staticcall.model.terminal import Terminal
    from staticcall.pipeline.look import Look


class Format(StrEnum):
    """The forms a report can have."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"
    HTML = "html"
    SARIF = "sarif"
    CSV = "csv"
    MARKDOWN = "markdown"


# The forms that tell where in the source a site is.
WITH_LINES = frozenset({Format.HTML, Format.SARIF})
# Those of them that people wait for: of a whole kernel's line programs they do without.
QUICK_LINES = frozenset({Format.HTML})

# Between two images that were rendered together, as those of an archive are; `render_document` puts the same.
SEPARATORS = {Format.TEXT: "\n", Format.JSON: ",\n"}

# The forms that a file's name may ask for.
SUFFIXES = {
    ".txt": Format.TEXT,
    ".json": Format.JSON,
    ".jsonl": Format.JSONL,
    ".html": Format.HTML,
    ".htm": Format.HTML,
    ".sarif": Format.SARIF,
    ".csv": Format.CSV,
    ".md": Format.MARKDOWN,
}


def look_for(look: "Look", form: Format) -> "Look":
    """What to look for besides, for a report of this form."""
    return look._replace(lines=form in WITH_LINES, quick_lines=form in QUICK_LINES)


class Renderer(Protocol):
    """What a module of `staticcall.report` is that makes one form for programs or browsers."""

    def render_image(self, report: ImageReport) -> Iterator[str]:
        """One image, in pieces; runs where the image was read, maybe in another process."""
        ...

    def render_document(self, policy: Policy, images: Iterable[str]) -> Iterator[str]:
        """Rendered images as one document, in pieces."""
        ...


def form_of(path: Path, otherwise: Format) -> Format:
    """The form that a file's name asks for by its end, whatever the case of its letters."""
    return SUFFIXES.get(path.suffix.lower(), otherwise)


def renderer_of(form: Format) -> Renderer:
    """The module that makes a form; JSON Lines are JSON's images."""
    name = Format.JSON if form is Format.JSONL else form
    renderer: Renderer = import_module(f"staticcall.report.{name.value}")
    return renderer


class Show(NamedTuple):
    """How text is shown to a person: all of it if `verbose`, and as a `terminal` takes it, or plain."""

    verbose: bool = False
    terminal: "Terminal | None" = None


PLAIN = Show()


def pieces_of(report: ImageReport, form: Format, show: Show = PLAIN) -> Iterator[str]:
    """One image in its form, in pieces; `show` is for text alone."""
    if form is Format.TEXT and show.terminal is not None:
        from staticcall.report.terminal import render_terminal  # noqa: PLC0415 - a library that takes long to load

        return iter((render_terminal(report, show.terminal, verbose=show.verbose),))
    if form is Format.TEXT:
        return render_text(report, verbose=show.verbose)
    pieces = renderer_of(form).render_image(report)
    return pieces if form is not Format.JSONL else chain((piece.replace("\n", "") for piece in pieces), "\n")


def failure_in(form: Format, message: str) -> str:
    """What a document of this form says of a file that could not be read; most have no place for that."""
    if form is Format.SARIF:
        from staticcall.report.sarif import render_failure  # noqa: PLC0415 - as every renderer
    elif form is Format.MARKDOWN:
        from staticcall.report.markdown import render_failure  # noqa: PLC0415 - as every renderer
    else:
        return ""
    return render_failure(message)


def join(images: Iterable[str], form: Format, policy: Policy) -> Iterator[str]:
    """Rendered images as one document of their form, in pieces; nothing at all without an image."""
    if form is not Format.CSV:  # there an image without sites has no row, and still is one
        images = filter(None, images)  # an archive may hold no object
    images = iter(images)
    first = next(images, None)
    if first is None:
        return
    if form in (Format.TEXT, Format.JSONL):
        yield first
        for image in images:
            yield SEPARATORS.get(form, "") + image
        return
    yield from renderer_of(form).render_document(policy, chain((first,), images))
