"""The part of `staticcall report` that is about folders, packages and initramfs: many files, and one summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

from staticcall.cli.outcome import complain
from staticcall.cli.progress import Progress
from staticcall.cli.report import RANKS, noted
from staticcall.model.tree import Survey
from staticcall.pipeline.batch import render_parts
from staticcall.pipeline.forms import Format, Show
from staticcall.pipeline.look import Look
from staticcall.pipeline.tree import in_parts, inputs_in, summary_of, survey_files, survey_of

if TYPE_CHECKING:
    from concurrent.futures import Executor


def report_trees(
    trees: Sequence[str], look: Look, form: Format, show: Show, values: dict[str, Any], codes: list[int]
) -> Iterator[str]:
    """The pieces of the report on all that is in some trees; adds exit codes to `codes`, and says what failed."""
    with ExitStack() as stack:
        executor: Executor | None = None
        parts = in_parts(chain.from_iterable(map(inputs_in, trees)))
        if values["dask"] is not None:
            from staticcall.pipeline.fleet import fleet  # noqa: PLC0415 - a library that takes long to load

            executor, parts, look = stack.enter_context(fleet(values["dask"], trees, parts, look))
        progress = Progress(sum(map(len, parts)), quiet=values["quiet"] or values["verbose"])
        if form is Format.TEXT:
            surveys = survey_files(parts, look, verbose=show.verbose, jobs=values["jobs"], executor=executor)
            told = []
            for survey in progress.over(surveys, parts):
                for failure in survey.failures:
                    complain(failure.message)
                told.append(survey)
            survey = survey_of(told)
            codes += _codes_of(survey, values["fail_on"])
            yield summary_of(", ".join(trees), survey, look.policy, show.terminal)
        else:
            rendered = render_parts(parts, look, form, jobs=values["jobs"], executor=executor)
            files = chain.from_iterable(progress.over(rendered, parts))
            yield from noted(files, codes, values["fail_on"])


def _codes_of(survey: Survey, fail_on: str) -> list[int]:
    """The exit codes that the failures and the findings of some files lead to."""
    worst = max((RANKS[severity] for severity, _ in survey.totals.findings), default=0)
    return [*(failure.exit_code for failure in survey.failures), int(worst >= RANKS[fail_on])]
