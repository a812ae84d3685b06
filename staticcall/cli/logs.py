"""What `-v` tells on standard error: each thing that was done, in a line, and how long it took."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from staticcall.cli.outcome import complain
from staticcall.pipeline.trace import log_to


class _Handler(logging.Handler):
    """Says every record as this program says everything."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        complain(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def logged() -> Iterator[None]:
    """Log to standard error."""
    logger = logging.getLogger("staticcall")
    handler = _Handler()
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # it is said once, whatever the root does
    log_to(logger)
    try:
        yield
    finally:
        log_to(None)
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagates
