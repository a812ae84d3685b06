"""Two kernels, or two of whatever has static calls, held against each other."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from staticcall.errors import InputError, UsageError, about
from staticcall.model.diff import Default, Diff, ImageDiff, ImageFacts, Side, SiteChange, SiteName
from staticcall.model.sites import Policy
from staticcall.pipeline.batch import Rendered, render_files, render_parts, trees_among
from staticcall.pipeline.forms import Format, Show
from staticcall.pipeline.look import Look
from staticcall.pipeline.tree import in_parts, inputs_in
from staticcall.read.source import FileSource
from staticcall.report.diff import render_diff_json, render_diff_text
from staticcall.report.facts import looks_like_report, parse_image, parse_report

__all__ = ["compare", "diff_of", "render_diff_json", "shown"]

# lib/modules/6.12.117-cloud-amd64/kernel/... is kernel/... of any release.
_OF_RELEASE = re.compile(r"(?:^|/)lib/modules/[^/]+/(.+)$")
_KERNEL = re.compile(r"(?:^|/)vmlinu[xz][^/]*$")
_MODULE = re.compile(r"\.ko(?:\.\w+)?$")
_HEAD = 64

# Passes on what becomes of each part of a tree, and may count the part's files meanwhile.
Follow = Callable[[Iterator[tuple[Rendered, ...]], Sequence[Sequence[object]]], Iterator[tuple[Rendered, ...]]]


def diff_of(
    old: str, new: str, look: Look, *, jobs: int = 1, follow: Follow = lambda results, _: results
) -> tuple[Diff, Look]:
    """What differs between two reports, images or trees, and how these were looked at.

    Where one is a report that says its policy, the other is judged by that too. `follow` is told how far each tree is.
    Raises `UsageError` for reports of two policies, and what reading either raises; of a tree every file has to be
    readable.
    """
    reports = {path: _report_at(path) for path in (old, new)}
    policies = {policy for facts, policy in filter(None, reports.values()) if policy}
    if len(policies) > 1:
        raise UsageError("the reports are of two policies", advice="report both with the same --policy and --line")
    look = look._replace(policy=policies.pop() if policies else look.policy)
    sides = []
    for path in (old, new):
        known = reports[path]
        sides.append(known[0] if known else list(_looked_at(path, look, jobs, follow)))
    return compare((old, sides[0]), (new, sides[1])), look


def _report_at(path: str) -> tuple[list[ImageFacts], Policy | None] | None:
    """The images of a report, None for what is another file."""
    if Path(path).is_dir() or not Path(path).exists():
        return None
    with about(path), FileSource(path) as source:
        if not looks_like_report(source.read(0, min(source.size, _HEAD))):
            return None
        return parse_report(source.whole())


def _looked_at(path: str, look: Look, jobs: int, follow: Follow) -> Iterator[ImageFacts]:
    if trees_among([path]):
        parts = in_parts(inputs_in(path))
        reports = follow(render_parts(parts, look, Format.JSONL, jobs=jobs), parts)
        rendered: Iterable[Rendered] = chain.from_iterable(reports)
    else:
        rendered = render_files([Path(path)], look, Format.JSONL)
    for one in rendered:
        if one.error:
            raise InputError(one.error)
        for line in one.text.splitlines():
            yield parse_image(line)


def compare(old: tuple[str, Sequence[ImageFacts]], new: tuple[str, Sequence[ImageFacts]]) -> Diff:
    """What differs between the images of two sides, each with what the user calls it."""
    before, after = _named(old[1]), _named(new[1])
    if len(before) == len(after) == 1:
        # Whatever they are called, these two are meant.
        after = dict(zip(before, after.values(), strict=True))
    _match_modules(before, after)
    both = sorted(before.keys() & after.keys())
    diffs = (_compare(name, before[name], after[name]) for name in both)
    return Diff(
        _side(*old),
        _side(*new),
        tuple(after[name] for name in sorted(after.keys() - before.keys())),
        tuple(before[name] for name in sorted(before.keys() - after.keys())),
        tuple(diff for diff in diffs if diff.changes),
    )


def shown(diff: Diff, show: Show) -> Iterator[str]:
    """The difference for a person, in pieces: plain, or as a terminal takes it."""
    if show.terminal is None:
        return render_diff_text(diff, verbose=show.verbose)
    from staticcall.report.terminal import render_diff_terminal  # noqa: PLC0415 - takes long to load

    return iter((render_diff_terminal(diff, show.terminal, verbose=show.verbose),))


def _side(path: str, images: Sequence[ImageFacts]) -> Side:
    return Side(path, len(images), sum(len(image.keys) for image in images), sum(len(image.sites) for image in images))


def _named(images: Sequence[ImageFacts]) -> dict[str, ImageFacts]:
    """The images by what they are called whatever their release and folder; by path where two would be alike."""
    paths = [image.path for image in images]
    relative = [path for path in paths if not path.startswith("/")]
    folder = "" if 0 < len(relative) < len(paths) else _folder_of(paths)
    names = [_name(path, folder) for path in paths]
    counts = Counter(names)
    return {name if counts[name] == 1 else image.path: image for name, image in zip(names, images, strict=True)}


def _folder_of(paths: Sequence[str]) -> str:
    """The innermost folder with all of these in it."""
    return os.path.commonpath([path.rpartition("/")[0] for path in paths]) if paths else ""


def _name(path: str, folder: str) -> str:
    if _KERNEL.search(path):
        return "vmlinux"
    found = _OF_RELEASE.search(path)
    name = found[1] if found else path[len(folder) :].lstrip("/")
    return _MODULE.sub(".ko", name)


def _match_modules(before: dict[str, ImageFacts], after: dict[str, ImageFacts]) -> None:
    """Give modules that moved to another folder the name that they had: a kernel has only one of a name."""
    lost, added = before.keys() - after.keys(), after.keys() - before.keys()
    homes = [_by_module(lost), _by_module(added)]
    for module in sorted(homes[0].keys() & homes[1].keys()):
        (was, *more), (now, *others) = homes[0][module], homes[1][module]
        if not more and not others:
            after[was] = after.pop(now)


def _by_module(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        if name.endswith(".ko"):
            found.setdefault(name.rpartition("/")[2].replace("-", "_"), []).append(name)
    return found


def _compare(name: str, old: ImageFacts, new: ImageFacts) -> ImageDiff:
    both = [key for key in old.keys if key in new.keys]
    defaults = (Default(key, old.keys[key], new.keys[key]) for key in sorted(both))
    kept = [_change(site, old, new) for site in old.sites if site in new.sites]
    return ImageDiff(
        name,
        old.path,
        new.path,
        keys_added=tuple(sorted(new.keys.keys() - old.keys.keys())),
        keys_lost=tuple(sorted(old.keys.keys() - new.keys.keys())),
        defaults=tuple(default for default in defaults if default.old != default.new),
        sites_added=tuple(_change(site, old, new) for site in sorted(new.sites.keys() - old.sites.keys())),
        sites_lost=tuple(_change(site, old, new) for site in sorted(old.sites.keys() - new.sites.keys())),
        forms=tuple(sorted(change for change in kept if change.old and change.new and change.old[0] != change.new[0])),
        verdicts=tuple(
            sorted(change for change in kept if change.old and change.new and change.old[1:] != change.new[1:])
        ),
    )


def _change(site: SiteName, old: ImageFacts, new: ImageFacts) -> SiteChange:
    return SiteChange(site, old.sites.get(site), new.sites.get(site))
