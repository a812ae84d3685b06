"""Where a patch goes, and the texts that go along with it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from staticcall.model.change import Plan
from staticcall.model.image import Image
from staticcall.report.json import render_edits
from staticcall.write.stage import stage_text
from staticcall.write.together import Publication


class Original(NamedTuple):
    """What is patched; `check_unchanged` raises `InputError` where it is not any more what was read."""

    path: Path
    image: Image
    check_unchanged: Callable[[], None]


class Outputs(NamedTuple):
    """The rewritten file, the undo file, and the JSON report of the result; none of `output` for a dry run."""

    output: Path | None
    edits: Path | None = None
    report: Path | None = None


def stage_texts(
    stack: ExitStack,
    outputs: Outputs,
    plan: Plan,
    digests: Callable[[], tuple[str, str]],
    document: Callable[[], Iterable[str]],
) -> list[Publication]:
    """Have the undo file and the report ready under temporary names; gives what publishes them.

    `digests` are the SHA-256 of the original and of the patched file, `document` is the report; both are only asked for
    where they are wanted. Raises `OutputError`.
    """
    ready = []
    if outputs.edits is not None:
        ready.append(stack.enter_context(stage_text(outputs.edits, render_edits(plan, *digests()))))
    if outputs.report is not None:
        ready.append(stack.enter_context(stage_text(outputs.report, document())))
    return ready
