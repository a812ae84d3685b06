"""Print every figure that the project promises, beside its peer and its limit; exit with 1 where one is missed.

python -m bench            all of them, seven rounds; some eight minutes
python -m bench --rounds 3 --skip-objdump --only objects
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.images import image_figures
from bench.measure import Figure, say
from bench.objects import object_figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-objdump", action="store_true", help="leave the slowest peer out")
    parser.add_argument("--only", choices=("images", "objects"), help="one half of them")
    options = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="staticcall-bench-") as folder:
        if options.only != "objects":
            figures += image_figures(Path(folder), options.rounds, with_objdump=not options.skip_objdump)
        if options.only != "images":
            figures += object_figures(Path(folder), options.rounds)
    say("")
    for figure in figures:
        say(str(figure))
    sys.exit(any(figure.measured > figure.limit for figure in figures))


if __name__ == "__main__":
    main()
