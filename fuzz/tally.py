"""What came of the inputs, counted, and the table of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

_CODES = (0, 1, 2, 3, 4, 5)
_NONE = -1  # no exit code: a traceback, or stopped


class Tally:
    """Counts by operation and exit code, with the largest processor time and memory of each operation."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self.slowest: dict[str, float] = {}
        self.largest: dict[str, int] = {}

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.counts.total()

    def add(self, operation: str, code: int, seconds: float, growth: int) -> None:
        """Count one input."""
        self.counts[operation, code] += 1
        self.slowest[operation] = max(seconds, self.slowest.get(operation, 0.0))
        self.largest[operation] = max(growth, self.largest.get(operation, 0))

    def update(self, other: Self) -> None:
        """Count what another one counted."""
        self.counts.update(other.counts)
        for operation, seconds in other.slowest.items():
            self.slowest[operation] = max(seconds, self.slowest.get(operation, 0.0))
        for operation, growth in other.largest.items():
            self.largest[operation] = max(growth, self.largest.get(operation, 0))

    def save(self, path: Path) -> None:
        """Write it to a file."""
        counts = [[*key, count] for key, count in self.counts.items()]
        path.write_text(json.dumps([counts, self.slowest, self.largest]), encoding="ascii")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it again."""
        tally = cls()
        counts: list[Any]
        counts, tally.slowest, tally.largest = json.loads(path.read_text(encoding="ascii"))
        tally.counts.update({(operation, code): count for operation, code, count in counts})
        return tally

    def table(self) -> Iterator[str]:
        """Lines of a Markdown table, an operation each, and the sum."""
        yield f"| operation | inputs | {' | '.join(f'exit {code}' for code in _CODES)} | slowest, s |"
        yield "|---" + "|---:" * (len(_CODES) + 2) + "|"
        for operation in sorted(self.slowest):
            yield self._row(
                operation, {code: self.counts[operation, code] for code in (*_CODES, _NONE)}, self.slowest[operation]
            )
        sums: Counter[int] = Counter()
        for (_, code), count in self.counts.items():
            sums[code] += count
        yield self._row("**all**", sums, max(self.slowest.values(), default=0.0))

    @staticmethod
    def _row(name: str, counts: Counter[int] | dict[int, int], seconds: float) -> str:
        cells = [f"{counts[code]:,}" if counts[code] else "" for code in _CODES]
        total = sum(counts[code] for code in (*_CODES, _NONE))
        return f"| {name} | {total:,} | {' | '.join(cells)} | {seconds:.2f} |"
