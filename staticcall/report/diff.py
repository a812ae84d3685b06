"""The difference of two reports, for a person and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from staticcall.errors import printable
from staticcall.model.diff import Diff, ImageDiff, ImageFacts, Side, SiteChange, SiteFacts
from staticcall.model.sites import Policy
from staticcall.report.json import compact, document_head
from staticcall.report.names import counted

# Enough to see what it is about; -v shows all.
FEW = 10


def render_diff_text(diff: Diff, *, verbose: bool = False) -> Iterator[str]:
    """The difference for a person: counts, then what is behind them."""
    for line in _lines(diff, verbose=verbose):
        yield printable(line.rstrip()) + "\n"


def _lines(diff: Diff, *, verbose: bool) -> Iterator[str]:
    if diff.equal:
        yield f"no difference: {counts_of(diff.new)}"
        return
    yield f"old  {diff.old.path}: {counts_of(diff.old)}"
    yield f"new  {diff.new.path}: {counts_of(diff.new)}"
    yield ""
    parts = list(parts_of(diff))
    yield f"{'':<34}{'added':>9}{'lost':>9}{'changed':>9}"
    for name, numbers in table_of(diff):
        yield f"  {name:<32}" + "".join(f"{'' if number is None else f'{number:,}':>9}" for number in numbers)
    for title, lines in parts:
        if lines:
            yield ""
            yield f"{title} ({len(lines):,})"
            yield from (f"  {line}" for line in (lines if verbose else lines[:FEW]))
            if len(lines) > FEW and not verbose:
                yield f"  and {len(lines) - FEW:,} more (-v shows all)"


def table_of(diff: Diff) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """What was added, lost and changed: the names and numbers of a table, None where nothing can be."""
    images = diff.images
    yield "images", (len(diff.added), len(diff.lost), len(images))
    keys = sum(len(i.keys_added) for i in images), sum(len(i.keys_lost) for i in images)
    sites = sum(len(i.sites_added) for i in images), sum(len(i.sites_lost) for i in images)
    yield "keys of images that both have", (*keys, None)
    yield "  lead elsewhere", (None, None, sum(len(image.defaults) for image in images))
    yield "sites of images that both have", (*sites, None)
    yield "  of another form", (None, None, sum(len(image.forms) for image in images))
    yield "  with another verdict", (None, None, sum(len(image.verdicts) for image in images))


def parts_of(diff: Diff) -> Iterator[tuple[str, list[str]]]:
    """What is behind the numbers: titles, each with a line for everything that is meant."""
    images = diff.images
    yield "images added", [_whole(image) for image in diff.added]
    yield "images lost", [_whole(image) for image in diff.lost]
    yield "keys added", [f"{key}{_in(i, diff)}" for i in images for key in i.keys_added]
    yield "keys lost", [f"{key}{_in(i, diff)}" for i in images for key in i.keys_lost]
    yield (
        "keys that lead elsewhere",
        [f"{default.key}: {default.old} -> {default.new}{_in(i, diff)}" for i in images for default in i.defaults],
    )
    yield "sites added", [f"{_site(one)}{_in(i, diff)}: {_told(one.new)}" for i in images for one in i.sites_added]
    yield "sites lost", [f"{_site(one)}{_in(i, diff)}: {_told(one.old)}" for i in images for one in i.sites_lost]
    yield (
        "sites of another form",
        [
            f"{_site(one)}{_in(i, diff)}: {one.old.form} -> {one.new.form}"
            for i in images
            for one in i.forms
            if one.old and one.new
        ],
    )
    yield (
        "sites with another verdict",
        [
            f"{_site(one)}{_in(i, diff)}: {_verdict(one.old)} -> {_verdict(one.new)}"
            for i in images
            for one in i.verdicts
            if one.old and one.new
        ],
    )


def counts_of(side: Side) -> str:
    """How much one side has, in words."""
    return ", ".join(
        counted(count, noun) for count, noun in ((side.images, "image"), (side.keys, "key"), (side.sites, "site"))
    )


def _in(image: ImageDiff, diff: Diff) -> str:
    """Where that is, unless there is only one image."""
    return "" if diff.old.images == diff.new.images == 1 else f" in {image.name}"


def _whole(image: ImageFacts) -> str:
    return f"{image.path}: {len(image.keys):,} keys, {len(image.sites):,} sites"


def _site(change: SiteChange) -> str:
    function, key, ordinal = change.site
    return f"{key or '(no key)'} in {function}{f', number {ordinal}' if ordinal > 1 else ''}"


def _told(facts: SiteFacts | None) -> str:
    assert facts is not None, "what is added is new, and what is lost was there"
    return f"{facts.form}, {_verdict(facts)}"


def _verdict(facts: SiteFacts) -> str:
    return f"{facts.verdict} ({facts.reason})"


def render_diff_json(diff: Diff, policy: Policy) -> Iterator[str]:
    """The difference as one JSON document."""
    document = {
        **document_head(policy),
        "old": diff.old._asdict(),
        "new": diff.new._asdict(),
        "equal": diff.equal,
        "added": [_image(image) for image in diff.added],
        "lost": [_image(image) for image in diff.lost],
    }
    yield compact(document)[:-1] + ',"images":['
    separator = "\n"
    for image in diff.images:
        yield separator + compact(_changes(image))
        separator = ",\n"
    yield "\n]}\n"


def _image(image: ImageFacts) -> dict[str, object]:
    return {"path": image.path, "keys": len(image.keys), "sites": len(image.sites)}


def _changes(image: ImageDiff) -> dict[str, object]:
    return {
        "name": image.name,
        "old_path": image.old_path,
        "new_path": image.new_path,
        "keys": {
            "added": image.keys_added,
            "lost": image.keys_lost,
            "defaults": [default._asdict() for default in image.defaults],
        },
        "sites": {
            "added": _sites(image.sites_added),
            "lost": _sites(image.sites_lost),
            "forms": _sites(image.forms),
            "verdicts": _sites(image.verdicts),
        },
    }


def _sites(changes: Sequence[SiteChange]) -> list[dict[str, object]]:
    return [
        {**site._asdict(), "old": old and old._asdict(), "new": new and new._asdict()} for site, old, new in changes
    ]
