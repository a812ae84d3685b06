"""What is being done, for who waits, and what was done, for who wants to know; by default nobody does."""

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

    from staticcall.errors import StrPath
    from staticcall.model.change import Plan, Proof
    from staticcall.model.image import Image
    from staticcall.model.report import ImageReport
    from staticcall.model.sites import Located


class _Trace:
    """Who is told, and when the last thing was done."""

    def __init__(self) -> None:
        self.waiting: Callable[[str], None] | None = None
        self.logger: Logger | None = None
        self.since = 0.0


_trace = _Trace()


def tell_waiting(hear: Callable[[str], None] | None) -> None:
    """Let somebody hear what is being done from now on, or nobody."""
    _trace.waiting = hear


def log_to(logger: "Logger | None") -> None:
    """Log what was done from now on, or nothing."""
    _trace.logger = logger
    _trace.since = monotonic()


def doing(what: str) -> None:
    """Say what comes next, as in `compressing`; nothing where somebody else has the terminal."""
    if _trace.waiting is not None:
        _trace.waiting(what)


def done(path: "StrPath", what: str, *values: object) -> None:
    """Log what was done with a file, and how many seconds that took; `what` is filled in as by `str.format`."""
    if _trace.logger is not None:
        now = monotonic()
        _trace.logger.info("%s: %s, %.2f s", path, what.format(*values), now - _trace.since)
        _trace.since = now


def opened(image: "Image") -> None:
    """Log what a file is, and where its names are from."""
    if _trace.logger is not None:
        around = "".join(f" in {layer.label}" for layer in reversed(image.layers))
        names = image.name_source
        source = names.kind if names.path is None else f"{names.kind} {names.path}"
        size = image.source.size
        done(image.path, "opened{}, {:,} bytes, {:,} symbols by {}", around, size, len(image.symbols), source)


def located(image: "Image", found: "Located") -> None:
    """Log what there is of static calls in an image."""
    table = found.table
    origin = "no table" if table is None else f"table of {table.stop - table.start:,} bytes ({table.origin})"
    counts = len(found.sites), len(found.keys), len(found.trampolines)
    done(image.path, "located: {}, {:,} sites, {:,} keys, {:,} trampolines", origin, *counts)


def judged(report: "ImageReport") -> None:
    """Log the verdicts on an image's sites."""
    name, counts = report.policy.name.value, report.summary
    what = "judged by {}: {:,} direct, {:,} by trampoline, {:,} undecided, {:,} findings"
    done(report.image.path, what, name, counts.direct, counts.trampoline, counts.undecided, len(report.findings))


def planned(path: "StrPath", plan: "Plan") -> None:
    """Log what a patch is going to change."""
    size = sum(len(edit.new) for edit in plan.edits)
    done(path, "planned: {:,} keys, {:,} edits of {:,} bytes", len(plan.changes), len(plan.edits), size)


def proved(path: "StrPath", proof: "Proof") -> None:
    """Log what was proved of a file."""
    sites = sum(proof.sites.values())
    what = "proved: {:,} bytes compared, {:,} sites, {:,} trampolines and {:,} keys changed"
    done(path, what, proof.compared, sites, proof.trampolines, proof.keys)
