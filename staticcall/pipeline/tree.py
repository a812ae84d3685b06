"""Trees of files: what lies in them, and what all of that comes to."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from staticcall.abi import elf64, static_call
from staticcall.errors import ExitCode, StaticcallError, about
from staticcall.model.image import NO_NAMES, ByteSource, NameSource
from staticcall.model.report import ImageReport
from staticcall.model.sites import Policy
from staticcall.model.terminal import Terminal
from staticcall.model.tree import Failure, Input, Survey, Totals
from staticcall.pipeline.batch import prepare
from staticcall.pipeline.look import Look, report_members, report_source
from staticcall.pipeline.parallel import each
from staticcall.read.found import Found, Kind, open_found, open_members
from staticcall.read.object import is_object, is_sound, parse_object
from staticcall.read.source import sha256_of, sha256_of_bytes
from staticcall.report.totals import counts_without_calls, merged, render_totals, totals_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

# Enough that handing them over takes no time, and few enough that nobody is idle in the end.
_AT_ONCE = 16


def inputs_in(tree: str) -> Iterator[Input]:
    """Every file of a folder, or an archive as one that stands for its files."""
    return _walk(tree) if Path(tree).is_dir() else iter([Input(tree, tree, archive=True)])


def _walk(root: str) -> Iterator[Input]:
    """Every regular file below a folder, sorted folder by folder; symbolic links are not followed.

    A folder that cannot be read is an input with an error.
    """
    left = [(root, True)]
    while left:
        path, is_folder = left.pop()
        if not is_folder:
            yield Input(path, path, found=True)
            continue
        try:
            with os.scandir(path) as entries:
                inner = [
                    (entry.path, is_folder)
                    for entry in entries
                    if (is_folder := entry.is_dir(follow_symlinks=False)) or entry.is_file(follow_symlinks=False)
                ]
        except OSError as error:
            message = f"{path}: cannot be read: {error.strerror}, check its permissions"
            yield Input(path, path, error=message, exit_code=ExitCode.INPUT)
            continue
        left += sorted(inner, reverse=True)


def in_parts(inputs: Iterable[Input]) -> list[tuple[Input, ...]]:
    """The inputs in the parts that one process gets at a time."""
    inputs = iter(inputs)
    return list(iter(lambda: tuple(islice(inputs, _AT_ONCE)), ()))


def survey_files(
    parts: Sequence[Sequence[Input]],
    look: Look,
    *,
    verbose: bool = False,
    jobs: int = 1,
    executor: "Executor | None" = None,
) -> Iterator[Survey]:
    """What the files come to, part by part, in the order of the parts; to be put together by `survey_of`."""
    prepare(look)
    return each(partial(_survey, look=look, verbose=verbose), parts, jobs=jobs, executor=executor)


def survey_of(parts: Iterable[Survey]) -> Survey:
    """All parts as one."""
    parts = tuple(parts)
    lines, failures = (tuple(chain.from_iterable(each)) for each in zip(*(part[1:] for part in parts), strict=True))
    return Survey(merged(part.totals for part in parts), lines, failures)


def summary_of(title: str, survey: Survey, policy: Policy, terminal: Terminal | None = None) -> str:
    """The survey of some trees as text, plain or as a terminal takes it."""
    if terminal is not None:
        from staticcall.report.terminal import render_totals_terminal  # noqa: PLC0415 - takes long to load

        return render_totals_terminal(title, survey, policy, terminal)
    return "".join(render_totals(title, survey, policy))


def _survey(inputs: Sequence[Input], *, look: Look, verbose: bool) -> Survey:
    found: list[Totals] = []
    failures: list[Failure] = []
    for outcome in outcomes(inputs, look, quickly=True):
        if isinstance(outcome, Failure):
            failures.append(outcome)
            found.append(Totals(failed=1))
        else:
            found.append(outcome if isinstance(outcome, Totals) else totals_of(outcome))
    lines = tuple(line for one in found for line in one.busiest) if verbose else ()
    return Survey(merged(found), lines, tuple(failures))


def outcomes(inputs: Iterable[Input], look: Look, *, quickly: bool = False) -> Iterator[ImageReport | Totals | Failure]:
    """What becomes of each file: a report, which is good until the next is asked for, an error, or counts alone.

    These are of what was passed over, and, if it shall go `quickly`, also of objects without static calls.
    """
    for one in inputs:
        if one.error:
            yield Failure(one.error, one.exit_code)
            continue
        try:
            for found in _opened(one):
                if isinstance(found, Failure):
                    yield found
                else:
                    yield from _looked_at(one, found, look, quickly=quickly)
        except StaticcallError as error:
            yield Failure(str(error), error.exit_code)


def _opened(one: Input) -> Iterator[Found | Failure]:
    if not one.archive:
        with open_found(one.path, one.name) as found:
            yield found
        return
    for member in open_members(one.path, one.name):
        yield Failure(str(member), member.exit_code) if isinstance(member, StaticcallError) else member


def _looked_at(one: Input, found: Found, look: Look, *, quickly: bool) -> Iterator[ImageReport | Totals | Failure]:
    name, kind, source, layers, member = found
    path = Path(name)
    try:
        with about(path):
            if kind is Kind.OTHER:
                yield Totals(skipped=1)
            elif kind is Kind.ARCHIVE:
                yield from report_members(Path(one.path), look, path)
            elif quickly and look.table is None and (names := _nothing_in(source)):
                yield counts_without_calls(path, names, layers)
            else:
                sha256 = None
                if look.hashed:
                    sha256 = sha256_of(one.path) if member is None else sha256_of_bytes(member)
                yield report_source(path, source, layers, look, sha256)
    except StaticcallError as error:
        yield Failure(str(error), error.exit_code)


def _nothing_in(source: ByteSource) -> NameSource | None:
    """Where the names are from in an object without any of a static call, as most modules are; None for all others.

    It is read as far as it may be damaged. Reading on would find that there is nothing, and takes ten times as long.
    """
    data = source.whole() if is_object(source.read(0, min(source.size, elf64.HEADER.size))) else b""
    if not data or any(map(data.__contains__, static_call.MARKS)):
        return None
    return NameSource("symtab") if is_sound(data) or parse_object(data).symtab else NO_NAMES
