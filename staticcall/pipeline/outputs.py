"""Where a patch goes, and the texts that go along with it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from staticcall.model.change import Undo
from staticcall.model.image import Image
from staticcall.pipeline.forms import Format, form_of
from staticcall.report.undo import render_undo
from staticcall.write.stage import stage_text
from staticcall.write.together import Publication, publish_together
from staticcall.write.whole import stage_whole


class Original(NamedTuple):
    """What is patched; `check_unchanged` raises `InputError` where it is not any more what was read.

    `file` is what the file system calls it, which for the member of an archive is the archive.
    """

    path: Path
    image: Image
    check_unchanged: Callable[[], None]
    file: Path


class Outputs(NamedTuple):
    """The rewritten file, the undo file, and the report of the result; none of `output` for a dry run."""

    output: Path | None
    edits: Path | None = None
    report: Path | None = None

    @property
    def form(self) -> Format:
        """The form of the report, by the end of its name; JSON where that says nothing."""
        return Format.JSON if self.report is None else form_of(self.report, Format.JSON)


def stage_texts(
    stack: ExitStack, outputs: Outputs, undo: Callable[[], Undo], document: Callable[[], Iterable[str]]
) -> list[Publication]:
    """Have the undo file and the report ready under temporary names; gives what publishes them.

    Both are only asked for where they are wanted. Raises `OutputError`.
    """
    ready = []
    if outputs.edits is not None:
        ready.append(stack.enter_context(stage_text(outputs.edits, render_undo(undo()))))
    if outputs.report is not None:
        ready.append(stack.enter_context(stage_text(outputs.report, document())))
    return ready


def publish_whole(
    original: Original,
    outputs: Outputs,
    data: bytes,
    undo: Callable[[], Undo],
    document: Callable[[Path], Iterable[str]],
    check: Callable[[Path], None],
) -> None:
    """Give a file from memory its name, and the undo file and the report before it.

    `check` and `document` get the file under its temporary name; `check` raises where that is not to be published.
    """
    assert outputs.output is not None, "a dry run publishes nothing"
    with stage_whole(original.file, outputs.output, data) as (temporary, publish), ExitStack() as texts:
        staged = Path(temporary)
        check(staged)
        ready = stage_texts(texts, outputs, undo, lambda: document(staged))
        # The undo file comes first: never a patched file without the way back.
        publish_together(outputs.output, ready, publish, original.check_unchanged)
