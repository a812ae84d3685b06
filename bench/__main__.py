"""Print every figure that the project promises, beside its peer and its limit; exit with 1 where one is missed.

python -m bench            all of them, seven rounds; some ten minutes
python -m bench --rounds 3 --skip-objdump --only objects
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.builds import build_figures
from bench.calls import call_figures
from bench.images import image_figures
from bench.measure import Figure, say
from bench.objects import object_figures
from bench.reports import report_figures
from bench.trees import tree_figures

_PARTS = ("images", "objects", "trees", "calls", "builds", "reports")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-objdump", action="store_true", help="leave the slowest peer out")
    parser.add_argument("--only", choices=_PARTS, help="one part of them")
    options = parser.parse_args()
    images = partial(image_figures, with_objdump=not options.skip_objdump)
    measures: tuple[Callable[[Path, int], list[Figure]], ...] = (
        images,
        object_figures,
        tree_figures,
        call_figures,
        build_figures,
        report_figures,
    )
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="staticcall-bench-") as folder:
        for name, measure in zip(_PARTS, measures, strict=True):
            if options.only in (None, name):
                home = Path(folder) / name
                home.mkdir()
                figures += measure(home, options.rounds)
    say("")
    for figure in figures:
        say(str(figure))
    sys.exit(any(figure.measured > figure.limit for figure in figures))


if __name__ == "__main__":
    main()
